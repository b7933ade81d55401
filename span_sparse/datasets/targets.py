"""What does the cohort table say about a task, and is it usable?

1. The task's columns are read as text, cell by cell; a value that cannot be used is named with file, line and column.
2. Slides of train and val must have what the task needs. A test slide may lack it: it is predicted, not scored.
3. The training slides must allow learning: two classes, two values, an event.

Converting columns with pandas turns `1.5e` into NaN and an empty event into "censored" without a word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from span_sparse.cohort import CohortTable
from span_sparse.datasets.batch import NO_LABEL
from span_sparse.datasets.task import (
    AnyTask,
    ClassificationTask,
    MultiLabelTask,
    RegressionTask,
    SegmentationTask,
    SurvivalTask,
)
from span_sparse.errors import CohortError

_BINARY = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}
_VITAL_STATUS = {"alive": 0.0, "living": 0.0, "0:living": 0.0, "dead": 1.0, "deceased": 1.0, "1:deceased": 1.0}
"""As the tables of the GDC and of cBioPortal have it."""


class SlideTarget(NamedTuple):
    """What a slide is trained for.

    Attributes:
        label: class index or `NO_LABEL`.
        values: in the order of `Task.target_names`, NaN where unknown.
    """

    label: int = NO_LABEL
    values: tuple[float, ...] = ()


def read_targets(
    task: AnyTask, cohort: CohortTable, split_of: Mapping[str, str], split_column: str
) -> tuple[AnyTask, dict[str, SlideTarget]]:
    """The targets of the slides that take part, and the task with what only the table knows (class names).

    Args:
        task: names the columns.
        cohort: the table.
        split_of: `train`, `val` or `test` of each slide that takes part.
        split_column: where that came from, for messages.

    Raises:
        CohortError: a column is missing, a value cannot be used, a training or validation slide has none, or the
            training slides are all the same.
    """
    if isinstance(task, ClassificationTask):
        return _read_classes(task, cohort, split_of, split_column)
    if isinstance(task, SegmentationTask):
        return task, {slide: SlideTarget() for slide in split_of}
    table = _Cells(cohort, split_of, split_column)
    if isinstance(task, MultiLabelTask):
        values = table.rows(task.columns, [_binary] * len(task.columns), need_all=False)
        for position, column in enumerate(task.columns):
            table.require_variety(column, {row[position] for row in table.training(values)}, "both 0 and 1")
    elif isinstance(task, RegressionTask):
        values = table.rows((task.column,), [_number])
        table.require_variety(task.column, {row[0] for row in table.training(values)}, "two different numbers")
    else:
        assert isinstance(task, SurvivalTask)
        values = table.rows(task.target_names, [_duration, _event])
        training = table.training(values)
        if training and not any(event for _, event in training):
            raise CohortError(
                f"{cohort.path}: column {task.event_column!r} is 1 for no training slide; survival is learnt from "
                "events, correct the column or the split"
            )
    return task, {slide: SlideTarget(NO_LABEL, row) for slide, row in values.items()}


class _Cells:
    """The cells of the slides that take part."""

    def __init__(self, cohort: CohortTable, split_of: Mapping[str, str], split_column: str) -> None:
        self.cohort, self.split_of, self.split_column = cohort, split_of, split_column
        lines = cohort.lines or tuple(range(2, len(cohort.slide_ids) + 2))
        self.line_of = dict(zip(cohort.slide_ids, lines, strict=True))

    def rows(
        self, columns: Sequence[str], parsers: Sequence[Callable[[str], float]], *, need_all: bool = True
    ) -> dict[str, tuple[float, ...]]:
        """The values of each slide, NaN where missing.

        Args:
            columns: their columns.
            parsers: of each column, raising `ValueError` that says what was expected.
            need_all: a slide of train or val needs every value, else one of them.
        """
        cells = [self.cohort.labels(column) for column in columns]
        rows: dict[str, tuple[float, ...]] = {}
        for slide, side in self.split_of.items():
            row = tuple(
                self._value(slide, column, texts[slide], parse)
                for column, texts, parse in zip(columns, cells, parsers, strict=True)
            )
            missing = [column for column, value in zip(columns, row, strict=True) if math.isnan(value)]
            if missing and side != "test" and (need_all or len(missing) == len(columns)):
                raise CohortError(
                    f"{self.cohort.path}, line {self.line_of[slide]}, column {missing[0]!r}: slide {slide!r} of split "
                    f"{side} has no value; fill the cell or clear its {self.split_column!r}"
                )
            rows[slide] = (math.nan,) * len(columns) if missing and need_all else row
        return rows

    def training(self, values: Mapping[str, tuple[float, ...]]) -> list[tuple[float, ...]]:
        """The values of the training slides."""
        return [values[slide] for slide, side in self.split_of.items() if side == "train"]

    def require_variety(self, column: str, found: set[float], wanted: str) -> None:
        """Refuses a column that says the same of every training slide."""
        known = sorted(value for value in found if not math.isnan(value))
        if len(known) == 1 or (not known and "train" in self.split_of.values()):
            raise CohortError(
                f"{self.cohort.path}: column {column!r} needs {wanted} among the training slides, found "
                f"{', '.join(f'{value:g}' for value in known) or 'no value'}"
            )

    def _value(self, slide: str, column: str, text: str | None, parse: Callable[[str], float]) -> float:
        if text is None:
            return math.nan
        try:
            return parse(text)
        except ValueError as error:
            raise CohortError(
                f"{self.cohort.path}, line {self.line_of[slide]}, column {column!r}: expected {error}, found {text!r} "
                f"for slide {slide!r}"
            ) from None


def _binary(text: str) -> float:
    if text.lower() not in _BINARY:
        raise ValueError("0 or 1 (or false or true)")
    return _BINARY[text.lower()]


def _event(text: str) -> float:
    if text.lower() in _VITAL_STATUS:
        return _VITAL_STATUS[text.lower()]
    try:
        return _binary(text)
    except ValueError as error:
        raise ValueError(f"{error}, or alive or dead, living or deceased") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("a number")
    return value


def _duration(text: str) -> float:
    value = _number(text)
    if value < 0:
        raise ValueError("a number of at least 0")
    return value


def _read_classes(
    task: ClassificationTask, cohort: CohortTable, split_of: Mapping[str, str], split_column: str
) -> tuple[ClassificationTask, dict[str, SlideTarget]]:
    label_of = cohort.labels(task.column)
    training = {label_of[slide] for slide, split in split_of.items() if split == "train"} - {None}
    names = task.class_names or tuple(sorted(str(name) for name in training))
    empty = [name for name in names if name not in training]
    if empty or len(names) < 2:
        raise CohortError(
            f"{cohort.path}: column {task.column!r} needs training slides of at least two classes; "
            f"found {sorted(str(name) for name in training)}" + (f", none of {empty}" if empty else "")
        )
    targets: dict[str, SlideTarget] = {}
    for slide, split in split_of.items():
        label = label_of[slide]
        if label not in names and not (label is None and split == "test"):
            raise CohortError(
                f"{cohort.path}: slide {slide!r} of split {split} has the label {label!r} in column "
                f"{task.column!r}, expected one of {list(names)}; correct it or clear its {split_column!r}"
            )
        targets[slide] = SlideTarget(NO_LABEL if label is None else names.index(label))
    return replace(task, class_names=names), targets
