"""How does a browser see a slide of 100,000 pixels? In square tiles of a pyramid whose levels halve each other.

Level `max_level` is level 0 of the slide; each level below has half the pixels along each side, rounded up, down to a
single pixel. Tile `(column, row)` of a level covers `tile_px · 2^(max_level − level)` level-0 pixels along each side,
at the slide's right and lower edge what is left. That is the geometry of Deep Zoom, and it is exact: the file's own
levels, whose sizes were rounded by a scanner, only serve as the source of pixels.

A slide without coarse levels would have to be read whole for its first tile. So a tile is read in parts, which keeps
memory bounded, and refused where it would take minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import SlideError
from span_sparse.grid import BoxPx0
from span_sparse.wsi.reader import SlideReader, pick_level

TILE_PX: Final = 256
MAX_PART_PX: Final = 2**24
"""Pixels of the file's level that are read at once (64 MiB as RGBA)."""

MAX_SOURCE_PX: Final = 2**28
"""Pixels of the file's level behind one tile: some ten seconds."""


@dataclass(frozen=True, slots=True)
class DeepZoomPyramid:
    """The tiles of a picture.

    Attributes:
        width_px0: width of level 0.
        height_px0: height of level 0.
        tile_px: edge of a tile.

    >>> pyramid = DeepZoomPyramid(1000, 300)
    >>> pyramid.max_level, pyramid.num_tiles(10), pyramid.num_tiles(9)
    (10, (4, 2), (2, 1))
    >>> pyramid.tile(9, 1, 0)
    (BoxPx0(x0=512, y0=0, x1=1000, y1=300), (244, 150))
    """

    width_px0: int
    height_px0: int
    tile_px: int = TILE_PX

    @property
    def max_level(self) -> int:
        """The level that is level 0 of the slide."""
        return (max(self.width_px0, self.height_px0) - 1).bit_length()

    @property
    def min_level(self) -> int:
        """The finest level that is a single tile; coarser ones exist and are of no use."""
        return min(self.max_level, self.tile_px.bit_length() - 1)

    def num_tiles(self, level: int) -> tuple[int, int]:
        """Columns and rows of a level."""
        edge_px0 = self.tile_px << (self.max_level - level)
        return -(-self.width_px0 // edge_px0), -(-self.height_px0 // edge_px0)

    def tile(self, level: int, column: int, row: int) -> tuple[BoxPx0, tuple[int, int]] | None:
        """The level-0 box of a tile and its `(width, height)` in pixels; None when there is no such tile."""
        if not 0 <= level <= self.max_level:
            return None
        num_columns, num_rows = self.num_tiles(level)
        if not (0 <= column < num_columns and 0 <= row < num_rows):
            return None
        shift = self.max_level - level
        edge_px0 = self.tile_px << shift
        left, top = column * edge_px0, row * edge_px0
        box = BoxPx0(left, top, min(left + edge_px0, self.width_px0), min(top + edge_px0, self.height_px0))
        return box, (-(-(box.x1 - box.x0) >> shift), -(-(box.y1 - box.y0) >> shift))


def read_tile(reader: SlideReader, box: BoxPx0, size_px: tuple[int, int]) -> NDArray[np.uint8]:
    """The pixels of a tile.

    Args:
        reader: an open slide.
        box: level-0 pixels.
        size_px: `(width, height)` of the result.

    Returns:
        RGB bytes `[height, width, 3]`.

    Raises:
        SlideError: the slide cannot be read there, or has no level coarse enough for it.
    """
    num_source_px = _num_source_px(reader, box, size_px)
    if num_source_px > MAX_SOURCE_PX:
        raise SlideError(f"{reader.path}: has no level coarse enough for an overview; zoom in to see it")
    width, height = size_px
    if num_source_px <= MAX_PART_PX or max(size_px) == 1:
        return reader.read_region(box, size_px)
    tile = np.empty((height, width, 3), dtype=np.uint8)
    middle_x, middle_y = (width + 1) // 2, (height + 1) // 2
    for first_x, last_x in ((0, middle_x), (middle_x, width)):
        for first_y, last_y in ((0, middle_y), (middle_y, height)):
            if last_x > first_x and last_y > first_y:
                part = BoxPx0(
                    box.x0 + (box.x1 - box.x0) * first_x // width,
                    box.y0 + (box.y1 - box.y0) * first_y // height,
                    box.x0 + (box.x1 - box.x0) * last_x // width,
                    box.y0 + (box.y1 - box.y0) * last_y // height,
                )
                tile[first_y:last_y, first_x:last_x] = read_tile(reader, part, (last_x - first_x, last_y - first_y))
    return tile


def _num_source_px(reader: SlideReader, box: BoxPx0, size_px: tuple[int, int]) -> float:
    width_px0, height_px0 = box.x1 - box.x0, box.y1 - box.y0
    level = pick_level(reader.level_downsamples, min(width_px0 / size_px[0], height_px0 / size_px[1]))
    return width_px0 * height_px0 / reader.level_downsamples[level] ** 2
