"""How large is a pixel of this slide, and who says so?

The first source that speaks wins, and its name is kept with the value:

1. `cohort`: the user's own number, from the column `mpp` of the cohort table (or `--mpp`),
2. `openslide`: the scanner vendor's tag,
3. `tiff-resolution`: the resolution tags of a plain TIFF,
4. `objective-power`: 10 / magnification.

Nothing is assumed beyond that, and a value nobody can have meant is refused: editors write 72 or 96 dpi into every
TIFF they touch, which reads as 353 or 265 µm per pixel and gives one patch per slide without any error.
"""

from __future__ import annotations

import math
from typing import Final

from span_sparse.errors import MppError
from span_sparse.grid import LatticeSpec
from span_sparse.wsi.reader import SlideReader

MIN_PLAUSIBLE_MPP: Final = 0.05
"""100× oil immersion gives 0.1 µm/px; half of that leaves room."""

MAX_PLAUSIBLE_MPP: Final = 50.0
"""Overview pictures of slides have about 30 µm/px; 72 and 96 dpi are 353 and 265."""

RESOLUTION_TOLERANCE: Final = 0.05
"""A slide may be this much coarser than the target: '20×' is 0.499 to 0.52 µm/px, depending on the scanner."""


def resolve_mpp(reader: SlideReader, cohort_mpp: float | None = None) -> tuple[float, str]:
    """µm per pixel of level 0 and the source it was taken from.

    Args:
        reader: an open slide.
        cohort_mpp: the user's value; None or NaN where there is none.

    Returns:
        The value and one of `cohort`, `openslide`, `tiff-resolution`, `objective-power`.

    Raises:
        MppError: no source speaks, or the first that does is implausible or contradicts itself.
    """
    mpp, source = _first_source(reader, cohort_mpp)
    if not MIN_PLAUSIBLE_MPP <= mpp <= MAX_PLAUSIBLE_MPP:
        raise MppError(
            f"{reader.path}: {mpp:.4g} µm/px (from {source}) is implausible, expected {MIN_PLAUSIBLE_MPP:g} to "
            f"{MAX_PLAUSIBLE_MPP:g}; put the right value into the column `mpp` of the cohort table (inspect: --mpp)"
        )
    return mpp, source


def _first_source(reader: SlideReader, cohort_mpp: float | None) -> tuple[float, str]:
    if cohort_mpp is not None and not math.isnan(cohort_mpp):
        return float(cohort_mpp), "cohort"
    if (tag := reader.mpp_tag) is not None:
        return tag, "openslide"
    if (tiff := reader.mpp_tiff) is not None:
        return tiff, "tiff-resolution"
    if (power := reader.objective_power) is not None:
        return 10.0 / power, "objective-power"
    raise MppError(
        f"{reader.path}: the file does not say how many µm a pixel has (no vendor tag, TIFF resolution or objective "
        "power); put the value into the column `mpp` of the cohort table (inspect: --mpp)"
    )


def check_resolution(reader: SlideReader, slide_mpp: float, spec: LatticeSpec) -> None:
    """Refuse patches finer than the slide: enlarging shows no detail that the slide does not hold.

    Args:
        reader: an open slide.
        slide_mpp: µm per pixel of level 0, from `resolve_mpp`.
        spec: patch size and resolution asked for.

    Raises:
        MppError: the slide is more than 5 % coarser than the target resolution.
    """
    if slide_mpp > spec.target_mpp * (1 + RESOLUTION_TOLERANCE):
        raise MppError(
            f"{reader.path}: has {slide_mpp:.4g} µm/px, patches at {spec.target_mpp:g} µm/px would be enlarged "
            f"{slide_mpp / spec.target_mpp:.3g} times; pass --target-mpp {slide_mpp:.4g} or coarser "
            f"(a patch of {spec.patch_size_px} px is then {spec.patch_size_px * slide_mpp / 1000:.3g} mm wide, "
            "--patch-size changes that), or leave this slide out"
        )
