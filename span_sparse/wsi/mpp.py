"""How large is a pixel of this slide, and who says so?

The first source that speaks wins, and its name is kept with the value:

1. `cohort`: the user's own number, from the column `mpp` of the cohort table (or `--mpp`),
2. `openslide`: the scanner vendor's tag,
3. `tiff-resolution`: the resolution tags of a plain TIFF,
4. `objective-power`: 10 / magnification.

Nothing is assumed beyond that. Where the file's word is taken, its resolution and its objective must not contradict
each other: a picture exported at a quarter of the size often keeps a tag of the original. And a value nobody can have
meant is refused: editors write 72 or 96 dpi into every TIFF they touch, which reads as 353 or 265 µm per pixel and
gives one patch per slide without any error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from span_sparse.errors import MppError
from span_sparse.grid import MAX_PLAUSIBLE_MPP, MIN_PLAUSIBLE_MPP, LatticeSpec
from span_sparse.wsi.reader import SlideReader

COHORT: Final = "cohort"
FIX: Final = "the column `mpp` of the cohort table (inspect: --mpp)"

UM_PER_PIXEL_AT_1X: Final = 10.0
"""Scanners have 0.5 µm/px at 20× and 0.25 at 40×, give or take a fifth."""

MAX_CONTRADICTION: Final = 2.2
"""Resolution and objective may differ by a factor of 2 (a doubler lens, 20× scanned as 40×) and a tenth more."""

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
        MppError: no source speaks, the first that does is implausible, or it contradicts itself or the objective.
    """
    mpp, source = _first_source(reader, cohort_mpp)
    if not MIN_PLAUSIBLE_MPP <= mpp <= MAX_PLAUSIBLE_MPP:
        raise MppError(
            f"{reader.path}: {mpp:.4g} µm/px (from {source}) is implausible, expected {MIN_PLAUSIBLE_MPP:g} to "
            f"{MAX_PLAUSIBLE_MPP:g}; put the right value into {FIX}"
        )
    power = reader.objective_power
    if source != COHORT and power is not None:
        factor = mpp * power / UM_PER_PIXEL_AT_1X
        if not 1 / MAX_CONTRADICTION <= factor <= MAX_CONTRADICTION:
            raise MppError(
                f"{reader.path}: {mpp:.4g} µm/px (from {source}) contradicts the objective of {power:g}×, which has "
                f"about {UM_PER_PIXEL_AT_1X / power:.3g}; find out which is right and put the value into {FIX}"
            )
    return mpp, source


def mpp_sources(reader: SlideReader, cohort_mpp: float | None = None) -> dict[str, float | str]:
    """What every source says, in the order in which they are asked; a text where it contradicts itself.

    Args:
        reader: an open slide.
        cohort_mpp: the user's value; None or NaN where there is none.
    """
    said: dict[str, float | str] = {}
    for source, ask in _SOURCES.items():
        try:
            value = ask(reader, cohort_mpp)
        except MppError as error:
            value = str(error)
        if value is not None:
            said[source] = value
    return said


def check_resolution(
    reader: SlideReader, slide_mpp: float, spec: LatticeSpec, *, allow_upsampling: bool = False
) -> float:
    """Refuse patches finer than the slide: enlarging shows no detail that the slide does not hold.

    Args:
        reader: an open slide.
        slide_mpp: µm per pixel of level 0, from `resolve_mpp`.
        spec: patch size and resolution asked for.
        allow_upsampling: the user wants enlarged patches.

    Returns:
        How many times a patch is enlarged, 1.0 where it is not; for the record.

    Raises:
        MppError: the slide is more than 5 % coarser than the target resolution, without `allow_upsampling`.
    """
    enlargement = slide_mpp / spec.target_mpp
    if enlargement > 1 + RESOLUTION_TOLERANCE and not allow_upsampling:
        raise MppError(
            f"{reader.path}: has {slide_mpp:.4g} µm/px, patches at {spec.target_mpp:g} µm/px would be enlarged "
            f"{enlargement:.3g} times; pass --target-mpp {slide_mpp:.4g} or coarser "
            f"(a patch of {spec.patch_size_px} px is then {spec.patch_size_px * slide_mpp / 1000:.3g} mm wide, "
            "--patch-size changes that), --allow-upsampling if you want that, or leave this slide out"
        )
    return max(1.0, enlargement)


def _of_cohort(reader: SlideReader, cohort_mpp: float | None) -> float | None:
    return None if cohort_mpp is None or math.isnan(cohort_mpp) else float(cohort_mpp)


def _of_objective(reader: SlideReader, cohort_mpp: float | None) -> float | None:
    return None if (power := reader.objective_power) is None else UM_PER_PIXEL_AT_1X / power


_SOURCES: Final[dict[str, Callable[[SlideReader, float | None], float | None]]] = {
    COHORT: _of_cohort,
    "openslide": lambda reader, _: reader.mpp_tag,
    "tiff-resolution": lambda reader, _: reader.mpp_tiff,
    "objective-power": _of_objective,
}


def _first_source(reader: SlideReader, cohort_mpp: float | None) -> tuple[float, str]:
    for source, ask in _SOURCES.items():
        if (value := ask(reader, cohort_mpp)) is not None:
            return value, source
    raise MppError(
        f"{reader.path}: the file does not say how many µm a pixel has (no vendor tag, TIFF resolution or objective "
        f"power); put the value into {FIX}"
    )
