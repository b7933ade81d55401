"""What was predicted, for which task, and with which run?

`predictions.csv` is the truth: every figure of a report is computed from it again. Its columns tell the task:

    classification  y_true, y_pred, prob_<class>
    survival        risk, time, event
    segmentation    hits_<class>, false_alarms_<class>, misses_<class>
    multi_label     true_<name>, prob_<name>
    regression      y_true, y_pred

`metrics.json` adds what a table cannot say (which checkpoint, how the intervals were drawn, subgroups).
"""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from span_sparse.errors import PredictionTableError, ReportError
from span_sparse.evaluation import PredictionTable, parse_predictions

PREDICTIONS: Final = "predictions.csv"
METRICS: Final = "metrics.json"
ID_COLUMNS: Final = ("slide_id", "case_id", "fold", "split")
_NUMBERS: Final = {
    "survival": ("risk", "time", "event"),
    "regression": ("y_true", "y_pred"),
    "multi_label": ("true_", "prob_"),
    "segmentation": ("hits_", "false_alarms_", "misses_"),
}
"""Columns of numbers of each task; a name that ends in `_` is the start of several."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation folder.

    Attributes:
        folder: where it lies.
        kind: of the task, see the module's docstring.
        frame: the prediction table; ids as `str`, figures as float64.
        table: the same as a checked table, for a classification.
        metrics: content of `metrics.json`, empty without one.
    """

    folder: Path
    kind: str
    frame: pd.DataFrame
    table: PredictionTable | None
    metrics: dict[str, Any]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits: test first, then validation, then as they come."""
        found = list(dict.fromkeys(self.frame["split"]))
        first = [name for name in ("test", "val") if name in found]
        return (*first, *(name for name in found if name not in first))


def read_evaluation(folder: Path) -> Evaluation:
    """Read what `span evaluate` or a training run wrote.

    Args:
        folder: with `predictions.csv`, and `metrics.json` where there were labels.

    Raises:
        ReportError: no such folder, no table, or a table of no known task.
        PredictionTableError: a value of the table cannot be used.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        raise ReportError(f"{folder}: has no {PREDICTIONS}; give the folder that `span evaluate --output` wrote")
    frame = _read_texts(path)
    kind = _kind(path, list(frame.columns))
    table = None
    if kind == "classification":
        table = parse_predictions(frame, source=str(path))
        frame = table.frame
    else:
        frame = _with_numbers(path, frame, kind)
    return Evaluation(folder, kind, frame, table, _read_metrics(folder / METRICS))


def _read_texts(path: Path) -> pd.DataFrame:
    """All fields as text: guessing types turns the slide `007` into 7."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            header, *rows = [row for row in csv.reader(stream, strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise ReportError(f"{path}: cannot be read as a CSV file in UTF-8 with a header ({error})") from error
    missing = [name for name in ID_COLUMNS if name not in header]
    if missing or not rows:
        raise ReportError(f"{path}: expected rows with {', '.join(ID_COLUMNS)}; missing: {missing or 'any row'}")
    if len(set(header)) < len(header) or any(len(row) != len(header) for row in rows):
        raise ReportError(f"{path}: expected one column of each name and as many fields in every row as in the header")
    return pd.DataFrame({name: [row[place] for row in rows] for place, name in enumerate(header)}, dtype=object)


def _kind(path: Path, columns: list[str]) -> str:
    def has(start: str) -> bool:
        return any(name.startswith(start) for name in columns)

    if {"risk", "time", "event"} <= set(columns):
        return "survival"
    if has("hits_"):
        return "segmentation"
    if has("true_") and has("prob_"):
        return "multi_label"
    if {"y_true", "y_pred"} <= set(columns):
        return "classification" if has("prob_") else "regression"
    raise ReportError(
        f"{path}: no known task has these columns; expected y_true and y_pred, risk, hits_… or true_…, "
        f"found {', '.join(columns)[:300]}"
    )


def _with_numbers(path: Path, frame: pd.DataFrame, kind: str) -> pd.DataFrame:
    wanted = [
        name
        for name in frame.columns
        if any(name == known or (known.endswith("_") and name.startswith(known)) for known in _NUMBERS[kind])
    ]
    for name in wanted:
        numbers: Any = pd.Series([_number(text) for text in frame[name]], dtype="float64")
        wrong = (frame[name] != "") & ~(numbers.abs() < math.inf)
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            raise PredictionTableError(
                f"{path}: column {name}, row {row + 1}: expected a number, found {str(frame[name].iloc[row])[:80]!r}"
            )
        frame[name] = numbers
    return frame


def _number(text: str) -> float:
    """The text as a number, NaN when it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _read_metrics(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(f"{path}: cannot be read as JSON ({error}); run `span evaluate` again") from error
    return content if isinstance(content, dict) else {}
