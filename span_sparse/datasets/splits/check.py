"""Can a split be trusted, and if not, what are all the reasons?

1. The file against itself and the cohort: an id listed twice, an id on two sides, an id that is not in the cohort, a
   case that the file and the cohort disagree about, labelled slides on no side, unlabelled slides in train or val.
2. Leakage: slides of one case, or on request of one site, on two sides of a fold.
3. Emptiness: a side without slides, a side without a class.
4. Confounding of site and label, among the training patients of a fold: a class of two patients or more that comes from
   a single site while there are others, or Cramér's V of site and label of at least 0.5 (bias-corrected, Bergsma 2013)
   that is no accident (χ² test, p < 0.01). A model can then learn the scanner instead of the disease.

Every problem is returned, none raised: a table is repaired in one go, not one message at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from scipy.special import chdtrc

from span_sparse.cohort import CASE_ID, SLIDE_ID, SPLIT_VALUES, CohortTable
from span_sparse.datasets.splits.formats import read_split_file
from span_sparse.datasets.splits.table import SplitEntry, SplitFile, Splits, cases_of, resolve
from span_sparse.errors import CohortError

MAX_CRAMERS_V: Final = 0.5
MAX_P_VALUE: Final = 0.01

NUM_NAMED: Final = 3
"""Slides that a problem names before it only counts them."""


@dataclass(frozen=True, slots=True)
class SplitProblem:
    """One reason not to use a split.

    Attributes:
        message: what was found and what to do.
        folds: names of the folds it is about; empty when it is about the file.
        confounding: it is about the cohort's sites; another split does not repair it.
    """

    message: str
    folds: tuple[str, ...] = ()
    confounding: bool = False

    def __str__(self) -> str:
        return f"{', '.join(self.folds)}: {self.message}" if self.folds else self.message


def read_splits(
    path: Path, cohort: CohortTable, *, format: str = "auto", column: str | None = None, label: str | None = None
) -> Splits:
    """Read a split for use: refuses a file that contradicts itself or the cohort (point 1, without the labels).

    Args:
        path: the file, or for CLAM also the folder.
        cohort: its slides.
        format: see `formats`.
        column: for tables: the only split column to read.
        label: for files of case ids: only slides with a value in this column stand for their case.

    Raises:
        CohortError: it cannot be read or used.
    """
    split_file = read_split_file(path, format, column)
    problems = _merged(list(_file_problems(split_file, cohort)))
    if problems:
        more = f" (and {len(problems) - 1} more; `span splits check` lists them)" if len(problems) > 1 else ""
        raise CohortError(f"{path}: {problems[0]}{more}")
    return resolve(split_file, cohort, label)


def check_splits(
    split_file: SplitFile,
    cohort: CohortTable,
    *,
    label: str = "label",
    site_column: str | None = None,
    site_aware: bool = False,
    sides: Sequence[str] = SPLIT_VALUES,
) -> list[SplitProblem]:
    """Every problem of a split, in the order of the list above.

    Args:
        split_file: what the file says.
        cohort: slides, cases, labels and sites.
        label: column of the classes.
        site_column: column of the sites; None for no look at sites.
        site_aware: a site on two sides is a problem.
        sides: the sides every fold must have.

    Raises:
        CohortError: the cohort table has no such column.
    """
    splits = resolve(split_file, cohort, label)
    label_of = cohort.labels(label)
    problems = list(_file_problems(split_file, cohort))
    for fold, side_of in splits.sides.items():
        name = split_file.fold_names[fold]
        problems += [SplitProblem(text, (name,)) for text in _labelling(side_of, label_of, label)]
    problems += leaks(splits, cohort, CASE_ID, "case", split_file.fold_names)
    if site_column is not None and site_aware:
        problems += leaks(splits, cohort, site_column, "site", split_file.fold_names)
    for fold, side_of in splits.sides.items():
        name = split_file.fold_names[fold]
        problems += [SplitProblem(text, (name,)) for text in _empty(side_of, label_of, sides)]
    if site_column is not None:
        problems += confounding(splits, cohort, label, site_column, split_file.fold_names)
    return _merged(problems)


def leaks(
    splits: Splits, cohort: CohortTable, column: str, what: str, fold_names: Mapping[int, str]
) -> list[SplitProblem]:
    """Values of a column (cases, sites) whose slides are on two sides of a fold."""
    value_of = cohort.labels(column)
    problems: list[SplitProblem] = []
    for fold, side_of in splits.sides.items():
        slides: dict[str, dict[str, str]] = {}
        for slide, side in side_of.items():
            value = value_of[slide]
            if value is not None:
                slides.setdefault(value, {}).setdefault(side, slide)
        for value, first_of in slides.items():
            if len(first_of) > 1:
                where = ", ".join(f"{side} (slide {first_of[side]!r})" for side in SPLIT_VALUES if side in first_of)
                message = f"{what} {value!r} is on {len(first_of)} sides: {where}; put all its slides on one side"
                problems.append(SplitProblem(message, (fold_names[fold],)))
    return problems


def confounding(
    splits: Splits, cohort: CohortTable, label: str, site_column: str, fold_names: Mapping[int, str]
) -> list[SplitProblem]:
    """Folds in which the training patients' site tells their label."""
    label_of, site_of = cohort.labels(label), cohort.labels(site_column)
    case_of = cases_of(cohort)
    problems: list[SplitProblem] = []
    for fold, side_of in splits.sides.items():
        rows = {
            (case_of[slide], label_of[slide], site_of[slide])
            for slide, side in side_of.items()
            if side == "train" and label_of[slide] is not None and site_of[slide] is not None
        }
        for text in _confounded(pd.DataFrame(sorted(rows), columns=["case", "label", "site"])):  # pyright: ignore
            problems.append(SplitProblem(text, (fold_names[fold],), confounding=True))
    return _merged(problems)


def cramers_v(table: np.ndarray) -> tuple[float, float]:
    """Bias-corrected Cramér's V of a table of counts, and the p value of the χ² test.

    Source: Bergsma, A bias-correction for Cramér's V and Tschuprow's T, 2013, equations 3 to 5.

    Args:
        table: counts `[rows, columns]`, no empty row or column, at least two of each.
    """
    number = float(table.sum())
    num_rows, num_columns = table.shape
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / number
    chi2 = float(((table - expected) ** 2 / expected).sum())
    phi2 = max(0.0, chi2 / number - (num_rows - 1) * (num_columns - 1) / (number - 1))
    p_value = float(chdtrc((num_rows - 1) * (num_columns - 1), chi2))
    rows = num_rows - (num_rows - 1) ** 2 / (number - 1)
    columns = num_columns - (num_columns - 1) ** 2 / (number - 1)
    smaller = min(rows, columns) - 1
    return (float(np.sqrt(phi2 / smaller)) if smaller > 0 else 0.0), p_value


def _confounded(patients: pd.DataFrame) -> Iterator[str]:
    table = pd.crosstab(patients["label"], patients["site"])
    if table.shape[1] < 2:
        return
    for name, row in table.iterrows():
        if row.sum() >= 2 and (row > 0).sum() == 1:
            yield (
                f"class {name!r} comes from one site only, {row.idxmax()!r} ({row.sum()} train patients), while the "
                f"training side has {table.shape[1]} sites: the site gives the class away; add patients of this class "
                "from other sites"
            )
    if table.shape[0] < 2:
        return
    association, p_value = cramers_v(table.to_numpy())
    if association >= MAX_CRAMERS_V and p_value < MAX_P_VALUE:
        yield (
            f"site and label of the train patients are confounded: Cramér's V {association:.2f}, expected below "
            f"{MAX_CRAMERS_V:g} (χ² p = {p_value:.1g}); balance the classes within the sites"
        )


def _file_problems(split_file: SplitFile, cohort: CohortTable) -> Iterator[SplitProblem]:
    names = split_file.fold_names
    case_of = cases_of(cohort)
    known = set(case_of) if split_file.unit == SLIDE_ID else set(case_of.values())
    what = "slide" if split_file.unit == SLIDE_ID else "case"
    if not any(entry.side for entry in split_file.entries):
        yield SplitProblem("no slide is on any side; `span splits make` deals them")
    first: dict[tuple[str, int], SplitEntry] = {}
    for entry in split_file.entries:
        before = first.setdefault((entry.identifier, entry.fold), entry)
        if before is entry:
            continue
        places = f"{before.place} ({before.side or 'no side'}) and {entry.place} ({entry.side or 'no side'})"
        listed = "is on two sides" if before.side != entry.side else "is listed twice"
        message = f"{what} {entry.identifier!r} {listed}: {places}; keep one of them"
        yield SplitProblem(message, (names[entry.fold],))
    for identifier, places in _places(split_file, known).items():
        number = identifier.removesuffix(".0")
        hint = f"; did a spreadsheet make it of {number!r}?" if number != identifier and number in known else ""
        yield SplitProblem(f"{what} {identifier!r} ({places[0]}) is not in {cohort.path}{hint}")
    for slide, case in split_file.case_of.items():
        if case_of.get(slide, case) != case:
            yield SplitProblem(
                f"slide {slide!r} belongs to case {case!r} here and to case {case_of[slide]!r} in {cohort.path}; "
                "patients cannot be kept apart before this is settled"
            )


def _places(split_file: SplitFile, known: set[str]) -> dict[str, list[str]]:
    """Where the ids that are not in the cohort stand."""
    places: dict[str, list[str]] = {}
    for entry in split_file.entries:
        if entry.identifier not in known:
            places.setdefault(entry.identifier, []).append(entry.place)
    return places


def _labelling(side_of: Mapping[str, str], label_of: Mapping[str, str | None], label: str) -> Iterator[str]:
    forgotten = [slide for slide, name in label_of.items() if name is not None and slide not in side_of]
    if forgotten:
        yield f"{_named(forgotten)} with a label on no side; give them one, or clear their {label!r}"
    unlabelled = [slide for slide, side in side_of.items() if side != "test" and label_of[slide] is None]
    if unlabelled:
        yield f"{_named(unlabelled)} in train or val without a label; clear their side, or fill {label!r}"


def _empty(side_of: Mapping[str, str], label_of: Mapping[str, str | None], sides: Sequence[str]) -> Iterator[str]:
    counts = Counter((side, label_of[slide]) for slide, side in side_of.items())
    classes = sorted({name for name in label_of.values() if name is not None})
    for side in SPLIT_VALUES:
        present = {name for held, name in counts if held == side}
        if not present:
            if side in sides:
                yield f"side {side} is empty; put slides there"
            continue
        for name in classes:
            if name not in present and present != {None}:
                yield f"class {name!r} has no slide on side {side}; put patients of this class there"


def _named(slides: Sequence[str]) -> str:
    shown = ", ".join(repr(slide) for slide in slides[:NUM_NAMED])
    return f"{len(slides)} slide{'s'[: len(slides) > 1]} ({shown}{', ...' if len(slides) > NUM_NAMED else ''})"


def _merged(problems: Sequence[SplitProblem]) -> list[SplitProblem]:
    """The same problem in several folds is one."""
    folds: dict[tuple[str, bool], list[str]] = {}
    for problem in problems:
        known = folds.setdefault((problem.message, problem.confounding), [])
        known += [name for name in problem.folds if name not in known]
    return [SplitProblem(message, tuple(names), about) for (message, about), names in folds.items()]
