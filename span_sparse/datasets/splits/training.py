"""May a run train on this split of its cohort table?

Of what `check_splits` finds, these end the run: an empty train or val side, a class that one of them lacks, a site that
gives the class away (unless it is allowed). What is wrong with the test side alone is told: a class without test slides
is an ordinary thing in a rare disease, and costs the AUC only. A labelled slide on no side is no problem here: leaving
slides out is what an empty cell is for. Patients on two sides are refused by `CohortTable.check_no_leakage`.
"""

from __future__ import annotations

from collections.abc import Sequence

from span_sparse.cohort import SLIDE_ID, SPLIT_VALUES, CohortTable
from span_sparse.datasets.splits.check import SplitProblem, check_splits
from span_sparse.datasets.splits.formats import fold_number
from span_sparse.datasets.splits.table import SplitEntry, SplitFile, split_hash
from span_sparse.errors import CohortError

DEFAULT_SITE_COLUMN = "site"


def require_trainable(
    cohort: CohortTable,
    column: str,
    *,
    label: str,
    site_column: str = DEFAULT_SITE_COLUMN,
    allow_confounding: bool = False,
) -> list[SplitProblem]:
    """Refuses a split that a classifier cannot be trained on; returns what the user should know all the same.

    Args:
        cohort: the table.
        column: its column of the sides.
        label: its column of the classes.
        site_column: its column of the sites; the default one may be missing.
        allow_confounding: a site that gives the class away is told, not refused.

    Raises:
        CohortError: the split is refused, or there is no such column.
    """
    has_sites = site_column in cohort.frame or site_column != DEFAULT_SITE_COLUMN
    sites = site_column if has_sites else None
    refused = [
        problem
        for problem in _problems(cohort, column, label, sites, ("train", "val"))
        if not (problem.confounding and allow_confounding)
    ]
    if refused:
        first = refused[0]
        more = f" (and {len(refused) - 1} more; `span splits check` lists them)" if len(refused) > 1 else ""
        hint = "; allow_confounding: true in the data block trains all the same" if first.confounding else ""
        raise CohortError(f"{cohort.path}, column {column!r}: {first.message}{hint}{more}")
    return _problems(cohort, column, label, sites, SPLIT_VALUES)


def column_hash(cohort: CohortTable, column: str) -> str:
    """`split_hash` of one column, as `span splits check --split-column` prints it for the table.

    Raises:
        CohortError: there is no such column, or it holds something else than sides.
    """
    return split_hash({fold_number(column): cohort.splits(column)})


def _problems(
    cohort: CohortTable, column: str, label: str, site_column: str | None, sides: Sequence[str]
) -> list[SplitProblem]:
    """Problems of some sides of a split, as if these were the whole cohort."""
    side_of = {slide: side for slide, side in cohort.splits(column).items() if side in sides}
    rows = cohort.frame[SLIDE_ID].isin(list(side_of)).to_numpy()
    chosen = CohortTable(cohort.path, cohort.frame.loc[rows].reset_index(drop=True))
    entries = tuple(SplitEntry(slide, 0, side, column) for slide, side in side_of.items())
    split_file = SplitFile(cohort.path, "wide", SLIDE_ID, {0: column}, entries)
    required = [side for side in sides if side != "test"]
    return check_splits(split_file, chosen, label=label, site_column=site_column, sides=required)
