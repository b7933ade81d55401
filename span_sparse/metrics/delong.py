"""Do the AUCs of two models on the same cases differ by more than chance?

The test of DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988). With ψ = 1, ½ or 0 where a positive scores above,
like or below a negative, each positive has V10 = its mean ψ over the negatives, each negative V01 = its mean ψ over the
positives, and

    covariance of the AUCs = cov(V10) / positives + cov(V01) / negatives

Means of ψ come from ranks (Sun and Xu, IEEE Signal Process. Lett. 21, 2014): V10 = (rank among all − rank among the
positives) / negatives. The rows must be independent: one row a patient.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from span_sparse.metrics.ranking import Floats


class DeLong(NamedTuple):
    """Result of the test.

    Attributes:
        aucs: of the two models.
        difference: second minus first.
        standard_error: of the difference.
        z: difference over standard error; NaN where that is 0.
        p: two-sided; 1 for models that rank all rows alike.
    """

    aucs: tuple[float, float]
    difference: float
    standard_error: float
    z: float
    p: float


def delong_test(positive: NDArray[np.bool_], first: Floats, second: Floats) -> DeLong:
    """Compare two scores of the same rows.

    Args:
        positive: `[rows]`; two at least on either side.
        first: scores of the one model, `[rows]`.
        second: of the other, `[rows]`.

    Raises:
        ValueError: fewer than two rows on a side.
    """
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if min(num_positive, num_negative) < 2:
        raise ValueError(f"expected two positives and two negatives at least, got {num_positive} and {num_negative}")
    of_positives, of_negatives = [], []
    for scores in (first, second):
        ranks = stats.rankdata(scores)
        of_positives.append((ranks[positive] - stats.rankdata(scores[positive])) / num_negative)
        of_negatives.append(1.0 - (ranks[~positive] - stats.rankdata(scores[~positive])) / num_positive)
    aucs = [float(values.mean()) for values in of_positives]
    covariance = np.cov(of_positives) / num_positive + np.cov(of_negatives) / num_negative
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    difference, error = aucs[1] - aucs[0], float(np.sqrt(max(variance, 0.0)))
    if error < 1e-12:
        same = abs(difference) < 1e-12
        return DeLong((aucs[0], aucs[1]), difference, 0.0, float("nan"), 1.0 if same else 0.0)
    return DeLong(
        (aucs[0], aucs[1]), difference, error, difference / error, float(2 * stats.norm.sf(abs(difference / error)))
    )
