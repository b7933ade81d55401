"""What was predicted, for which task, and with which run?

`predictions.csv` is the truth: every figure of a report is computed from it again, and its columns tell the task.
`metrics.json` adds what a table cannot say: which checkpoint, how the intervals were drawn, which columns are
subgroups.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from span_sparse.errors import ReportError
from span_sparse.evaluation import PredictionTable, parse_predictions
from span_sparse.evaluation.any_table import read_any_predictions
from span_sparse.evaluation.report import METRICS_FILE, PREDICTIONS
from span_sparse.evaluation.scores import CLASSIFICATION


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation folder.

    Attributes:
        folder: where it lies.
        kind: of the task: classification, survival, regression, multi_label or segmentation.
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
        ReportError: no such folder, no table, or `metrics.json` is damaged.
        PredictionTableError: the table is of no known task, or holds a value that cannot be used.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        raise ReportError(f"{folder}: has no {PREDICTIONS}; give the folder that `span evaluate --output` wrote")
    frame, kind = read_any_predictions(path)
    table = parse_predictions(frame, source=str(path)) if kind == CLASSIFICATION else None
    return Evaluation(folder, kind, frame, table, _read_metrics(folder / METRICS_FILE))


def _read_metrics(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(f"{path}: cannot be read as JSON ({error}); run `span evaluate` again") from error
    return content if isinstance(content, dict) else {}
