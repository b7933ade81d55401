"""How does a person see where the scores are high? One PNG: the slide with the scores over it.

The thumbnail, the colours of the patches half transparent on it, a colour bar with the score's name and numbers, a
scale bar in mm or µm, and a title with slide, patient and prediction. Of a slide with `bounds` (MRXS) only these are
shown: the rest was never scanned. Without the slide's file the patches lie on white with the lattice between them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from span_sparse.files import replacing
from span_sparse.grid import BoxPx0
from span_sparse.heatmaps.folder import SlideHeatmap
from span_sparse.heatmaps.raster import COLOUR_MAP, PERCENTILES, ColourScale, ScoreRaster
from span_sparse.wsi import SlideReader, read_thumbnail
from span_sparse.wsi.qc_picture import draw_scale_bar, drawable
from span_sparse.wsi.thumbnail import thumbnail_shape

LONGEST_EDGE_PX: Final = 1200
"""Of the slide in the picture."""

OPACITY: Final = 0.55
SMALLEST_OUTLINED_PATCH_PX: Final = 5.0
DPI: Final = 150
TOP_IN: Final = 0.62
BOTTOM_IN: Final = 0.32
RIGHT_IN: Final = 1.15
LINE_LENGTH: Final = 90
"""Letters of a title line, of font size 8 in the narrowest picture."""


def write_picture(path: Path, heatmap: SlideHeatmap, scale: ColourScale, reader: SlideReader | None) -> None:
    """Write the picture as PNG, under a temporary name first.

    Args:
        path: PNG to write.
        heatmap: scores; the one of `scale` is drawn.
        scale: of the colours.
        reader: the open slide; None draws on white.

    Raises:
        SlideError: the slide cannot be read.
        OSError: the picture cannot be written.
    """
    shown = BoxPx0(0, 0, *heatmap.dimensions_px0) if reader is None or reader.bounds is None else reader.bounds
    width_px0, height_px0 = shown.x1 - shown.x0, shown.y1 - shown.y0
    scale_px0 = max(1, math.ceil(max(width_px0, height_px0) / LONGEST_EDGE_PX))
    raster = ScoreRaster(heatmap, scale.score)
    rows, cols = raster.shape(scale_px0)
    extent = (0, cols * scale_px0, rows * scale_px0, 0)
    figure, axes = _figure(width_px0, height_px0)
    if reader is not None:
        unreadable = np.zeros(thumbnail_shape(reader, scale_px0), dtype=bool)
        axes.imshow(read_thumbnail(reader, scale_px0, unreadable), extent=extent)
    axes.imshow(
        overlay(raster, scale, scale_px0, 1.0 if reader is None else OPACITY), extent=extent, interpolation="nearest"
    )
    if reader is None:
        _draw_lattice(axes, heatmap, scale_px0)
    axes.set(xlim=(shown.x0, shown.x1), ylim=(shown.y1, shown.y0))
    axes.set_axis_off()
    draw_scale_bar(axes, width_px0, heatmap.lattice.slide_mpp, shown.x0)
    _draw_colour_bar(figure, scale)
    height_in = figure.get_figheight()
    figure.text(0.02, 1 - 0.08 / height_in, _title(heatmap), va="top", fontsize=8, parse_math=False, linespacing=1.35)
    with replacing(path) as file:
        figure.savefig(file, format="png", metadata={"Software": "span-sparse"})


def overlay(raster: ScoreRaster, scale: ColourScale, scale_px0: int, opacity: float) -> NDArray[np.uint8]:
    """RGBA bytes `[rows, columns, 4]` of the whole slide, transparent where no patch is."""
    rows, cols = raster.shape(scale_px0)
    values, is_covered = raster.band(scale_px0, 0, rows)
    pixels = np.zeros((rows, cols, 4), dtype=np.uint8)
    pixels[..., :3] = scale.colours(values)
    pixels[is_covered, 3] = round(255 * opacity)
    return pixels


def _figure(width_px0: int, height_px0: int) -> tuple[Figure, Axes]:
    """A figure with the slide's proportions, within limits, so that a strip stays legible."""
    aspect = min(max(height_px0 / width_px0, 0.25), 2.5)
    width = 8.0 if aspect <= 1 else max(8.0 / aspect, 4.8)
    height = max(width * aspect, 2.2)
    figure = Figure(figsize=(width + RIGHT_IN, height + TOP_IN + BOTTOM_IN), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    total_width, total_height = figure.get_size_inches()
    axes = figure.add_axes((0.0, BOTTOM_IN / total_height, width / total_width, height / total_height))
    return figure, axes


def _draw_lattice(axes: Axes, heatmap: SlideHeatmap, scale_px0: int) -> None:
    edge = heatmap.lattice.patch_px0
    if edge / scale_px0 < SMALLEST_OUTLINED_PATCH_PX:
        return
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]], dtype=np.int64) * edge
    corners = heatmap.lattice.to_px0(heatmap.grid)[:, None, :] + square
    axes.add_collection(LineCollection(list(corners), colors="#808080", linewidths=0.3))


def _draw_colour_bar(figure: Figure, scale: ColourScale) -> None:
    width, height = figure.get_size_inches()
    length = min(height - TOP_IN - BOTTOM_IN, 4.0)
    middle = BOTTOM_IN + (height - TOP_IN - BOTTOM_IN) / 2
    axes = figure.add_axes(
        ((width - RIGHT_IN + 0.12) / width, (middle - length / 2) / height, 0.14 / width, length / height)
    )
    colours = ScalarMappable(Normalize(scale.low, scale.high), COLOUR_MAP)
    bar = figure.colorbar(colours, cax=axes, extend="neither" if scale.score.startswith("prob_") else "both")
    bar.ax.tick_params(labelsize=7)
    bar.formatter.set_powerlimits((-3, 4))  # pyright: ignore[reportAttributeAccessIssue]
    bar.ax.yaxis.get_offset_text().set_fontsize(7)
    label = drawable(scale.score.replace("$", "\\$"))
    bar.set_label(f"{label[:40]}\n{_ends(scale)}", fontsize=7)


def _ends(scale: ColourScale) -> str:
    """How the scale's ends were chosen."""
    of = "the cohort" if scale.cohort else "this slide"
    if scale.score.startswith("prob_"):
        return "(probability)"
    if scale.low < 0 and scale.low == -scale.high:
        return f"(±{PERCENTILES[1]:g} % of {of}; the middle is 0)"
    return f"({PERCENTILES[0]:g} % to {PERCENTILES[1]:g} % of {of})"


def _title(heatmap: SlideHeatmap) -> str:
    lattice = heatmap.lattice
    predicted = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in heatmap.predicted.items()
    )
    lines = (
        f"{heatmap.slide_id}  (case {heatmap.case_id})",
        f"predicted: {predicted or 'a class for each patch'}",
        f"{len(heatmap.grid)} patches, {lattice.patch_px0 * lattice.slide_mpp:.4g} µm wide",
    )
    return "\n".join(
        line if len(line) <= LINE_LENGTH else f"{line[: LINE_LENGTH - 1]}…" for line in map(drawable, lines)
    )
