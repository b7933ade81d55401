"""How does a person see at a glance that tissue, lattice and scale are right?

One PNG per slide: the thumbnail, the tissue's outline, what was taken out of it (ink, folds, blur), the cells that
become patches, a scale bar, and a title with the counts. A wrong mpp shows as a scale bar that does not fit the
anatomy, a shifted mask as an outline beside the tissue.

Cells are drawn as squares while they are large enough to be told apart, and as a tint where they are not.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from numpy.typing import NDArray

from span_sparse.files import replacing
from span_sparse.grid import Lattice
from span_sparse.wsi.reader import SlideReader
from span_sparse.wsi.thumbnail import read_thumbnail, thumbnail_shape
from span_sparse.wsi.tissue_settings import TissueMask

LONGEST_EDGE_PX: Final = 1600
"""Of the thumbnail in the picture."""

SMALLEST_OUTLINED_CELL_PX: Final = 5.0
"""Cells smaller than this, on the thumbnail, are tinted instead of outlined."""

DPI: Final = 150
TOP_MARGIN_IN: Final = 0.6
"""Room for a title of three lines."""

LINE_IN: Final = 0.15
"""Room for one more."""

BOTTOM_MARGIN_IN: Final = 0.3
"""Room for the scale bar."""

OUTLINE_COLOUR: Final = "#007a33"
CELL_COLOUR: Final = "#0044cc"


class Tint(NamedTuple):
    """A colour and its name in the title."""

    colour: str
    word: str


REMOVED_COLOURS: Final = {
    "pen": Tint("#ff8c00", "orange"),
    "folds": Tint("#c800c8", "magenta"),
    "blur": Tint("#00a0a0", "teal"),
}
"""Of what was taken out of the tissue."""


def write_qc_picture(
    path: Path, reader: SlideReader, tissue: TissueMask, lattice: Lattice, grid: NDArray[np.int32], mpp_source: str
) -> None:
    """Write the picture as PNG, under a temporary name first.

    Args:
        path: PNG to write; its folder must exist.
        reader: the open slide.
        tissue: its mask; may be empty, then the bare thumbnail is shown.
        lattice: its lattice.
        grid: cells `(row, col)` that become patches, int32 `[patches, 2]`.
        mpp_source: where the slide's resolution comes from.

    Raises:
        SlideError: the slide cannot be read.
        OSError: the picture cannot be written.
    """
    scale_px0 = max(1, math.ceil(max(reader.width_px0, reader.height_px0) / LONGEST_EDGE_PX))
    thumbnail = read_thumbnail(reader, scale_px0, np.zeros(thumbnail_shape(reader, scale_px0), dtype=bool))
    top_in = TOP_MARGIN_IN + (LINE_IN if _removed_line(tissue) else 0)
    figure = _figure(reader, top_in)
    height_in = figure.get_figheight()
    axes = figure.add_axes((0.0, BOTTOM_MARGIN_IN / height_in, 1.0, 1.0 - (top_in + BOTTOM_MARGIN_IN) / height_in))
    axes.imshow(thumbnail, extent=(0, thumbnail.shape[1] * scale_px0, thumbnail.shape[0] * scale_px0, 0))
    _draw_cells(axes, lattice, grid, scale_px0)
    for name, removed in tissue.removed.items():
        _draw_removed(axes, removed, tissue.scale_px0, REMOVED_COLOURS[name].colour)
    _draw_outline(axes, tissue.mask, tissue.scale_px0, OUTLINE_COLOUR, width=1.2)
    draw_scale_bar(axes, reader.width_px0, lattice.slide_mpp)
    axes.set(xlim=(0, reader.width_px0), ylim=(reader.height_px0, 0))
    axes.set_axis_off()
    figure.text(
        0.5, 1.0 - 0.08 / height_in, _title(reader, tissue, lattice, len(grid), mpp_source),
        ha="center", va="top", fontsize=8, parse_math=False, linespacing=1.35,
    )  # fmt: skip
    with replacing(path) as file:
        figure.savefig(file, format="png", metadata={"Software": "span-sparse"})


def _figure(reader: SlideReader, top_in: float) -> Figure:
    """A figure with the slide's proportions, within limits, so that a strip stays legible."""
    aspect = min(max(reader.height_px0 / reader.width_px0, 0.25), 2.5)
    width = 8.0 if aspect <= 1 else max(8.0 / aspect, 4.8)
    figure = Figure(figsize=(width, width * aspect + top_in + BOTTOM_MARGIN_IN), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _title(reader: SlideReader, tissue: TissueMask, lattice: Lattice, num_patches: int, mpp_source: str) -> str:
    spec = lattice.spec
    return (
        f"{drawable(reader.path.name)}  ({reader.width_px0} × {reader.height_px0} px, {reader.vendor})\n"
        f"{num_patches} patches of {spec.patch_size_px} px at {spec.target_mpp:g} µm/px, "
        f"step {lattice.step_px0} px = {lattice.step_um:.4g} µm\n"
        f"tissue {tissue.area_mm2:.3g} mm² by {tissue.method} (green), cells (blue), "
        f"{lattice.slide_mpp:.4g} µm/px from {mpp_source}" + _removed_line(tissue)
    )


def _removed_line(tissue: TissueMask) -> str:
    """A line about what was taken out, empty without any."""
    shares = {name: share for name, share in tissue.removed_shares.items() if share > 0}
    parts = [f"{name} {share:.1%} ({REMOVED_COLOURS[name].word})" for name, share in shares.items()]
    return f"\nremoved: {', '.join(parts)}" if parts else ""


def drawable(text: str) -> str:
    """The text with what the font lacks as `?`; matplotlib would warn and draw a box."""
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(letter if ord(letter) in known else "?" for letter in text)


def _draw_cells(axes: Axes, lattice: Lattice, grid: NDArray[np.int32], scale_px0: int) -> None:
    if not len(grid):
        return
    step = lattice.step_px0
    if step / scale_px0 < SMALLEST_OUTLINED_CELL_PX:
        rows, cols = grid.max(axis=0) + 1
        tint = np.zeros((rows, cols, 4), dtype=np.float32)
        tint[grid[:, 0], grid[:, 1]] = (0.0, 0.27, 0.8, 0.3)
        axes.imshow(tint, extent=(0, cols * step, rows * step, 0), interpolation="nearest")
        return
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]], dtype=np.int64) * step
    corners = lattice.to_px0(grid)[:, None, :] + square
    axes.add_collection(LineCollection(list(corners), colors=CELL_COLOUR, linewidths=0.6, alpha=0.8))


def _draw_removed(axes: Axes, removed: NDArray[np.bool_], scale_px0: int, colour: str) -> None:
    tint = np.zeros((*removed.shape, 4), dtype=np.float32)
    tint[removed] = to_rgba(colour, alpha=0.35)
    rows, cols = removed.shape
    axes.imshow(tint, extent=(0, cols * scale_px0, rows * scale_px0, 0), interpolation="nearest")
    _draw_outline(axes, removed, scale_px0, colour, width=0.8)


def _draw_outline(axes: Axes, mask: NDArray[np.bool_], scale_px0: int, colour: str, width: float) -> None:
    if not mask.any():
        return
    padded = np.pad(mask, 1)
    centres_x = (np.arange(padded.shape[1]) - 0.5) * scale_px0
    centres_y = (np.arange(padded.shape[0]) - 0.5) * scale_px0
    axes.contour(centres_x, centres_y, padded, levels=[0.5], colors=colour, linewidths=width)


def draw_scale_bar(axes: Axes, width_px0: int, slide_mpp: float, left_px0: int = 0) -> None:
    """A bar of 1, 2 or 5 × 10ⁿ µm, at most a quarter of the width shown, below the slide.

    Args:
        axes: in level-0 pixels.
        width_px0: of what is shown.
        slide_mpp: µm per level-0 pixel.
        left_px0: where it begins.
    """
    longest_um = width_px0 * slide_mpp / 4
    decade = 10.0 ** math.floor(math.log10(longest_um))
    length_um = max(factor * decade for factor in (1, 2, 5) if factor * decade <= longest_um)
    text = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
    start = left_px0 + 0.02 * width_px0
    end = start + length_um / slide_mpp
    place = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points", "annotation_clip": False}
    bar = {"arrowstyle": "-", "linewidth": 3, "color": "black", "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=(start, -0.01), xytext=(end, -0.01), xycoords=place["xycoords"], textcoords=place["xycoords"],
                  annotation_clip=False, arrowprops=bar)  # fmt: skip
    axes.annotate(text, xy=(end, -0.01), xytext=(6, 0), va="center", fontsize=8, **place)
