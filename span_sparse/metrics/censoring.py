"""How many are still without the event at a time, when many were not followed to the end?

    S(t) = Π_{u ≤ t} (1 − d_u / n_u)        Kaplan and Meier, J. Am. Stat. Assoc. 53, 1958

with d_u events among n_u at risk at u. The interval is Greenwood's on the scale of log(−log S), which stays in [0, 1].

G(t), the chance not to be censored before t, is the same estimator with events and censorings exchanged, an event at a
time counting before a censoring at that time. Its inverse makes up for patients that were lost (IPCW): each patient
seen to have the event stands for 1 / G of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from span_sparse.metrics.ranking import Floats, ratio

Events = NDArray[np.bool_]


class SurvivalCurve(NamedTuple):
    """A step function; the first entry is time 0, where everybody is at risk.

    Attributes:
        time: distinct times, rising, `[steps]`.
        survival: share without the event from this time on, `[steps]`.
        low: lower bound of the pointwise interval, `[steps]`; NaN where it is not defined.
        high: upper bound, `[steps]`.
        at_risk: patients without event or end of follow-up before this time, `[steps]`.
        events: seen at this time, `[steps]`.
        censored: whose follow-up ended at this time without event, `[steps]`.
    """

    time: Floats
    survival: Floats
    low: Floats
    high: Floats
    at_risk: NDArray[np.int64]
    events: NDArray[np.int64]
    censored: NDArray[np.int64]


def kaplan_meier(time: NDArray[Any], event: NDArray[Any], *, level: float = 0.95) -> SurvivalCurve:
    """The Kaplan–Meier curve.

    Args:
        time: of the event or of the end of the follow-up, `[patients]`, any unit, at least 0.
        event: whether the event was seen, `[patients]`.
        level: of the interval.

    >>> curve = kaplan_meier(np.array([1.0, 2.0, 2.0, 3.0]), np.array([True, True, False, False]))
    >>> curve.time.tolist(), curve.survival.tolist(), curve.at_risk.tolist()
    ([0.0, 1.0, 2.0, 3.0], [1.0, 0.75, 0.5, 0.5], [4, 4, 3, 1])
    """
    time, event = np.asarray(time, dtype=np.float64), np.asarray(event, dtype=bool)
    steps, place = np.unique(np.r_[0.0, time], return_inverse=True)
    events = np.bincount(place[1:], weights=event, minlength=len(steps))
    leaving = np.bincount(place[1:], minlength=len(steps))
    at_risk = len(time) - np.r_[0, np.cumsum(leaving)[:-1]]
    survival = np.cumprod(1 - np.nan_to_num(ratio(events, at_risk)))
    greenwood = np.cumsum(np.nan_to_num(ratio(events, at_risk * (at_risk - events))))
    inside = (survival > 0) & (survival < 1)
    log_survival = np.log(survival, out=np.full(len(steps), np.nan), where=inside)
    spread = np.exp(stats.norm.isf((1 - level) / 2) * np.sqrt(greenwood) / np.abs(log_survival))
    low, high = survival**spread, survival ** (1 / spread)
    low[survival == 1] = high[survival == 1] = 1.0
    whole = [column.astype(np.int64) for column in (at_risk, events, leaving - events)]
    return SurvivalCurve(steps, survival, low, high, *whole)


def median_time(curve: SurvivalCurve) -> float:
    """The first time at which at most half are without the event; NaN when the curve stays above."""
    below = np.flatnonzero(curve.survival <= 0.5)
    return float(curve.time[below[0]]) if len(below) else float("nan")


def log_rank(time: NDArray[Any], event: NDArray[Any], group: NDArray[Any]) -> tuple[float, float]:
    """The log-rank test of two groups (Mantel, Cancer Chemother. Rep. 50, 1966).

    Args:
        time: `[patients]`.
        event: `[patients]`.
        group: True for the one group, `[patients]`.

    Returns:
        χ² with one degree of freedom, and p; both NaN where nothing can be compared.
    """
    time, event, group = np.asarray(time, dtype=np.float64), np.asarray(event, bool), np.asarray(group, bool)
    excess = variance = 0.0
    for moment in np.unique(time[event]):
        at_risk, now = time >= moment, event & (time == moment)
        total, ours, events = at_risk.sum(), (at_risk & group).sum(), now.sum()
        excess += (now & group).sum() - events * ours / total
        if total > 1:
            variance += events * (ours / total) * (1 - ours / total) * (total - events) / (total - 1)
    if variance <= 0:
        return float("nan"), float("nan")
    chi_square = float(excess**2 / variance)
    return chi_square, float(stats.chi2.sf(chi_square, 1))


class CensoringCurve(NamedTuple):
    """G of every drawing.

    Attributes:
        time: distinct times, rising, `[times]`.
        remaining: `[drawings, 1 + times]`; the first column is before all times.
    """

    time: Floats
    remaining: Floats

    def at(self, moments: Floats) -> Floats:
        """G(t), `[drawings, moments]`."""
        return self.remaining[:, np.searchsorted(self.time, moments, side="right")]

    def before(self, moments: Floats) -> Floats:
        """G just before t, `[drawings, moments]`; positive for the time of every patient who is in the drawing."""
        return self.remaining[:, np.searchsorted(self.time, moments, side="left")]


def censoring_curve(time: Floats, event: Events, weights: Floats) -> CensoringCurve:
    """The chance not to be censored, in every drawing.

    Args:
        time: `[patients]`.
        event: `[patients]`.
        weights: `[drawings, patients]`.
    """
    order = np.argsort(time, kind="stable")
    moments, starts = np.unique(time[order], return_index=True)
    leaving = np.add.reduceat(weights[:, order], starts, axis=1)
    lost = np.add.reduceat(weights[:, order] * ~event[order], starts, axis=1)
    at_risk = weights.sum(axis=1, keepdims=True) - np.cumsum(leaving, axis=1) + lost  # without those of the event now
    remaining = np.cumprod(1.0 - np.nan_to_num(ratio(lost, at_risk)), axis=1)
    return CensoringCurve(moments, np.concatenate([np.ones((len(weights), 1)), remaining], axis=1))
