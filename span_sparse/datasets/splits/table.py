"""What is a split, whatever file it came from?

1. `SplitFile` is what a file says: ids of slides or of cases, each with a fold, a side and the place where it stands.
   It may contradict itself or the cohort table.
2. `Splits` is what training needs: for every fold the side of each slide.
3. `split_hash` names the content: the same slides on the same sides have the same hash in every format.

Turning ids into slides while reading hides exactly what a check is for: the id listed twice, the id nobody knows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from span_sparse.cohort import CASE_ID, SLIDE_ID, CohortTable

SplitFormat = Literal["wide", "clam", "patho-bench", "stamp"]
"""`wide` and `patho-bench` are tables with a column for each fold, `clam` a file for each fold, `stamp` JSON."""


@dataclass(frozen=True, slots=True)
class SplitEntry:
    """One id in one fold.

    Attributes:
        identifier: of a slide or of a case.
        fold: number of the fold.
        side: train, val or test; None for a row of a table that has no side in this fold.
        place: where it stands in the file, for messages.
    """

    identifier: str
    fold: int
    side: str | None
    place: str


@dataclass(frozen=True, slots=True, eq=False)
class SplitFile:
    """What a split file says, unchecked.

    Attributes:
        path: the file or folder it was read from.
        format: which of the formats it is.
        unit: `slide_id` or `case_id`: what its ids are.
        fold_names: name of every fold by its number; the column in tables, `fold_<number>` elsewhere.
        entries: in the order of the file.
        case_of: case of each slide as the file itself gives it; empty if it does not.
    """

    path: Path
    format: SplitFormat
    unit: Literal["slide_id", "case_id"]
    fold_names: Mapping[int, str]
    entries: tuple[SplitEntry, ...]
    case_of: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """The side of every slide in every fold.

    Attributes:
        sides: side (train, val or test) by fold number and slide id; slides that take no part are left out.
    """

    sides: Mapping[int, Mapping[str, str]]

    @property
    def content_hash(self) -> str:
        """`split_hash` of all folds."""
        return split_hash(self.sides)


def split_hash(sides: Mapping[int, Mapping[str, str]]) -> str:
    """Name of a split's content: `sha256:` and 64 digits, over the sorted triples (slide, fold, side) as JSON lines.

    The hash of a single run is that of `{fold: cohort.splits(column)}`.

    >>> split_hash({0: {"b": "test", "a": "train"}}) == split_hash({0: {"a": "train", "b": "test"}})
    True
    >>> split_hash({0: {"a": "train"}})[:15]
    'sha256:1b24bf7d'
    """
    triples = sorted((slide, fold, side) for fold, side_of in sides.items() for slide, side in side_of.items())
    digest = hashlib.sha256()
    for triple in triples:
        digest.update(json.dumps(triple).encode("ascii") + b"\n")  # ASCII: every other character is escaped
    return f"sha256:{digest.hexdigest()}"


def cases_of(cohort: CohortTable) -> dict[str, str]:
    """Case of every slide, in the order of the table."""
    return dict(zip(cohort.slide_ids, map(str, cohort.frame[CASE_ID]), strict=True))


def resolve(split_file: SplitFile, cohort: CohortTable, label: str | None = None) -> Splits:
    """The slides a file means; ids that are not in the cohort are left out, of contradicting sides the first counts.

    Args:
        split_file: what a file says.
        cohort: the slides and their cases.
        label: for files of case ids: only slides with a value in this column stand for their case.
    """
    members = _members(split_file.unit, cohort, label)
    sides: dict[int, dict[str, str]] = {fold: {} for fold in sorted(split_file.fold_names)}
    for entry in split_file.entries:
        if entry.side is not None:
            for slide in members.get(entry.identifier, ()):
                sides[entry.fold].setdefault(slide, entry.side)
    return Splits(sides)


def _members(unit: str, cohort: CohortTable, label: str | None) -> dict[str, list[str]]:
    """Slides that each id of a file stands for."""
    if unit == SLIDE_ID:
        return {slide: [slide] for slide in cohort.slide_ids}
    label_of = cohort.labels(label) if label is not None else None
    members: dict[str, list[str]] = {}
    for slide, case in cases_of(cohort).items():
        if label_of is None or label_of[slide] is not None:
            members.setdefault(case, []).append(slide)
    return members
