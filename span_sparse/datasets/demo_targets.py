"""What else can be learnt of the demo slides than their class? Survival, and which patches belong to a nest.

Both follow from where the foci lie, and neither from what patches look like:

* `survival.csv`: the cohort table with `time` (months) and `event`. Patients of class `clustered` live for about 8
  months, the others for about 40 (Weibull times of shape 3); follow-up ends between 6 and 60 months. A risk that knows
  the class and nothing else has a C-index of about 0.75.
* `annotations/<slide>.geojson`: the cells of foci with at least two foci among their eight neighbours, class `nest`, as
  QuPath would export them. Single foci look the same and are not annotated.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
from shapely import box

from span_sparse.cohort import CohortTable, read_cohort
from span_sparse.datasets.demo import DEMO_SPEC
from span_sparse.datasets.demo_layout import CLUSTERED
from span_sparse.errors import StoreError
from span_sparse.extract.annotate import FAILED, AnnotationSettings, annotate_slides, survey
from span_sparse.files import write_atomically
from span_sparse.store import FeatureStore
from span_sparse.wsi.annotations import AnnotationFiles, ClassMapping
from span_sparse.wsi.geojson import feature_collection, write_geojson

NEST: Final = "nest"
SURVIVAL_TABLE: Final = "survival.csv"
MONTHS: Final = {True: 8.0, False: 40.0}
"""Weibull scale of the survival of patients with clustered foci and of the others."""


def write_survival_table(root: Path) -> None:
    """Write `survival.csv` beside `cohort.csv`; the same every time.

    Raises:
        CohortError: there is no cohort table.
    """
    frame = read_cohort(root / "cohort.csv").frame
    random = np.random.default_rng(1)
    outcome: dict[str, tuple[str, int]] = {}
    for case_id, label in sorted(set(zip(frame["case_id"], frame["label"], strict=True))):
        death, end = MONTHS[label == CLUSTERED] * random.weibull(3.0), random.uniform(6, 60)
        outcome[case_id] = f"{min(death, end):.2f}", int(death <= end)
    time, event = zip(*(outcome[case_id] for case_id in frame["case_id"]), strict=True)
    text = frame.assign(time=time, event=event).to_csv(index=False, lineterminator="\n")
    write_atomically(root / SURVIVAL_TABLE, text.encode())


def annotate_nests(root: Path) -> None:
    """Write the outlines of all nests, and the share of each patch that they cover into the store; resumes.

    Raises:
        StoreError: a slide could not be annotated.
    """
    folder, store = root / "annotations", FeatureStore(root / "features.zarr")
    if all(store.metadata(slide_id).ratio_classes == (NEST,) for slide_id in store.slide_ids):
        return
    cohort = read_cohort(root / "cohort.csv")
    _write_outlines(root, folder, cohort)
    settings = AnnotationSettings(ClassMapping.parse([], []), unannotated="negative", allow_empty=True)
    plan = survey(store, AnnotationFiles(folder, "auto"), settings, cohort)
    for status in annotate_slides(store, plan, settings):
        if status.status == FAILED:
            raise StoreError(f"{root}: demo slide {status.slide_id} could not be annotated: {status.message}")


def _write_outlines(root: Path, folder: Path, cohort: CohortTable) -> None:
    cells: dict[str, list[tuple[int, int]]] = {slide_id: [] for slide_id in cohort.slide_ids}
    for row in csv.DictReader(io.StringIO((root / "foci.csv").read_text(encoding="utf-8"))):
        cells[row["slide_id"]].append((int(row["row"]), int(row["col"])))
    folder.mkdir(exist_ok=True)
    for slide_id, foci in cells.items():
        mpp = cohort.mpp(slide_id)
        assert mpp is not None
        lattice = DEMO_SPEC.on_slide(mpp)
        outlines = [(_PROPERTIES, box(*lattice.box(*cell))) for cell in nest_cells(foci)]
        if outlines:  # a slide without a file has no nests
            write_geojson(folder / f"{slide_id}.geojson", feature_collection(outlines))


_PROPERTIES: Final[dict[str, Any]] = {"objectType": "annotation", "classification": {"name": NEST}}


def nest_cells(foci: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The foci that touch at least two others by a side or a corner.

    >>> nest_cells([(0, 0), (0, 1), (1, 1), (5, 5), (5, 6)])
    [(0, 0), (0, 1), (1, 1)]
    """
    cells = set(foci)
    return sorted(
        (row, col)
        for row, col in cells
        if sum((row + down, col + right) in cells for down in (-1, 0, 1) for right in (-1, 0, 1)) >= 3
    )
