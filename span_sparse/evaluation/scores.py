"""How good is a table of any kind, split by split? Figures, with intervals by patient.

What is computed of which task stands in `statistics.py` (classification) and `measures.py` (all others).
"""

from __future__ import annotations

from typing import Any, Final

import pandas as pd

from span_sparse.evaluation.estimates import DEFAULT_RESAMPLES, estimate
from span_sparse.evaluation.measures import MEASURES, is_labelled
from span_sparse.evaluation.predictions import parse_predictions
from span_sparse.evaluation.statistics import classification_metrics
from span_sparse.evaluation.thresholds import DecisionThreshold

CLASSIFICATION: Final = "classification"


def score_table(
    frame: pd.DataFrame,
    kind: str,
    *,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
    threshold: DecisionThreshold | None = None,
) -> dict[str, Any]:
    """Figures of a table with intervals: `<name>`, `<name>_ci` (None where there is none), counts, the bootstrap.

    Args:
        frame: the columns of its kind.
        kind: of the task.
        resamples: drawings of cases; 0 for no intervals.
        seed: of the drawings.
        level: share of the drawings inside an interval.
        threshold: of a classification; see `classification_metrics`.

    Raises:
        PredictionTableError: the table of a classification breaks its contract.
        ValueError: `resamples` negative or `level` not between 0 and 1.
    """
    settings: dict[str, Any] = {"resamples": resamples, "seed": seed, "level": level}
    if kind == CLASSIFICATION:
        return classification_metrics(parse_predictions(frame), threshold=threshold, **settings).as_dict()
    estimates = estimate(MEASURES[kind](frame), **settings)
    return estimates.as_dict() | {
        "num_slides": len(frame),
        "num_cases": int(frame["case_id"].nunique()),
        "num_unlabelled": int((~is_labelled(frame, kind)).sum()),
        "bootstrap": {"unit": "case_id", "resamples": estimates.resamples, "seed": seed, "level": level},
        "notes": estimates.notes,
    }
