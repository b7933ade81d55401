"""How is a whole slide made small without ever holding it large?

The thumbnail's pixel is a whole number of level-0 pixels, so its raster is exact; it is read in blocks small enough for
a slide that has no coarse level at all (one level of 100,000 × 80,000 pixels would be 32 GB in one piece), and several
at a time.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import SlideError
from span_sparse.grid import BoxPx0
from span_sparse.wsi.reader import SlideReader, pick_level
from span_sparse.wsi.strips import in_threads

MAX_BLOCK_PX: Final = 2048
"""Longest edge of one read, in pixels of the level that is read (16 MiB as RGBA, in each of a few threads)."""

MAX_SOURCE_PX: Final = 2**35
"""Pixels of the level that is read: 185,000 squared, some ten minutes. More is a damaged header or a hopeless file."""

SMALLEST_PART_PX: Final = 8
"""Parts of the thumbnail this small are not cut further when they cannot be read; a tile of the slide has 8 to 16."""

MAX_FAILED_READS: Final = 400
"""Of some twenty broken tiles. With more the slide is hopeless, and every attempt costs opening the file again."""


def read_thumbnail(
    reader: SlideReader, scale_px0: int, unreadable: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """The whole slide, one pixel for `scale_px0 × scale_px0` level-0 pixels.

    Args:
        reader: an open slide.
        scale_px0: edge of a thumbnail pixel in level-0 pixels, at least 1.
        unreadable: bool of the thumbnail's shape, all False: then a part that cannot be read is no error, but white in
            the thumbnail and set to True here.

    Returns:
        RGB bytes `[ceil(height / scale), ceil(width / scale), 3]`; the last row and column may lie partly outside the
        slide, where the background is shown.

    Raises:
        SlideError: a part of the slide (with `unreadable`: a lot of it) cannot be read, or no level is coarse enough
            to read it all in bounded time.
    """
    rows, cols = thumbnail_shape(reader, scale_px0)
    level = pick_level(reader.level_downsamples, scale_px0)
    level_factor, (level_width, level_height) = reader.level_downsamples[level], reader.level_shapes[level]
    if level_width * level_height > MAX_SOURCE_PX:
        raise SlideError(
            f"{reader.path}: an overview would be made from {level_width} × {level_height} px, since the slide has no "
            "coarser level; convert it to a pyramidal TIFF, or check that its header is not damaged"
        )
    thumbnail = np.empty((rows, cols, 3), dtype=np.uint8)
    block = max(1, math.floor(MAX_BLOCK_PX * level_factor / scale_px0))
    corners = [(row, col) for row in range(0, rows, block) for col in range(0, cols, block)]

    def is_read(corner: tuple[int, int]) -> bool:
        row, col = corner
        try:
            _read(reader, scale_px0, thumbnail[row : row + block, col : col + block], row, col)
        except SlideError:
            return False
        return True

    num_failed = 0
    for (row, col), done in zip(corners, in_threads(is_read, corners), strict=True):
        part = slice(row, row + block), slice(col, col + block)
        if done:
            continue
        if unreadable is None:  # one by one now: the error may have been another thread's
            _read(reader, scale_px0, thumbnail[part], row, col)
        else:
            num_failed = _fill(reader, scale_px0, thumbnail[part], unreadable[part], row, col, num_failed)
    return thumbnail


def thumbnail_shape(reader: SlideReader, scale_px0: int) -> tuple[int, int]:
    """Rows and columns of a thumbnail."""
    return math.ceil(reader.height_px0 / scale_px0), math.ceil(reader.width_px0 / scale_px0)


def _read(reader: SlideReader, scale_px0: int, part: NDArray[np.uint8], row: int, col: int) -> None:
    """Read the part of the thumbnail that begins at `(row, col)`."""
    height, width, _ = part.shape
    x0, y0 = col * scale_px0, row * scale_px0
    box = BoxPx0(x0, y0, x0 + width * scale_px0, y0 + height * scale_px0)
    part[...] = reader.read_region(box, (width, height))


def _fill(
    reader: SlideReader,
    scale_px0: int,
    part: NDArray[np.uint8],
    unreadable: NDArray[np.bool_],
    row: int,
    col: int,
    num_failed: int,
) -> int:
    """Read a part; where that fails, its quarters, down to `SMALLEST_PART_PX`. Counts the reads that failed."""
    try:
        _read(reader, scale_px0, part, row, col)
        return num_failed
    except SlideError as error:
        num_failed += 1
        if num_failed > MAX_FAILED_READS:
            raise SlideError(
                f"{reader.path}: opens, but most of it cannot be read, the file is damaged; copy it again or remove it "
                f"from the cohort ({MAX_FAILED_READS} parts failed, the last: {error})"
            ) from error
    height, width, _ = part.shape
    if max(height, width) <= SMALLEST_PART_PX:
        part[...], unreadable[...] = 255, True
        return num_failed
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    for down in range(0, height, half_height):
        for right in range(0, width, half_width):
            quarter = slice(down, down + half_height), slice(right, right + half_width)
            num_failed = _fill(
                reader, scale_px0, part[quarter], unreadable[quarter], row + down, col + right, num_failed
            )
    return num_failed
