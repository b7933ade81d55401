"""Which points does a curve consist of? Arrays for whoever draws it: reports, other programs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from span_sparse.evaluation.predictions import PredictionTable
from span_sparse.metrics.ranking import RankCounts, rank_counts


def roc_points(table: PredictionTable, class_index: int = -1) -> pd.DataFrame:
    """The ROC curve of one class against the rest, of the labelled slides; from (0, 0) to (1, 1).

    Args:
        table: predictions; unlabelled slides are left out.
        class_index: which class counts as positive; the last one by default.

    Returns:
        `threshold, false_positive_rate, true_positive_rate`, a row for each distinct score, thresholds falling; empty
        when a side has no slides.
    """
    counts, thresholds = _counts(table, class_index)
    if not (counts.hits[0, -1] and counts.false_alarms[0, -1]):
        thresholds, counts = thresholds[:0], RankCounts(counts.hits[:, :0], counts.false_alarms[:, :0])
    return pd.DataFrame(
        {
            "threshold": thresholds,
            "false_positive_rate": counts.false_alarms[0] / counts.false_alarms[0].max(initial=1.0),
            "true_positive_rate": counts.hits[0] / counts.hits[0].max(initial=1.0),
        }
    )


def precision_recall_points(table: PredictionTable, class_index: int = -1) -> pd.DataFrame:
    """The precision-recall curve of one class against the rest, of the labelled slides.

    Args:
        table: predictions; unlabelled slides are left out.
        class_index: which class counts as positive; the last one by default.

    Returns:
        `threshold, recall, precision`, a row for each distinct score, thresholds falling; empty without positives.
    """
    counts, thresholds = _counts(table, class_index)
    hits, false_alarms = counts.hits[0, 1:], counts.false_alarms[0, 1:]
    if not counts.hits[0, -1]:
        hits, false_alarms, thresholds = hits[:0], false_alarms[:0], thresholds[:1]
    return pd.DataFrame(
        {
            "threshold": thresholds[1:],
            "recall": hits / counts.hits[0].max(initial=1.0),
            "precision": hits / (hits + false_alarms),
        }
    )


def _counts(table: PredictionTable, class_index: int) -> tuple[RankCounts, np.ndarray]:
    labelled = table.labelled()
    scores = labelled.probabilities[:, class_index]
    positive = labelled.true_index == class_index % len(table.class_names)
    counts = rank_counts(scores, positive, np.ones((1, len(scores))))
    return counts, np.r_[np.inf, np.unique(scores)[::-1]]
