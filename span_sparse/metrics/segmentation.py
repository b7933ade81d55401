"""How well do predicted and annotated patches of a class agree?

    Dice = 2·TP / (2·TP + FP + FN),   IoU = TP / (TP + FP + FN)

NaN where the class is neither annotated nor predicted: there is nothing to agree on, and counting it as perfect lets
empty slides hide the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.integer[Any]] | NDArray[np.floating[Any]]


def dice(hits: Counts, false_alarms: Counts, misses: Counts) -> NDArray[np.float64]:
    """Dice from numbers of patches, elementwise.

    Args:
        hits: predicted and annotated (TP).
        false_alarms: predicted only (FP).
        misses: annotated only (FN).

    >>> dice(np.array([3, 0]), np.array([1, 0]), np.array([2, 0])).tolist()
    [0.6666666666666666, nan]
    """
    return _ratio(2.0 * hits, 2.0 * hits + false_alarms + misses)


def intersection_over_union(hits: Counts, false_alarms: Counts, misses: Counts) -> NDArray[np.float64]:
    """IoU (Jaccard index) from numbers of patches, elementwise; arguments as for `dice`."""
    return _ratio(1.0 * hits, 1.0 * hits + false_alarms + misses)


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(numerator, denominator, out=np.full(np.shape(denominator), np.nan), where=denominator > 0)
