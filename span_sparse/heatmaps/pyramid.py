"""How does a heatmap become a file that slide viewers lay over the slide?

A tiled, pyramidal BigTIFF of RGB colours on white. Its level 0 is the slide's level 0 divided by a power of two (edges
rounded up), and every further level has half the resolution. Each level is computed from the scores: shrinking the
colours of the level above would mix colours that stand for no score, and add up rounding. The resolution tags are the
slide's µm per pixel times the factor, so that a viewer aligns both by their physical size.

Written tile by tile, in bands: a slide of 200,000 pixels needs megabytes, not gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import tifffile
from numpy.typing import NDArray

from span_sparse.files import replacing
from span_sparse.heatmaps.folder import SlideHeatmap
from span_sparse.heatmaps.raster import ColourScale, ScoreRaster

TILE_PX: Final = 256
PATCH_PX: Final = 16
"""A patch has at least so many pixels of level 0 along its edge, where the slide is not too large for that."""

MAX_EDGE_PX: Final = 2**14
"""Longest edge of level 0."""

SMALLEST_LEVEL_PX: Final = 512


def overlay_scale(step_px0: int, dimensions_px0: tuple[int, int]) -> int:
    """Level-0 pixels of the slide for each of the overlay: a power of two.

    >>> overlay_scale(448, (100_000, 80_000)), overlay_scale(32, (900, 700))
    (16, 2)
    """
    scale = 1
    while 2 * scale * PATCH_PX <= step_px0 or max(dimensions_px0) > scale * MAX_EDGE_PX:
        scale *= 2
    return scale


def write_pyramid(path: Path, heatmap: SlideHeatmap, scale: ColourScale) -> None:
    """Write the overlay, under a temporary name first.

    Args:
        path: TIFF to write.
        heatmap: scores; the one of `scale` is drawn.
        scale: of the colours.

    Raises:
        OSError: the file cannot be written.
    """
    raster = ScoreRaster(heatmap, scale.score)
    scale_px0 = overlay_scale(heatmap.lattice.step_px0, heatmap.dimensions_px0)
    with replacing(path) as stream, tifffile.TiffWriter(stream, bigtiff=True) as writer:
        level = 0
        while level == 0 or max(raster.shape(scale_px0 // 2)) > SMALLEST_LEVEL_PX:
            per_cm = 10_000 / (heatmap.lattice.slide_mpp * scale_px0)
            writer.write(
                _tiles(raster, scale, scale_px0),
                shape=(*raster.shape(scale_px0), 3),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",
                compression="adobe_deflate",
                subfiletype=int(level > 0),
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                software="span-sparse",
                metadata=None,
            )
            level, scale_px0 = level + 1, scale_px0 * 2


def _tiles(raster: ScoreRaster, scale: ColourScale, scale_px0: int) -> Iterator[NDArray[np.uint8]]:
    rows, cols = raster.shape(scale_px0)
    for row in range(0, rows, TILE_PX):
        values, is_covered = raster.band(scale_px0, row, min(row + TILE_PX, rows))
        colours = np.full((TILE_PX, -(-cols // TILE_PX) * TILE_PX, 3), 255, dtype=np.uint8)
        colours[: len(values), :cols][is_covered] = scale.colours(values[is_covered])
        for col in range(0, cols, TILE_PX):
            yield np.ascontiguousarray(colours[:, col : col + TILE_PX])
