"""Does 80 % mean that it happens in 80 of 100 cases?

    Brier = mean over rows of (p − y)² for two classes (p of the second), of Σ_c (p_c − y_c)² for more (Brier, Mon.
            Weather Rev. 78, 1950)
    ECE   = Σ_b (n_b / n)·|mean y − mean p| over bins of equal width (Naeini et al., AAAI 2015; Guo et al., ICML 2017)

For two classes p and y of the ECE are probability and occurrence of the second class; for more the highest probability
and whether that class is right. An ECE of few rows is too high even for a perfect model: the bins hold a handful each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from span_sparse.metrics.ranking import Floats, ratio

NUM_BINS = 10


def brier_terms(probabilities: Floats, true_index: NDArray[np.int64]) -> Floats:
    """What each row adds to the Brier score, `[rows]`.

    Args:
        probabilities: `[rows, classes]`.
        true_index: `[rows]`.

    >>> brier_terms(np.array([[0.2, 0.8], [0.6, 0.4]]), np.array([1, 1])).round(2).tolist()
    [0.04, 0.36]
    """
    truth = np.eye(probabilities.shape[1])[true_index]
    squares = np.square(probabilities - truth).sum(axis=1)
    return squares / 2 if probabilities.shape[1] == 2 else squares


def confidence_and_outcome(probabilities: Floats, true_index: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """The p and y of the ECE, each `[rows]`."""
    if probabilities.shape[1] == 2:
        return probabilities[:, 1], (true_index == 1).astype(np.float64)
    return probabilities.max(axis=1), (probabilities.argmax(axis=1) == true_index).astype(np.float64)


def bin_of(confidence: Floats, num_bins: int = NUM_BINS) -> NDArray[np.int64]:
    """Bin of each row; bin b is `(b/n, (b + 1)/n]`, the first one with 0."""
    edges = np.arange(1, num_bins) / num_bins
    return np.searchsorted(edges, confidence, side="left").astype(np.int64)


def calibration_error(confidence: Floats, outcome: Floats, weights: Floats, num_bins: int = NUM_BINS) -> Floats:
    """ECE of every drawing, `[drawings]`.

    Args:
        confidence: `[rows]`.
        outcome: 0 or 1, `[rows]`.
        weights: `[drawings, rows]`.
        num_bins: of equal width.
    """
    gaps = np.zeros((len(confidence), num_bins))
    gaps[np.arange(len(confidence)), bin_of(confidence, num_bins)] = outcome - confidence
    return ratio(np.abs(weights @ gaps).sum(axis=1), weights.sum(axis=1))
