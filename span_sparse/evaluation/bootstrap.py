"""How far could the figures have fallen otherwise, had other patients been drawn?

1. Cases (patients) are drawn with replacement, as many as there are; a case brings all of its slides. Slides of one
   patient resemble each other: drawing slides instead gives intervals that are too narrow.
2. A drawing is one row of slide weights (how often each slide is in it), so that a thousand drawings are one matrix.
3. A drawing that lacks a class the sample has cannot be scored like the sample: it is drawn again, and counted.
4. AUC, balanced accuracy, F1 and accuracy of all drawings are computed at once from the weights. Calling a scoring
   function a thousand times per figure takes many seconds and gives the same numbers.

The percentile interval follows Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13, with cases as
the units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MIN_CASES: Final = 10
"""Fewer cases than this give no interval: percentile intervals of so few units cover far less than they promise."""

MIN_CASES_PER_CLASS: Final = 3
"""Fewer cases of a class than this give no interval: most drawings would lack the class or repeat one patient."""

_MAX_DRAWS_PER_RESAMPLE: Final = 50
_MAX_BLOCK: Final = 4_000_000


@dataclass(frozen=True, slots=True)
class CaseResamples:
    """Drawings of cases.

    Attributes:
        slide_weights: how often each slide is in a drawing, float64 `[resamples, slides]`.
        num_redrawn: drawings that lacked a class and were replaced.
    """

    slide_weights: NDArray[np.float64]
    num_redrawn: int


def why_not(true_index: NDArray[np.int64], case_index: NDArray[np.int64]) -> str | None:
    """The reason why these slides give no interval, or `None` when they do.

    Args:
        true_index: class of each slide, `[slides]`.
        case_index: case of each slide, `[slides]`.
    """
    num_cases = len(np.unique(case_index))
    if num_cases < MIN_CASES:
        return f"{num_cases} cases; an interval needs at least {MIN_CASES}"
    fewest = min(len(np.unique(case_index[true_index == label])) for label in np.unique(true_index))
    if fewest < MIN_CASES_PER_CLASS:
        return f"a class with {fewest} cases; an interval needs at least {MIN_CASES_PER_CLASS} of every class"
    return None


def draw_cases(
    true_index: NDArray[np.int64], case_index: NDArray[np.int64], *, resamples: int, seed: int
) -> CaseResamples:
    """Draw cases with replacement; every drawing has every class that the sample has.

    Args:
        true_index: class of each slide, `[slides]`.
        case_index: case of each slide, `[slides]`.
        resamples: number of drawings.
        seed: of the generator; the same seed gives the same drawings.

    Raises:
        ValueError: a class is so rare that hardly any drawing has it; `why_not` tells beforehand.
    """
    generator = np.random.default_rng(seed)
    cases, case_of_slide = np.unique(case_index, return_inverse=True)
    class_of_slide = true_index[:, None] == np.unique(true_index)[None, :]
    classes_of_case = np.zeros((len(cases), class_of_slide.shape[1]))
    np.add.at(classes_of_case, case_of_slide, class_of_slide)
    kept: list[NDArray[np.int64]] = []
    num_kept = num_drawn = 0
    while num_kept < resamples:
        if num_drawn >= _MAX_DRAWS_PER_RESAMPLE * resamples:
            raise ValueError(f"{num_drawn} drawings gave only {num_kept} with every class")
        counts = generator.multinomial(len(cases), np.full(len(cases), 1 / len(cases)), size=resamples)
        valid = np.flatnonzero((counts @ classes_of_case > 0).all(axis=1))[: resamples - num_kept]
        # Only what was looked at counts as drawn: the drawings after the last one needed were never used.
        num_drawn += resamples if num_kept + len(valid) < resamples else int(valid[-1]) + 1
        num_kept += len(valid)
        kept.append(counts[valid])
    weights = np.concatenate(kept)[:, case_of_slide].astype(np.float64)
    return CaseResamples(weights, num_drawn - num_kept)


def weighted_auc(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], slide_weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Area under the ROC curve of every drawing: the chance that a positive scores higher, ties counting half.

    Args:
        scores: `[slides]`, higher means more positive.
        positive: `[slides]`.
        slide_weights: `[resamples, slides]`; every row has weight on both sides.

    Returns:
        `[resamples]`.

    >>> scores, positive = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    >>> weighted_auc(scores, positive, np.array([[1.0, 1, 1, 1], [1, 2, 1, 0]]))
    array([0.875, 0.75 ])
    """
    order = np.argsort(scores, kind="stable")
    is_positive = positive[order]
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    block = max(1, _MAX_BLOCK // len(scores))
    areas = np.empty(len(slide_weights))
    for first in range(0, len(slide_weights), block):
        weights = slide_weights[first : first + block, order]
        positives = np.add.reduceat(weights * is_positive, starts, axis=1)  # (resamples, distinct scores)
        negatives = np.add.reduceat(weights * ~is_positive, starts, axis=1)
        lower = np.cumsum(negatives, axis=1) - 0.5 * negatives
        pairs = positives.sum(axis=1) * negatives.sum(axis=1)
        areas[first : first + block] = (positives * lower).sum(axis=1) / pairs
    return areas


def weighted_confusion(
    true_index: NDArray[np.int64],
    predicted_index: NDArray[np.int64],
    num_classes: int,
    slide_weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Confusion matrix of every drawing, `[resamples, true classes, predicted classes]`."""
    cell = np.zeros((len(true_index), num_classes * num_classes))
    cell[np.arange(len(true_index)), true_index * num_classes + predicted_index] = 1.0
    return (slide_weights @ cell).reshape(-1, num_classes, num_classes)


def balanced_accuracies(confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean recall over the classes that occur, `[resamples]`."""
    hits, slides = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(axis=2)
    return _mean_where(hits, slides, slides > 0)


def macro_f1(confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean F1 over the classes that occur or are predicted, `[resamples]`."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    touched = confusion.sum(axis=1) + confusion.sum(axis=2)
    return _mean_where(2 * hits, touched, touched > 0)


def accuracies(confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of slides whose class is predicted, `[resamples]`."""
    return np.trace(confusion, axis1=1, axis2=2) / confusion.sum(axis=(1, 2))


def percentile_interval(values: NDArray[np.floating[Any]], level: float) -> tuple[float, float]:
    """The central interval holding `level` of the drawings.

    >>> percentile_interval(np.arange(101.0), 0.5)
    (25.0, 75.0)
    """
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _mean_where(
    numerator: NDArray[np.float64], denominator: NDArray[np.float64], counted: NDArray[np.bool_]
) -> NDArray[np.float64]:
    ratios = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=counted)
    return ratios.sum(axis=1) / counted.sum(axis=1)
