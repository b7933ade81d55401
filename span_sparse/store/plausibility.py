"""Can these slides be what their attributes say, alone and beside each other?

A store can be whole and still wrong: a resolution that is ten times too large gives patches of a hundredth of the area
without any error, coordinates in µm lie on some lattice, the same file under two names ends up on two sides of a split.

1. One slide: µm per pixel, the slide's size in millimetres, the patch's size in µm.
2. Coordinates that are not their cell's corner: which usual mix-up explains them all?
3. Between slides: one encoder, one lattice, one list of annotation classes, resolutions of one order of magnitude, no
   file twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from span_sparse.grid import MAX_PLAUSIBLE_MPP, MIN_PLAUSIBLE_MPP
from span_sparse.store.reader import identity_differences
from span_sparse.store.schema import SlideMetadata, SlideRecord

MAX_EXTENT_MM: Final = 110.0
"""Glass slides are 76 mm long; the largest in use, for whole organs, 102 mm."""

MAX_PATCH_RATIO: Final = 1.5
"""Edge of a patch in µm against what was asked for: import tolerates 1.41, a wrong unit is far more."""

MAX_MPP_RATIO: Final = 6.0
"""Against the median of the store: 10× beside 40× is a factor of 4, a wrong decimal point one of 10."""

_CORRECT: Final = "put the right value into the column `mpp` of the cohort table and make the slide again"


def implausible_slide(metadata: SlideMetadata) -> list[str]:
    """Problems of one slide's resolution and size."""
    lattice, mpp = metadata.lattice, metadata.lattice.slide_mpp
    problems: list[str] = []
    if not MIN_PLAUSIBLE_MPP <= mpp <= MAX_PLAUSIBLE_MPP:
        problems.append(
            f"{mpp:.4g} µm/px (from {metadata.mpp_source}) is implausible, expected {MIN_PLAUSIBLE_MPP:g} "
            f"to {MAX_PLAUSIBLE_MPP:g}; {_CORRECT}"
        )
    longest_mm = max(metadata.width_px0, metadata.height_px0) * mpp / 1000
    if longest_mm > MAX_EXTENT_MM:
        problems.append(
            f"{metadata.width_px0} × {metadata.height_px0} px at {mpp:.4g} µm/px are {longest_mm:.4g} mm, expected at "
            f"most {MAX_EXTENT_MM:g}: is the resolution ten times too large, or the size another level's? {_CORRECT}"
        )
    edge_um, wanted_um = lattice.patch_px0 * mpp, lattice.spec.patch_size_um
    if max(edge_um / wanted_um, wanted_um / edge_um) > MAX_PATCH_RATIO and abs(lattice.patch_px0 - wanted_um / mpp) > 1:
        problems.append(
            f"patches of {lattice.patch_px0} px at {mpp:.4g} µm/px are {edge_um:.4g} µm wide, the lattice asks for "
            f"{wanted_um:.4g}: the step or the resolution has another unit; {_CORRECT}"
        )
    return problems


def explain_coords(record: SlideRecord) -> str:
    """The mix-up that turns the cells' corners into these coordinates, all of them; empty when there is none known."""
    corners = record.lattice.to_px0(record.grid).astype(np.float64)
    coords = record.coords.astype(np.float64)
    if (coords == corners).all():
        return ""
    mpp, half, level = record.lattice.slide_mpp, record.lattice.patch_px0 / 2, record.lattice.spec
    known = {
        "they are (y, x), expected (x, y)": corners[:, ::-1],
        "they are the patches' centres, expected the top-left corners": corners + half,
        "they are in µm, expected level-0 pixels": corners * mpp,
        "they are centres in µm, expected top-left corners in level-0 pixels": (corners + half) * mpp,
        "they are pixels at the target resolution, expected level-0 pixels": corners * (mpp / level.target_mpp),
        "they are cells (col, row), expected level-0 pixels": record.grid[:, ::-1].astype(np.float64),
        "they are cells (row, col), expected level-0 pixels (x, y)": record.grid.astype(np.float64),
    }
    for explanation, candidate in known.items():
        if np.abs(coords - candidate).max() <= 1:
            return explanation
    shifts = coords - corners
    if np.ptp(shifts, axis=0).max() == 0:
        return f"all are shifted by (x, y) {tuple(int(shift) for shift in shifts[0])} px: another origin"
    return ""


def compare_slides(slides: Sequence[SlideMetadata]) -> list[tuple[str | None, str]]:
    """Problems between slides, as `(slide, message)`; the slides in the store's order."""
    problems: list[tuple[str | None, str]] = []
    for other in slides[1:]:
        if differences := identity_differences(slides[0], other):
            problems.append(
                (
                    other.slide_id,
                    f"differs from slide {slides[0].slide_id!r}: {'; '.join(differences)}; keep one store per encoder "
                    "and lattice",
                )
            )
    return problems + _resolutions(slides) + _classes(slides)


def remarks_on_slides(slides: Sequence[SlideMetadata]) -> list[tuple[str | None, str]]:
    """What may be meant but should be known: files that occur twice, slides without the annotations others have."""
    remarks: list[tuple[str | None, str]] = []
    of_file: defaultdict[str, list[str]] = defaultdict(list)
    for slide in slides:
        of_file[slide.slide_checksum].append(slide.slide_id)
    for same in of_file.values():
        remarks += [
            (
                slide_id,
                f"was made from the same file as slide {same[0]!r}; keep one of them, or both on one side of a split",
            )
            for slide_id in same[1:]
        ]
    without = [slide.slide_id for slide in slides if not slide.ratio_classes]
    if 0 < len(without) < len(slides):
        remarks.append(
            (
                None,
                f"{len(without)} of {len(slides)} slides have no annotations, first {without[0]!r}; run "
                "`span annotate` for them (--unannotated negative: they hold nothing) if a segmentation is to use them",
            )
        )
    return remarks


def _resolutions(slides: Sequence[SlideMetadata]) -> list[tuple[str | None, str]]:
    if len(slides) < 2:
        return []
    median = float(np.median([slide.lattice.slide_mpp for slide in slides]))
    return [
        (
            slide.slide_id,
            f"{slide.lattice.slide_mpp:.4g} µm/px (from {slide.mpp_source}) beside a median of {median:.4g} in this "
            f"store: a factor of {_ratio(slide.lattice.slide_mpp, median):.3g}, is a decimal point wrong? {_CORRECT}",
        )
        for slide in slides
        if _ratio(slide.lattice.slide_mpp, median) > MAX_MPP_RATIO
    ]


def _classes(slides: Iterable[SlideMetadata]) -> list[tuple[str | None, str]]:
    annotated = [slide for slide in slides if slide.ratio_classes]
    return [
        (
            slide.slide_id,
            f"has the annotation classes {list(slide.ratio_classes)}, slide {annotated[0].slide_id!r} has "
            f"{list(annotated[0].ratio_classes)}; run `span annotate --overwrite` with the same --classes for all",
        )
        for slide in annotated[1:]
        if slide.ratio_classes != annotated[0].ratio_classes
    ]


def _ratio(first: float, second: float) -> float:
    return max(first / second, second / first)
