"""How often is the right class predicted, in the sample and in every drawing of it?

Everything comes from the confusion matrix of each drawing (`ranking.py` says what a drawing is).

    kappa = 1 − Σ_ij d_ij·O_ij / Σ_ij d_ij·E_ij,   E_ij = (row i)·(column j) / n

with d_ij = 1 off the diagonal (Cohen, Educ. Psychol. Meas. 20, 1960), or (i − j)² for classes that have an order
(Cohen, Psychol. Bull. 70, 1968): the order of the classes is that of the table.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from span_sparse.metrics.ranking import Floats, ratio


def confusion_counts(
    true_index: NDArray[np.int64], predicted_index: NDArray[np.int64], num_classes: int, weights: Floats
) -> Floats:
    """Confusion matrix of every drawing, `[drawings, true classes, predicted classes]`.

    Args:
        true_index: `[rows]`.
        predicted_index: `[rows]`.
        num_classes: of the task.
        weights: `[drawings, rows]`.
    """
    cell = np.zeros((len(true_index), num_classes * num_classes))
    cell[np.arange(len(true_index)), true_index * num_classes + predicted_index] = 1.0
    return (weights @ cell).reshape(-1, num_classes, num_classes)


def balanced_accuracy(confusion: Floats) -> Floats:
    """Mean recall over the classes that occur, `[drawings]`."""
    hits, slides = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(axis=2)
    return _mean_where(hits, slides, slides > 0)


def macro_f1(confusion: Floats) -> Floats:
    """Mean F1 over the classes that occur or are predicted, `[drawings]`."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    touched = confusion.sum(axis=1) + confusion.sum(axis=2)
    return _mean_where(2 * hits, touched, touched > 0)


def accuracy(confusion: Floats) -> Floats:
    """Share of rows whose class is predicted, `[drawings]`."""
    return ratio(np.trace(confusion, axis1=1, axis2=2), confusion.sum(axis=(1, 2)))


def kappa(confusion: Floats, weights: Literal["equal", "quadratic"] = "equal") -> Floats:
    """Cohen's kappa, `[drawings]`; NaN where all rows are of one class, true and predicted.

    Args:
        confusion: `[drawings, true classes, predicted classes]`.
        weights: what a wrong prediction costs, the same for all or the squared distance of the classes.
    """
    index = np.arange(confusion.shape[1])
    distance = (index[:, None] - index[None, :]).astype(np.float64)
    cost = distance**2 if weights == "quadratic" else (distance != 0).astype(np.float64)
    rows, columns = confusion.sum(axis=2), confusion.sum(axis=1)
    total = rows.sum(axis=1)
    expected = np.einsum("di,dj,ij->d", rows, columns, cost)
    return 1.0 - ratio(np.einsum("dij,ij->d", confusion, cost) * total, expected)


def sensitivity_specificity(confusion: Floats) -> tuple[Floats, Floats]:
    """Of two classes, the second one positive; each `[drawings]`."""
    recall = ratio(np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(axis=2))
    return recall[:, 1], recall[:, 0]


def _mean_where(numerator: Floats, denominator: Floats, counted: NDArray[np.bool_]) -> Floats:
    ratios = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=counted)
    return ratios.sum(axis=1) / counted.sum(axis=1)
