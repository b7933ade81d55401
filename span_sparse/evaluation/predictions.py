"""What does a prediction table look like, and is this one usable?

One row per slide, as CSV (UTF-8, comma) with the columns `slide_id, case_id, fold, split, y_true, y_pred` and one
`prob_<class name>` per class. The `prob_*` columns, in their order, define the classes; with two classes the last one
is the positive class of the AUC. `y_true` is empty for a slide without label. Further columns are kept as text.

Everything is read as text first: letting the reader guess types turns the slide `007` into 7 and the class `NA` into a
missing value, and statistics on such a table are wrong without a word.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from span_sparse.errors import PredictionTableError
from span_sparse.files import write_atomically

SLIDE_ID: Final = "slide_id"
CASE_ID: Final = "case_id"
FOLD: Final = "fold"
SPLIT: Final = "split"
Y_TRUE: Final = "y_true"
Y_PRED: Final = "y_pred"
PROBABILITY_PREFIX: Final = "prob_"
COLUMNS: Final = (SLIDE_ID, CASE_ID, FOLD, SPLIT, Y_TRUE, Y_PRED)
"""Columns every table has, in the order in which they are written; `prob_*` follow."""

SUM_TOLERANCE: Final = 1e-4
"""How far the probabilities of a slide may be from summing to one; they may have been rounded to five digits."""


@dataclass(frozen=True, slots=True)
class PredictionTable:
    """A validated prediction table.

    Attributes:
        frame: one row per slide; ids, split, fold and classes as `str` (`y_true` is `""` without label), `prob_*` as
            float64. Columns in the order of `COLUMNS`, `prob_*`, others.
        class_names: the classes, in the order of the `prob_*` columns.
        source: the file, for messages.
    """

    frame: pd.DataFrame
    class_names: tuple[str, ...]
    source: str

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, *, source: str = "prediction table") -> PredictionTable:
        """Validates a frame; the same as `parse_predictions`."""
        return parse_predictions(frame, source=source)

    @property
    def num_slides(self) -> int:
        """Rows of the table."""
        return len(self.frame)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in order of first appearance."""
        return tuple(dict.fromkeys(self.frame[SPLIT]))

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Probability of each class, `[slides, classes]`."""
        columns = [PROBABILITY_PREFIX + name for name in self.class_names]
        return self.frame[columns].to_numpy(dtype=np.float64)

    @property
    def true_index(self) -> NDArray[np.int64]:
        """Index of the true class in `class_names`, `[slides]`; -1 without label."""
        return self._index(Y_TRUE)

    @property
    def predicted_index(self) -> NDArray[np.int64]:
        """Index of the predicted class in `class_names`, `[slides]`."""
        return self._index(Y_PRED)

    @property
    def case_index(self) -> NDArray[np.int64]:
        """Number of the case of each slide, `[slides]`, from 0 in order of first appearance."""
        codes, _ = pd.factorize(self.frame[CASE_ID])
        return codes.astype(np.int64)

    def of_split(self, split: str) -> PredictionTable:
        """The rows of one split."""
        return self._rows((self.frame[SPLIT] == split).to_numpy(dtype=bool))

    def labelled(self) -> PredictionTable:
        """The rows with a label."""
        return self._rows(self.true_index >= 0)

    def _rows(self, keep: NDArray[np.bool_]) -> PredictionTable:
        return PredictionTable(self.frame.loc[keep].reset_index(drop=True), self.class_names, self.source)

    def _index(self, column: str) -> NDArray[np.int64]:
        positions = {name: position for position, name in enumerate(self.class_names)}
        return np.array([positions.get(name, -1) for name in self.frame[column]], dtype=np.int64)


def read_predictions(path: Path) -> PredictionTable:
    """Read and validate a prediction table.

    Args:
        path: a CSV file as described above; a byte-order mark is accepted.

    Raises:
        PredictionTableError: the file cannot be read or breaks the contract; names file, column and row.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PredictionTableError(f"{path}: cannot be read as a CSV file in UTF-8: {error}") from error
    if not rows:
        raise PredictionTableError(
            f"{path}: the file is empty; expected a header with {', '.join(COLUMNS)}, prob_<class>"
        )
    header, *body = rows
    for number, row in enumerate(body, start=1):
        if len(row) != len(header):
            raise PredictionTableError(
                f"{path}: row {number}: expected {len(header)} fields as in the header, found {len(row)}"
            )
    columns = [pd.Series([row[column] for row in body], dtype=object) for column in range(len(header))]
    frame = pd.concat(columns, axis=1)
    frame.columns = pd.Index(header)
    return parse_predictions(frame, source=str(path))


def parse_predictions(frame: pd.DataFrame, *, source: str = "prediction table") -> PredictionTable:
    """Validate a table in memory.

    Args:
        frame: the columns described above; `y_true` may be `""`, `None` or `NaN` without label, `fold` may be a number.
        source: what to call the table in messages.

    Raises:
        PredictionTableError: a column is missing or doubled, a value is missing, unknown or out of range, or a slide
            occurs twice in a split.
    """
    frame = frame.rename(columns=str)
    class_names = _class_names(frame, source)
    if frame.empty:
        raise PredictionTableError(f"{source}: no rows; expected one row per slide")
    clean: dict[str, list[str] | NDArray[np.float64]] = {column: _texts(frame, column) for column in COLUMNS}
    check = _RowCheck(source, _texts(frame, SLIDE_ID))
    for column in (SLIDE_ID, CASE_ID, SPLIT):
        texts = _texts(frame, column)
        check(column, [text == "" for text in texts], texts, "expected a value")
    for column in (Y_TRUE, Y_PRED):
        texts, known = _texts(frame, column), {*class_names, *([""] if column == Y_TRUE else [])}
        check(column, [text not in known for text in texts], texts, f"expected a class, {', '.join(class_names)}")
    sums = np.zeros(len(frame))
    for column in (PROBABILITY_PREFIX + name for name in class_names):
        values = np.array([_number(value) for value in frame[column]], dtype=np.float64)
        inside = (values >= 0.0) & (values <= 1.0)
        check(column, ~inside, _texts(frame, column), "expected a probability between 0 and 1")
        clean[column] = values
        sums += values
    check("prob_*", np.abs(sums - 1.0) > SUM_TOLERANCE, sums, "expected probabilities that sum to 1")
    places = pd.DataFrame({SLIDE_ID: clean[SLIDE_ID], SPLIT: clean[SPLIT]}, dtype=object)
    doubled = places.duplicated().to_numpy(dtype=bool)
    check(SLIDE_ID, doubled, clean[SPLIT], "expected each slide once in a split (one table per fold)")
    for column in (str(name) for name in frame.columns):
        clean.setdefault(column, _texts(frame, column))
    columns = {
        name: pd.Series(values, dtype=np.float64 if isinstance(values, np.ndarray) else object)
        for name, values in clean.items()
    }
    return PredictionTable(pd.DataFrame(columns), class_names, source)


def write_predictions(path: Path, frame: pd.DataFrame) -> PredictionTable:
    """Validate a table and write it as CSV, whole or not at all.

    Args:
        path: the file to write; its folder is created.
        frame: as for `parse_predictions`.

    Returns:
        What a reader of the file gets.

    Raises:
        PredictionTableError: the table breaks the contract; nothing is written.
    """
    table = parse_predictions(frame, source=str(path))
    write_atomically(path, table.frame.to_csv(index=False, lineterminator="\n").encode())
    return table


def _class_names(frame: pd.DataFrame, source: str) -> tuple[str, ...]:
    columns = [str(column) for column in frame.columns]
    twice = [column for column in dict.fromkeys(columns) if columns.count(column) > 1]
    if twice:
        raise PredictionTableError(f"{source}: column {twice[0]}: occurs more than once in the header")
    missing = [column for column in COLUMNS if column not in columns]
    if missing:
        raise PredictionTableError(
            f"{source}: column {missing[0]}: missing; expected {', '.join(COLUMNS)} and prob_<class name>, "
            f"found {', '.join(columns)}"
        )
    names = tuple(
        column.removeprefix(PROBABILITY_PREFIX) for column in columns if column.startswith(PROBABILITY_PREFIX)
    )
    if len(names) < 2 or "" in names:
        raise PredictionTableError(
            f"{source}: column prob_<class name>: expected at least two, each with a class name, "
            f"found {[PROBABILITY_PREFIX + name for name in names]}"
        )
    return names


def _texts(frame: pd.DataFrame, column: str) -> list[str]:
    """The values of a column as `str`, missing ones as an empty string."""
    return ["" if missing else str(value) for value, missing in zip(frame[column], frame[column].isna(), strict=True)]


def _number(value: object) -> float:
    """The value as a float, `NaN` when it is none."""
    try:
        return float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return math.nan


@dataclass(frozen=True, slots=True)
class _RowCheck:
    """Raises for the first row marked as wrong; rows count from 1, the header not included."""

    source: str
    slide_ids: Sequence[str]

    def __call__(
        self,
        column: str,
        wrong: Sequence[bool] | NDArray[np.bool_],
        found: Sequence[object] | NDArray[Any],
        expected: str,
    ) -> None:
        rows = np.flatnonzero(np.asarray(wrong, dtype=bool))
        if not rows.size:
            return
        row = int(rows[0])
        more = f" (and {rows.size - 1} more rows)" if rows.size > 1 else ""
        raise PredictionTableError(
            f"{self.source}: column {column}, row {row + 1} (slide {self.slide_ids[row]!r}): {expected}, "
            f"found {str(found[row])[:80]!r}{more}"
        )
