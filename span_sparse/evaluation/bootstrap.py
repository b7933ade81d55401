"""How far could the figures have fallen otherwise, had other patients been drawn?

1. Cases (patients) are drawn with replacement, as many as there are; a case brings all of its slides. Slides of one
   patient resemble each other: drawing slides instead gives intervals that are too narrow.
2. A drawing is one row of weights (how often each row of the table is in it), so that a thousand drawings are one
   matrix, and every figure of `span_sparse.metrics` is computed of all of them at once.
3. A drawing that lacks a class the sample has cannot be scored like the sample: it is drawn again, and counted.

The percentile interval follows Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13, with cases as
the units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MIN_CASES: Final = 10
"""Fewer cases than this give no interval: percentile intervals of so few units cover far less than they promise."""

MIN_CASES_PER_CLASS: Final = 3
"""Fewer cases of a class than this give no interval: most drawings would lack the class or repeat one patient."""

Compute = Callable[[NDArray[np.float64]], dict[str, NDArray[np.float64]]]
"""Figures by name, each `[drawings]`, of weights `[drawings, rows]`."""

_MAX_DRAWS_PER_RESAMPLE: Final = 50
_MAX_BLOCK: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class CaseResamples:
    """Drawings of cases.

    Attributes:
        slide_weights: how often each row is in a drawing, float64 `[resamples, rows]`.
        num_redrawn: drawings that lacked a class and were replaced.
    """

    slide_weights: NDArray[np.float64]
    num_redrawn: int


def why_not(true_index: NDArray[np.int64], case_index: NDArray[np.int64]) -> str | None:
    """The reason why these rows give no interval, or `None` when they do.

    Args:
        true_index: class of each row, `[rows]`.
        case_index: case of each row, `[rows]`.
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
        true_index: class of each row, `[rows]`; all the same where there are no classes.
        case_index: case of each row, `[rows]`.
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


def of_all(compute: Compute, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Figures of all drawings, a part of them at a time so that memory does not grow with their number.

    Args:
        compute: the figures.
        weights: `[drawings, rows]`.
    """
    size = max(1, _MAX_BLOCK // max(weights.shape[1], 1))
    parts = [compute(weights[start : start + size]) for start in range(0, len(weights), size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def percentile_interval(values: NDArray[np.floating[Any]], level: float) -> tuple[float, float]:
    """The central interval holding `level` of the drawings.

    >>> percentile_interval(np.arange(101.0), 0.5)
    (25.0, 75.0)
    """
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
