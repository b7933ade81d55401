"""What do the patches with the highest scores look like? Their pictures side by side, score and place below each."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from span_sparse.files import replacing
from span_sparse.heatmaps.folder import SlideHeatmap
from span_sparse.wsi import SlideReader
from span_sparse.wsi.qc_picture import drawable

NUM_PATCHES: Final = 12
NUM_COLUMNS: Final = 4
LONGEST_EDGE_PX: Final = 288
"""Of a patch in the picture."""

DPI: Final = 150
CELL_IN: Final = (2.0, 2.35)
TOP_IN: Final = 0.55


def top_patches(scores: NDArray[np.floating], count: int = NUM_PATCHES) -> NDArray[np.intp]:
    """Rows of the highest scores, best first; of equal ones the first rows.

    >>> top_patches(np.array([1.0, 3.0, 2.0, 3.0]), 3).tolist()
    [1, 3, 2]
    """
    return np.argsort(-scores, kind="stable")[:count]


def write_gallery(path: Path, heatmap: SlideHeatmap, score: str, reader: SlideReader) -> None:
    """Write the gallery as PNG, under a temporary name first.

    Args:
        path: PNG to write.
        heatmap: the patches.
        score: by which they are ordered.
        reader: the open slide.

    Raises:
        SlideError: a patch cannot be read.
        OSError: the picture cannot be written.
    """
    lattice, values = heatmap.lattice, heatmap.score(score)
    best = top_patches(values)
    num_rows = -(-len(best) // NUM_COLUMNS)
    size = (NUM_COLUMNS * CELL_IN[0], num_rows * CELL_IN[1] + TOP_IN)
    figure = Figure(figsize=size, dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    title = drawable(f"{heatmap.slide_id}: the {len(best)} of {len(values)} patches with the highest {score}")
    edge_um = lattice.patch_px0 * lattice.slide_mpp
    text = f"{title if len(title) <= 90 else title[:89] + '…'}\neach {edge_um:.4g} µm wide"
    figure.text(0.02, 1 - 0.08 / size[1], text, va="top", fontsize=8, parse_math=False, linespacing=1.35)
    edge_px = min(lattice.patch_px0, LONGEST_EDGE_PX)
    for place, patch in enumerate(best):
        row, col = (int(cell) for cell in heatmap.grid[patch])
        left = (place % NUM_COLUMNS) * CELL_IN[0] + 0.04
        bottom = size[1] - TOP_IN - (place // NUM_COLUMNS + 1) * CELL_IN[1] + 0.36
        axes = figure.add_axes(
            (left / size[0], bottom / size[1], (CELL_IN[0] - 0.08) / size[0], (CELL_IN[0] - 0.08) / size[1])
        )
        axes.imshow(reader.read_region(lattice.box(row, col), edge_px), interpolation="nearest")
        axes.set_axis_off()
        axes.text(0.5, -0.03, f"{values[patch]:.4g}\nrow {row}, col {col}", ha="center", va="top", fontsize=7,
                  transform=axes.transAxes)  # fmt: skip
    with replacing(path) as file:
        figure.savefig(file, format="png", metadata={"Software": "span-sparse"})
