"""How do annotation files become patch labels in the store?

1. **Survey**: find the file of each slide and read the names in it. Only then is it known which classes there are, and
   that no name is misspelt; nothing has been written yet.
2. **Check**: slides of the store that take no part must not have other classes, since a column of `ratios` means the
   same class over a whole store.
3. **Annotate**, slide by slide: the share of each patch that each class covers goes into the slide's group, which is
   replaced as a whole. File name, checksum and rules go into its provenance; a slide that has the same already is done.

A slide without a file is not a negative one: nobody may have looked at it. It is left alone unless that is asked for.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import shapely

from span_sparse.cohort import PATH, CohortTable
from span_sparse.errors import AnnotationError, SpanError, StoreError
from span_sparse.store import FeatureStore, SlideMetadata
from span_sparse.wsi.annotations import (
    AnnotationFiles,
    ClassMapping,
    SlideAnnotations,
    class_regions,
    overlap_ratios,
    read_annotations,
)

ANNOTATED: Final = "annotated"
RESUMED: Final = "annotated already"
NEGATIVE: Final = "without file, all negative"
WITHOUT_FILE: Final = "without file, left alone"
PENDING: Final = "to annotate"
FAILED: Final = "failed"

ORIGINS: Final = ("auto", "slide", "bounds")
UNANNOTATED: Final = ("skip", "negative")
KEY_ANNOTATIONS: Final = "annotations"
"""In the provenance of a slide."""

LABEL_SHARE: Final = 0.5
"""Patches covered at least so much are counted for the summary."""


@dataclass(frozen=True, slots=True)
class AnnotationSettings:
    """How files become ratios.

    Attributes:
        mapping: which names are which class.
        kind: format of the files, one of `wsi.annotations.files.FORMATS`.
        origin: what coordinates count from: `slide`, the corner of level 0; `bounds`, that of the scanned part, as
            QuPath does; `auto`: `bounds` for GeoJSON of slides that have them.
        ignore_unknown: leave out names that no class has, instead of refusing them.
        unannotated: what becomes of slides without a file: `skip` or `negative`.
        allow_empty: accept files whose regions touch no patch.
        overwrite: annotate slides again that are annotated already.
    """

    mapping: ClassMapping
    kind: str = "auto"
    origin: str = "auto"
    ignore_unknown: bool = False
    unannotated: str = "skip"
    allow_empty: bool = False
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class AnnotationStatus:
    """What became of a slide.

    Attributes:
        slide_id: the slide.
        status: one of the words above.
        message: the reason of a failure, or what was repaired or left out.
        num_patches: of each class, patches that it covers to at least `LABEL_SHARE`.
        areas_mm2: of each class, whether on a patch or not.
    """

    slide_id: str
    status: str
    message: str = ""
    num_patches: tuple[int, ...] = ()
    areas_mm2: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Survey:
    """What the files say before anything is written.

    Attributes:
        mapping: with all classes.
        file_of: of each slide that takes part; None without one.
        failures: reason of each slide whose file cannot be used.
        num_slides_of: number of slides with each annotation name.
        unused: files of no slide.
    """

    mapping: ClassMapping
    file_of: Mapping[str, Path | None]
    failures: Mapping[str, str]
    num_slides_of: Mapping[str, int]
    unused: tuple[Path, ...]


def survey(
    store: FeatureStore, files: AnnotationFiles, settings: AnnotationSettings, cohort: CohortTable | None = None
) -> Survey:
    """Reads the names in all files.

    Args:
        store: the slides.
        files: their annotations.
        settings: the rules.
        cohort: only these slides, and the names of their files.

    Raises:
        AnnotationError: no file belongs to a slide, a name is unknown, or there is no class at all.
        StoreError: other slides of the store are annotated with other classes.
    """
    present = set(store.slide_ids)
    slide_ids = tuple(sorted(present)) if cohort is None else cohort.slide_ids
    slide_files = {} if cohort is None or PATH not in cohort.frame else cohort.labels(PATH)
    file_of: dict[str, Path | None] = {}
    failures: dict[str, str] = {}
    names: Counter[str] = Counter()
    first_file: dict[str, Path] = {}
    for slide_id in slide_ids:
        try:
            file_of[slide_id] = path = files.of(slide_id, slide_files.get(slide_id))
            if slide_id not in present:
                raise StoreError(f"slide {slide_id!r} is not in {store.path}; run `span extract` for it")
            if path is not None:
                found = read_annotations(path, settings.kind).names
                names.update(found)
                first_file = {name: path for name in found} | first_file
        except SpanError as error:
            failures[slide_id] = str(error)
    used = {path for path in file_of.values() if path is not None}
    unused = tuple(path for path in files.paths if path not in used)
    if not used and not failures:
        raise AnnotationError(
            f"{files.folder}: no file belongs to a slide: the files are named like {unused[0].name!r}, the slides like "
            f"{slide_ids[0]!r}; rename the files, or give a --cohort with column {PATH!r}"
        )
    unknown = [] if settings.ignore_unknown else settings.mapping.unknown(names)
    if unknown:
        listed = ", ".join(f"{name!r} ({names[name]} slides, first {first_file[name].name})" for name in unknown)
        raise AnnotationError(
            f"{files.folder}: annotation names that no class has: {listed}; add them to --classes or --exclude, or "
            "leave them out with --ignore-unknown"
        )
    mapping = settings.mapping.completed(names)
    if not mapping.names_of:
        raise AnnotationError(f"{files.folder}: the files of {len(used)} slides hold no regions; name --classes")
    _check_other_slides(store, present - set(slide_ids), mapping)
    return Survey(mapping, file_of, failures, names, unused)


def annotate_slides(store: FeatureStore, plan: Survey, settings: AnnotationSettings) -> Iterator[AnnotationStatus]:
    """Writes the ratios of slide after slide; failures are statuses, not exceptions.

    Args:
        store: the slides.
        plan: what `survey` found.
        settings: the rules.
    """
    for slide_id, path in plan.file_of.items():
        if slide_id in plan.failures:
            yield AnnotationStatus(slide_id, FAILED, plan.failures[slide_id])
        elif path is None and settings.unannotated == "skip":
            yield AnnotationStatus(slide_id, WITHOUT_FILE)
        else:
            try:
                yield _annotate(store, slide_id, path, plan.mapping, settings)
            except (SpanError, OSError, shapely.errors.ShapelyError) as error:
                yield AnnotationStatus(slide_id, FAILED, str(error))
    failed = [slide_id for slide_id in plan.failures if slide_id not in plan.file_of]
    yield from (AnnotationStatus(slide_id, FAILED, plan.failures[slide_id]) for slide_id in failed)


def _check_other_slides(store: FeatureStore, others: set[str], mapping: ClassMapping) -> None:
    for slide_id in sorted(others):
        classes = store.metadata(slide_id).ratio_classes
        if classes and classes != mapping.classes:
            raise StoreError(
                f"{store.path}: slide {slide_id!r}, which takes no part, is annotated with the classes "
                f"{list(classes)}, these files give {list(mapping.classes)}; use the same --classes for the whole store"
            )


def _annotate(
    store: FeatureStore, slide_id: str, path: Path | None, mapping: ClassMapping, settings: AnnotationSettings
) -> AnnotationStatus:
    metadata = store.metadata(slide_id)
    found = SlideAnnotations(Path(), "none", ()) if path is None else read_annotations(path, settings.kind)
    origin = _origin(metadata, found, settings.origin)
    about: dict[str, Any] = {
        "file": None if path is None else path.name,
        "sha256": None if path is None else hashlib.sha256(path.read_bytes()).hexdigest(),
        "format": found.format,
        "origin_px0": list(origin),
        **mapping.as_dict(),
    }
    stored = metadata.provenance.get(KEY_ANNOTATIONS)
    if isinstance(stored, dict) and not settings.overwrite:
        same = about.items() <= stored.items() and metadata.ratio_classes == mapping.classes
        if same and {"num_patches", "areas_mm2"} <= stored.keys():
            return AnnotationStatus(slide_id, RESUMED, "", tuple(stored["num_patches"]), tuple(stored["areas_mm2"]))
    found = found.moved(*origin)
    found.check_on_slide(metadata.width_px0, metadata.height_px0)
    record = store.read(slide_id)
    regions = class_regions(found.annotations, mapping)
    ratios = overlap_ratios(regions, record.lattice, record.grid)
    areas_px0 = [float(shapely.area(region)) for region in regions]
    if any(areas_px0) and not ratios.any() and not settings.allow_empty:
        _refuse_untouched(found, record.coords, metadata)
    num_patches = tuple(int(count) for count in (ratios >= LABEL_SHARE).sum(axis=0))
    areas_mm2 = tuple(area * (metadata.lattice.slide_mpp / 1000) ** 2 for area in areas_px0)
    about |= {"num_patches": list(num_patches), "areas_mm2": list(areas_mm2)}
    provenance = {**record.provenance, KEY_ANNOTATIONS: about}
    annotated = replace(record, ratios=ratios, ratio_classes=mapping.classes, provenance=provenance)
    store.write(annotated, overwrite=True)
    status = NEGATIVE if path is None else ANNOTATED
    return AnnotationStatus(slide_id, status, found.notes, num_patches, areas_mm2)


def _origin(metadata: SlideMetadata, found: SlideAnnotations, wanted: str) -> tuple[int, int]:
    """What is to be added to the file's coordinates `(x, y)`, in level-0 pixels."""
    bounds = metadata.provenance.get("bounds_px0")
    if wanted == "slide" or (wanted == "auto" and (found.format != "geojson" or bounds is None)):
        return 0, 0
    if not (isinstance(bounds, list) and len(bounds) == 4 and all(type(value) is int for value in bounds)):
        raise AnnotationError(
            f"{found.path}: the store does not know the bounds of slide {metadata.slide_id!r}: use --origin slide, or "
            "extract a slide that has bounds again"
        )
    return bounds[0], bounds[1]


def _refuse_untouched(found: SlideAnnotations, coords: np.ndarray[Any, Any], metadata: SlideMetadata) -> None:
    ours, theirs = found.bounds(), (*coords.min(axis=0), *(coords.max(axis=0) + metadata.lattice.patch_px0))
    boxes = [f"x {x0:.0f} to {x1:.0f}, y {y0:.0f} to {y1:.0f}" for x0, y0, x1, y1 in (ours, theirs)]
    raise AnnotationError(
        f"{found.path}: no region touches a patch: the regions span {boxes[0]}, the patches {boxes[1]} (level-0 "
        f"pixels of {metadata.lattice.slide_mpp:g} µm); is the file another slide's, or in µm? If not: --allow-empty"
    )
