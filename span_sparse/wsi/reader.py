"""What does the package need to know of a slide, in which units?

A `SlideReader` hides the file format. All positions are level-0 pixels, integers, counted from the slide's own origin
(for MRXS: the origin of the whole scan, not of its `bounds`); all results are RGB bytes on an opaque background.

1. `read_region(box, size_tile_px)` asks for a level-0 box, rendered at a given size.
2. `pick_level` chooses the level that is read: the coarsest one that is still as fine as what is asked for.
3. The crop of that level is resampled (`resampling`) to exactly the box, also where the level's downsample is not a
   whole number (4.016 instead of 4).

The naive way, reading "level 2" at `x / 4`, is off by 4 pixels in 1000 on such a slide, and a coarse level scaled up
looks like a patch but holds no detail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from span_sparse.grid import BoxPx0

RESAMPLING: Final = "lanczos"
"""Filter of a change of size below 2: Pillow's LANCZOS, anti-aliased when shrinking. Same size: pixels untouched."""

TWO_STEPS: Final = "box, lanczos"
"""From 2 on: means of whole pixels, 2 × 2 or more, then LANCZOS for what is left, which is below 2. LANCZOS alone takes
as long as reading; the difference is that between it and a bicubic filter (docs/slides.md)."""

LEVEL_TOLERANCE: Final = 0.005
"""A level may be this much coarser than asked: the 4.00004 of a real file is the 4 its maker meant."""


class SlideReader(Protocol):
    """An open slide. Use as a context manager; errors are `SlideError` with the file's name."""

    @property
    def path(self) -> Path:
        """The file that was opened."""
        ...

    @property
    def vendor(self) -> str:
        """The format, in OpenSlide's words: `aperio`, `dicom`, `generic-tiff`, ..."""
        ...

    @property
    def width_px0(self) -> int:
        """Width of level 0 in pixels."""
        ...

    @property
    def height_px0(self) -> int:
        """Height of level 0 in pixels."""
        ...

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Level-0 pixels per pixel of each level, of x and y the larger; the first is 1."""
        ...

    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]:
        """`(width, height)` of each level in its own pixels."""
        ...

    @property
    def bounds(self) -> BoxPx0 | None:
        """The scanned part of the slide, where the format says so (MRXS); level-0 pixels from the slide's origin."""
        ...

    @property
    def mpp_tag(self) -> float | None:
        """µm per pixel of level 0 as the vendor states it, mean of x and y; None where the vendor is silent.

        Raises:
            MppError: x and y differ by more than 2 %.
        """
        ...

    @property
    def mpp_tiff(self) -> float | None:
        """µm per pixel from the TIFF resolution tags; None without them or without a unit.

        Raises:
            MppError: x and y differ by more than 2 %.
        """
        ...

    @property
    def objective_power(self) -> float | None:
        """Magnification of the objective, for example 20 or 40; None where unknown."""
        ...

    def read_region(self, box: BoxPx0, size_tile_px: int | tuple[int, int]) -> NDArray[np.uint8]:
        """The pixels of a level-0 box; may be called from several threads at once.

        Args:
            box: half-open, level-0 pixels; parts outside the slide come back in the background colour.
            size_tile_px: edge, or `(width, height)`, of the result.

        Returns:
            RGB bytes `[height, width, 3]`.

        Raises:
            SlideError: the file cannot be read there, or another thread met such a place at this moment; other parts
                still can.
            ValueError: an empty box or size.
        """
        ...

    def close(self) -> None:
        """Release the file; may be called twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def pick_level(level_downsamples: Sequence[float], downsample: float) -> int:
    """The coarsest level that is not coarser than `downsample`, so that a result is never made by enlarging.

    Level 0 when even that is too coarse: then the caller asked for more than the slide holds (`check_resolution`).

    Args:
        level_downsamples: level-0 pixels per level pixel.
        downsample: level-0 pixels per pixel of the result.

    >>> pick_level((1.0, 4.00004, 16.003), 4.0), pick_level((1.0, 4.00004, 16.003), 3.9)
    (1, 0)
    """
    fine_enough = [
        level for level, factor in enumerate(level_downsamples) if factor <= downsample * (1 + LEVEL_TOLERANCE)
    ]
    return max(fine_enough, key=lambda level: level_downsamples[level], default=0)


def whole_reduction(factor: float) -> int:
    """Edge of the squares of pixels that are averaged first when a picture is shrunk by a factor; 1: none are.

    The factors of a slide's patches differ in their last digits, which must not decide.

    >>> whole_reduction(1.98), whole_reduction(1.99999999999), whole_reduction(3.7), whole_reduction(0.5)
    (1, 2, 3, 1)
    """
    return max(1, math.floor(factor * (1 + 1e-6)))


def resampling(reader: SlideReader, downsample: float) -> str:
    """How pixels of `downsample` level-0 pixels are made, as the store records it."""
    factor = downsample / reader.level_downsamples[pick_level(reader.level_downsamples, downsample)]
    return RESAMPLING if whole_reduction(factor) == 1 else TWO_STEPS
