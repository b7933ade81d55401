"""How well do scores put positives above negatives, in the sample and in every drawing of it?

A drawing is a row of weights: how often each row of the table is in it; the sample itself is a row of ones. Counts at
every threshold come from one sort and two running sums for all drawings at once; a thousand calls of a scoring function
take many seconds and give the same numbers.

    AUC                  the chance that a positive scores higher than a negative, ties counting half
    average precision    Σ_k (R_k − R_{k−1})·P_k over thresholds from above, without interpolation
    sensitivity at a specificity   the highest of the thresholds whose specificity is at least that; and the reverse
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_ROUNDING = 1e-9


class RankCounts(NamedTuple):
    """Weights above each threshold, from the highest score down; the first column is a threshold above all scores.

    Attributes:
        hits: of the positives, `[drawings, thresholds]`.
        false_alarms: of the negatives, `[drawings, thresholds]`.
    """

    hits: Floats
    false_alarms: Floats


def rank_counts(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> RankCounts:
    """Counts at every distinct score.

    Args:
        scores: `[rows]`, higher means more positive.
        positive: `[rows]`.
        weights: `[drawings, rows]`.
    """
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])
    sorted_weights = weights[:, order]
    hits = _running_sum(sorted_weights * positive[order], last_of_tie)
    return RankCounts(hits, _running_sum(sorted_weights, last_of_tie) - hits)


def auc(counts: RankCounts) -> Floats:
    """Area under the ROC curve of each drawing; NaN where a side is empty.

    >>> scores, positive = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    >>> auc(rank_counts(scores, positive, np.array([[1.0, 1, 1, 1], [1, 2, 1, 0]])))
    array([0.875, 0.75 ])
    """
    hits, false_alarms = counts
    doubled = (np.diff(false_alarms) * (hits[:, 1:] + hits[:, :-1])).sum(axis=1)
    return ratio(0.5 * doubled, hits[:, -1] * false_alarms[:, -1])


def average_precision(counts: RankCounts) -> Floats:
    """Average precision of each drawing; NaN without positives.

    >>> average_precision(rank_counts(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), np.ones((1, 3))))
    array([0.83333333])
    """
    hits, false_alarms = counts
    above = hits[:, 1:] + false_alarms[:, 1:]
    precision = np.divide(hits[:, 1:], above, out=np.zeros_like(above), where=above > 0)
    return ratio((np.diff(hits) * precision).sum(axis=1), hits[:, -1])


def sensitivity_at_specificity(counts: RankCounts, specificity: float) -> Floats:
    """The highest sensitivity of a threshold with at least this specificity; NaN where a side is empty."""
    hits, false_alarms = counts
    allowed = false_alarms <= (1 - specificity) * false_alarms[:, -1:] + _ROUNDING
    best = np.where(allowed, hits, 0.0).max(axis=1)
    return ratio(np.where(false_alarms[:, -1] > 0, best, np.nan), hits[:, -1])


def specificity_at_sensitivity(counts: RankCounts, sensitivity: float) -> Floats:
    """The highest specificity of a threshold with at least this sensitivity; NaN where a side is empty."""
    hits, false_alarms = counts
    allowed = hits >= sensitivity * hits[:, -1:] - _ROUNDING
    fewest = np.where(allowed, false_alarms, np.inf).min(axis=1)
    return 1.0 - ratio(np.where(hits[:, -1] > 0, fewest, np.nan), false_alarms[:, -1])


def weighted_mean(values: Floats, weights: Floats) -> Floats:
    """Mean of `[rows]` in each drawing; rows that are NaN do not count."""
    known = ~np.isnan(values)
    return ratio(weights @ np.where(known, values, 0.0), weights @ known.astype(np.float64))


def ratio(numerator: Any, denominator: Any) -> Floats:
    """Elementwise, NaN where the denominator is not positive."""
    below = np.asarray(denominator, dtype=np.float64)
    return np.divide(numerator, below, out=np.full(below.shape, np.nan), where=below > 0)


def _running_sum(weights: Floats, last_of_tie: NDArray[np.intp]) -> Floats:
    sums = np.cumsum(weights, axis=1)[:, last_of_tie]
    return np.concatenate([np.zeros((len(sums), 1)), sums], axis=1)
