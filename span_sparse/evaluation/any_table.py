"""Of which task is this table of predictions? Told by its columns, so that a table alone can be scored and compared."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from span_sparse.errors import PredictionTableError
from span_sparse.evaluation.measures import suffixes
from span_sparse.evaluation.predictions import CASE_ID, FOLD, PROBABILITY_PREFIX, SLIDE_ID, SPLIT, parse_predictions
from span_sparse.evaluation.scores import CLASSIFICATION

IDS: Final = (SLIDE_ID, CASE_ID, FOLD, SPLIT)
_NUMBERS: Final = {"survival": ("risk", "time", "event"), "regression": ("y_true", "y_pred")}
_NUMBER_PREFIXES: Final = {
    "survival": ("survival_",),
    "regression": (),
    "multi_label": ("true_", PROBABILITY_PREFIX),
    "segmentation": ("hits_", "false_alarms_", "misses_", "dice_"),
}


def read_any_predictions(path: Path) -> tuple[pd.DataFrame, str]:
    """A table of predictions of any kind, and that kind.

    Ids and further columns stay text, numbers are float64 with NaN where a cell is empty.

    Args:
        path: a `predictions.csv`; a byte-order mark is accepted.

    Raises:
        PredictionTableError: the file cannot be read, is of no kind, or holds a value that is none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PredictionTableError(f"{path}: cannot be read as a CSV file in UTF-8: {error}") from error
    if len(rows) < 2 or any(len(row) != len(rows[0]) for row in rows):
        raise PredictionTableError(f"{path}: expected a header and rows with as many fields, found {len(rows)} rows")
    if len(set(rows[0])) < len(rows[0]):
        raise PredictionTableError(f"{path}: a column occurs more than once in the header: {', '.join(rows[0])}")
    frame = pd.DataFrame(rows[1:], columns=pd.Index(rows[0]), dtype=object)
    missing = [name for name in IDS if name not in frame]
    if missing:
        raise PredictionTableError(f"{path}: column {missing[0]}: missing; found {', '.join(rows[0])}")
    kind = _kind_of(frame, path)
    if kind == CLASSIFICATION:
        return parse_predictions(frame, source=str(path)).frame, kind
    for name in frame.columns:
        if name in _NUMBERS.get(kind, ()) or name.startswith(_NUMBER_PREFIXES[kind]):
            frame[name] = _numbers(frame, name, path)
    doubled = frame[[SLIDE_ID, SPLIT]].duplicated()
    if doubled.any():
        slide = frame.loc[doubled, SLIDE_ID].iloc[0]
        raise PredictionTableError(f"{path}: slide {slide!r} occurs twice in a split (one table per fold)")
    return frame, kind


def _kind_of(frame: pd.DataFrame, path: Path) -> str:
    columns, probabilities = set(map(str, frame.columns)), suffixes(frame, PROBABILITY_PREFIX)
    if {"risk", "time", "event"} <= columns:
        return "survival"
    if suffixes(frame, "hits_"):
        return "segmentation"
    if probabilities and all(f"true_{name}" in columns for name in probabilities):
        return "multi_label"
    if {"y_true", "y_pred"} <= columns:
        return CLASSIFICATION if probabilities else "regression"
    raise PredictionTableError(
        f"{path}: not a table of predictions: expected y_true, y_pred (and prob_<class>), or risk, time, event, or "
        f"hits_<class>, …; found {', '.join(map(str, frame.columns))}"
    )


def _numbers(frame: pd.DataFrame, name: str, path: Path) -> pd.Series:
    texts: Any = frame[name].replace("", np.nan)
    # not pd.to_numeric: its last digit may differ from what was written, and equal times are then no longer equal
    values = pd.Series([_number(text) for text in texts], dtype=np.float64)
    wrong = np.flatnonzero((values.isna() & texts.notna()) | np.isinf(values))
    if len(wrong):
        row = int(wrong[0])
        raise PredictionTableError(
            f"{path}: column {name}, row {row + 1} (slide {frame[SLIDE_ID][row]!r}): expected a number, found "
            f"{str(texts[row])[:80]!r}"
        )
    return values


def _number(text: Any) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan
