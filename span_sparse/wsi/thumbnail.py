"""How is a whole slide made small without ever holding it large?

The thumbnail's pixel is a whole number of level-0 pixels, so its raster is exact; it is read in blocks small enough for
a slide that has no coarse level at all (one level of 100,000 × 80,000 pixels would be 32 GB in one piece).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import SlideError
from span_sparse.grid import BoxPx0
from span_sparse.wsi.reader import SlideReader, pick_level

MAX_BLOCK_PX: Final = 4096
"""Longest edge of one read, in pixels of the level that is read (64 MiB as RGBA)."""

MAX_SOURCE_PX: Final = 2**35
"""Pixels of the level that is read: 185,000 squared, some ten minutes. More is a damaged header or a hopeless file."""


def read_thumbnail(reader: SlideReader, scale_px0: int) -> NDArray[np.uint8]:
    """The whole slide, one pixel for `scale_px0 × scale_px0` level-0 pixels.

    Args:
        reader: an open slide.
        scale_px0: edge of a thumbnail pixel in level-0 pixels, at least 1.

    Returns:
        RGB bytes `[ceil(height / scale), ceil(width / scale), 3]`; the last row and column may lie partly outside the
        slide, where the background is shown.

    Raises:
        SlideError: a part of the slide cannot be read, or no level is coarse enough to read it all in bounded time.
    """
    rows, cols = math.ceil(reader.height_px0 / scale_px0), math.ceil(reader.width_px0 / scale_px0)
    thumbnail = np.empty((rows, cols, 3), dtype=np.uint8)
    level = pick_level(reader.level_downsamples, scale_px0)
    level_factor, (level_width, level_height) = reader.level_downsamples[level], reader.level_shapes[level]
    if level_width * level_height > MAX_SOURCE_PX:
        raise SlideError(
            f"{reader.path}: an overview would be made from {level_width} × {level_height} px, since the slide has no "
            "coarser level; convert it to a pyramidal TIFF, or check that its header is not damaged"
        )
    block = max(1, math.floor(MAX_BLOCK_PX * level_factor / scale_px0))
    for row in range(0, rows, block):
        for col in range(0, cols, block):
            height, width = min(block, rows - row), min(block, cols - col)
            corner_x, corner_y = col * scale_px0, row * scale_px0
            box = BoxPx0(corner_x, corner_y, corner_x + width * scale_px0, corner_y + height * scale_px0)
            thumbnail[row : row + height, col : col + width] = reader.read_region(box, (width, height))
    return thumbnail
