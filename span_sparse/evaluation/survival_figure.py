"""Do patients of high predicted risk fare worse than those of low risk?

Cases are split at a risk that other cases gave (`thresholds.py`); each group's Kaplan–Meier curve is drawn with a
pointwise band, ticks where follow-up ended, and the number still at risk below, without which the right end of a curve
that rests on two patients looks as sure as its left.
"""

from __future__ import annotations

from typing import Any, Final

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from span_sparse.evaluation.figures import DASHES, DPI, OKABE_ITO, STYLE
from span_sparse.evaluation.measures import survival_cases
from span_sparse.evaluation.thresholds import RiskCut
from span_sparse.metrics import SurvivalCurve, kaplan_meier, log_rank
from span_sparse.metrics.censoring import median_time

_GROUPS: Final = ("low", "high")


def risk_groups(frame: pd.DataFrame, cut: RiskCut) -> dict[str, Any]:
    """The two groups and their log-rank test, as plain JSON; None for what cannot be computed.

    Args:
        frame: a survival table of one split.
        cut: cases above it are of high risk.
    """
    cases = survival_cases(frame)
    high = cases["risk"].to_numpy() > cut.value
    chi_square, p = log_rank(cases["time"].to_numpy(), (cases["event"] == 1).to_numpy(), high)
    found: dict[str, Any] = {
        "cut": cut.value,
        "cut_rule": "median risk",
        "chosen_on": cut.chosen_on,
        "log_rank_chi2": _or_none(chi_square),
        "log_rank_p": _or_none(p),
    }
    for name, members in zip(_GROUPS, (cases.loc[~high], cases.loc[high]), strict=True):
        found |= {
            f"num_cases_{name}": len(members),
            f"num_events_{name}": int((members["event"] == 1).sum()),
            f"median_time_{name}": _or_none(median_time(_curve(members))) if len(members) else None,
        }
    return found


def kaplan_meier_figure(frame: pd.DataFrame, cut: RiskCut, *, title: str) -> Figure | None:
    """Kaplan–Meier curves of both groups, or `None` when one of them is empty.

    Args:
        frame: a survival table of one split.
        cut: cases above it are of high risk.
        title: above the picture.
    """
    cases = survival_cases(frame)
    high = cases["risk"].to_numpy() > cut.value
    if high.all() or not high.any():
        return None
    p = log_rank(cases["time"].to_numpy(), (cases["event"] == 1).to_numpy(), high)[1]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 5.8), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes, table = figure.subplots(2, 1, sharex=True, height_ratios=(6, 1))
        for number, (name, members) in enumerate(zip(_GROUPS, (cases.loc[~high], cases.loc[high]), strict=True)):
            _draw(axes, _curve(members), number, f"{name} risk, n = {len(members)}")
        axes.set(ylim=(-0.02, 1.02), title=title, ylabel="Share without the event")
        axes.set_xlim(left=0)
        axes.grid(color="0.9", linewidth=0.7)
        shown = "log-rank p < 0.001" if p < 0.001 else f"log-rank p = {p:.3f}"
        legend = axes.legend(loc="best", framealpha=0.95, title=shown if p == p else "no log-rank test")
        legend.get_title().set_fontsize(10)
        _numbers_at_risk(table, axes.get_xticks(), (cases.loc[~high], cases.loc[high]))
        table.set_xlabel(
            f"Time, in the unit of the cohort table\n{len(cases)} patients; cut at the median risk of split "
            f"{cut.chosen_on} (n = {cut.num_cases}); bands 95 %, pointwise"
        )
    return figure


def _curve(cases: pd.DataFrame) -> SurvivalCurve:
    return kaplan_meier(cases["time"].to_numpy(np.float64), cases["event"].to_numpy() == 1)


def _draw(axes: Any, curve: SurvivalCurve, number: int, label: str) -> None:
    colour = OKABE_ITO[number]
    axes.step(
        curve.time, curve.survival, where="post", color=colour, linestyle=DASHES[number], linewidth=2, label=label
    )
    # No interval is defined where nobody is left: the band goes on as it was, for without it that would look certain.
    low, high = (pd.Series(bound).ffill() for bound in (curve.low, curve.high))
    axes.fill_between(curve.time, low, high, step="post", color=colour, alpha=0.15, linewidth=0)
    ended = curve.censored > 0
    axes.plot(curve.time[ended], curve.survival[ended], "|", color=colour, markersize=8)


def _numbers_at_risk(table: Any, ticks: Any, groups: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    low, high = table.get_xlim()
    for row, members in enumerate(groups):
        for tick in (tick for tick in ticks if low <= tick <= high):
            left = int((members["time"] >= tick).sum())
            table.text(tick, row, str(left), ha="center", va="center", color=OKABE_ITO[row], fontsize=10)
    table.set(ylim=(1.6, -0.6))
    table.set_yticks([0, 1], [f"{name}" for name in _GROUPS])
    table.set_ylabel("At risk", fontsize=10)
    table.tick_params(axis="y", length=0, pad=16)
    table.tick_params(axis="x", length=0)
    for side in ("top", "right", "left"):
        table.spines[side].set_visible(False)


def _or_none(value: float) -> float | None:
    return None if value != value else value
