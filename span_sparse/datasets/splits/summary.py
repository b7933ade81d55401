"""What does each side of each fold hold?

Classes are counted in patients, as they are dealt: a case with slides of two labels is one patient of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from span_sparse.cohort import SPLIT_VALUES, CohortTable
from span_sparse.datasets.splits.table import Splits, cases_of


@dataclass(frozen=True, slots=True)
class SideSummary:
    """One side of one fold.

    Attributes:
        fold: its number.
        side: train, val or test.
        num_slides: slides.
        num_cases: patients.
        patients_by_class: patients of each class of the cohort, sorted by name; unlabelled ones are not counted.
        sites: sorted; empty without a column of sites.
    """

    fold: int
    side: str
    num_slides: int
    num_cases: int
    patients_by_class: Mapping[str, int]
    sites: tuple[str, ...]


def summarise(splits: Splits, cohort: CohortTable, label: str, site_column: str | None) -> list[SideSummary]:
    """One row for every side of every fold, empty ones too.

    Raises:
        CohortError: the cohort table has no such column.
    """
    label_of = cohort.labels(label)
    site_of = cohort.labels(site_column) if site_column is not None else {}
    case_of = cases_of(cohort)
    classes = sorted({name for name in label_of.values() if name is not None})
    rows: list[SideSummary] = []
    for fold, side_of in splits.sides.items():
        for side in SPLIT_VALUES:
            slides = [slide for slide, held in side_of.items() if held == side]
            patients = Counter(name for _, name in {(case_of[slide], label_of[slide]) for slide in slides})
            rows.append(
                SideSummary(
                    fold,
                    side,
                    len(slides),
                    len({case_of[slide] for slide in slides}),
                    {name: patients[name] for name in classes},
                    tuple(sorted({site for slide in slides if (site := site_of.get(slide)) is not None})),
                )
            )
    return rows
