"""How often does the model put the patient who died earlier at the higher risk, and are its survival curves right?

    Harrell's C   of all pairs whose order is known, because the earlier time of the two is an event, the share in which
                  the earlier one has the higher risk; equal risks count half (Harrell et al., JAMA 247, 1982)
    Uno's C       the same pairs, each weighted by 1 / G² of the earlier time: does not depend on who was censored when
                  (Uno et al., Stat. Med. 30, 2011)
    AUC(t)        a patient with the event by t, weighted by 1 / G, against one without it at t (cumulative/dynamic;
                  Uno et al., J. Am. Stat. Assoc. 102, 2007; Hung and Chiang, Can. J. Stat. 38, 2010)
    Brier(t)      mean of S(t)²·[event by t] / G + (1 − S(t))²·[without it at t] / G(t)   (Graf et al., Stat. Med. 18,
                  1999); the integrated one is its mean over time by the trapezoid rule

A pair of equal times is ordered where exactly one of the two had the event then: the other outlived it. G is estimated
from the same patients (`censoring.py`) and taken just before an event. Every figure is computed for all drawings of
patients at once; `ranking.py` says what a drawing is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from span_sparse.metrics.censoring import CensoringCurve, Events
from span_sparse.metrics.ranking import Floats, ratio

_MAX_PAIRS = 4_000_000


def concordance_index(
    time: NDArray[np.floating[Any]], event: NDArray[np.bool_], risk: NDArray[np.floating[Any]]
) -> float:
    """Harrell's C of a sample.

    Args:
        time: of the event or of the end of the follow-up, `[patients]`, any unit.
        event: whether the event was seen, `[patients]`.
        risk: higher is worse, `[patients]`.

    Returns:
        Between 0 and 1, 0.5 for risks that say nothing; NaN where no pair is ordered.

    >>> concordance_index(np.array([1.0, 2.0, 3.0]), np.array([True, True, False]), np.array([0.9, 0.2, 0.5]))
    0.6666666666666666
    """
    return float(concordance(time, event, risk, np.ones((1, len(time))))[0])


def concordance(
    time: NDArray[Any],
    event: Events,
    risk: NDArray[Any],
    weights: Floats,
    censoring: CensoringCurve | None = None,
) -> Floats:
    """Harrell's C, or Uno's with a curve of censoring; `[drawings]`.

    Args:
        time: `[patients]`.
        event: `[patients]`.
        risk: `[patients]`.
        weights: `[drawings, patients]`.
        censoring: of the same drawings.
    """
    concordant, ordered = np.zeros(len(weights)), np.zeros(len(weights))
    for first in _blocks(np.flatnonzero(event), len(time)):
        outlived = (time > time[first, None]) | ((time == time[first, None]) & ~event)
        factor = weights[:, first]
        if censoring is not None:
            factor = factor * ratio(1.0, censoring.before(time[first]) ** 2)
            factor[weights[:, first] == 0] = 0.0
        ordered += (factor * (weights @ outlived.T.astype(np.float64))).sum(axis=1)
        concordant += (factor * (weights @ (outlived * _lower(risk, first)).T)).sum(axis=1)
    return ratio(concordant, ordered)


def auc_at(
    time: NDArray[Any], event: Events, risk: NDArray[Any], moment: float, weights: Floats, censoring: CensoringCurve
) -> Floats:
    """Cumulative/dynamic AUC at a time, `[drawings]`; NaN without a patient on either side.

    Args:
        time: `[patients]`.
        event: `[patients]`.
        risk: `[patients]`.
        moment: the time.
        weights: `[drawings, patients]`.
        censoring: of the same drawings.
    """
    later = time > moment
    above, total = np.zeros(len(weights)), np.zeros(len(weights))
    for first in _blocks(np.flatnonzero(event & (time <= moment)), len(time)):
        factor = np.nan_to_num(weights[:, first] * ratio(1.0, censoring.before(time[first])))
        above += (factor * (weights @ (later * _lower(risk, first)).T)).sum(axis=1)
        total += factor.sum(axis=1)
    return ratio(above, total * (weights @ later.astype(np.float64)))


def brier_at(
    time: NDArray[Any],
    event: Events,
    survival: NDArray[Any],
    moment: float,
    weights: Floats,
    censoring: CensoringCurve,
) -> Floats:
    """Brier score of predicted survival at a time, `[drawings]`; NaN where nobody is followed beyond it.

    Args:
        time: `[patients]`.
        event: `[patients]`.
        survival: predicted chance to be without the event at the time, `[patients]`.
        moment: the time.
        weights: `[drawings, patients]`.
        censoring: of the same drawings.
    """
    gone, left = event & (time <= moment), time > moment
    lost = weights[:, gone] * np.nan_to_num(ratio(1.0, censoring.before(time[gone])))
    remaining = ratio(weights[:, left], np.broadcast_to(censoring.at(np.array([moment])), weights[:, left].shape))
    score = lost @ survival[gone] ** 2 + np.nan_to_num(remaining) @ (1 - survival[left]) ** 2
    followed = weights[:, left].sum(axis=1) > 0
    return ratio(np.where(followed, score, np.nan), weights.sum(axis=1))


def mean_over_time(values: Floats, moments: Floats) -> Floats:
    """Mean of a figure between the first and the last time by the trapezoid rule, `[drawings]`.

    Args:
        values: `[drawings, moments]`.
        moments: rising, two at least.
    """
    areas = 0.5 * (values[:, 1:] + values[:, :-1]) * np.diff(moments)
    return areas.sum(axis=1) / (moments[-1] - moments[0])


def _lower(risk: NDArray[Any], first: NDArray[np.intp]) -> Floats:
    """1 where the other's risk is lower, a half where it is equal, `[first, patients]`."""
    return (risk < risk[first, None]) + 0.5 * (risk == risk[first, None])


def _blocks(rows: NDArray[np.intp], num_patients: int) -> Iterator[NDArray[np.intp]]:
    """Rows in parts whose pairs fit into memory."""
    size = max(1, _MAX_PAIRS // max(num_patients, 1))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
