"""What do predictions look like beyond the ROC curve and the confusion matrix?

Precision–recall and calibration of a classification, survival of the halves of the predicted risk, predicted against
true numbers, Dice by slide. Each figure says on how many slides and patients it rests, has units on its axes, uses the
colours of Okabe and Ito and tells its curves apart by dashes too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, precision_recall_curve

from span_sparse.evaluation import PredictionTable
from span_sparse.evaluation.figures import DASHES, OKABE_ITO
from span_sparse.report.drawing import STYLE, counts, drawable
from span_sparse.report.slide_errors import class_dice, segmented_classes

MAX_BINS = 10
MIN_SLIDES_PER_BIN = 10


def precision_recall_figure(table: PredictionTable) -> Figure | None:
    """Precision against recall; None when fewer than two classes occur.

    Two classes: the last of the table is the positive one; more: each against the rest.
    """
    labelled = table.labelled()
    occurring = np.unique(labelled.true_index)
    if len(occurring) < 2:
        return None
    shown = [1] if len(table.class_names) == 2 else occurring.tolist()
    with _axes("Precision–recall") as (figure, axes):
        for number, label in enumerate(shown):
            positive, scores = labelled.true_index == label, labelled.probabilities[:, label]
            precision, recall, _ = precision_recall_curve(positive, scores)
            text = f"{drawable(table.class_names[label])}, AP {average_precision_score(positive, scores):.3f}"
            axes.plot(recall, precision, drawstyle="steps-post", label=text, **_line(number))
            if len(shown) == 1:
                share = positive.mean()
                axes.axhline(share, color="0.45", linestyle=(0, (1, 2)), linewidth=1.2, label=f"chance, {share:.3f}")
        axes.set(
            xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal",
            xlabel=f"Recall (sensitivity)\n{_counts(labelled)}", ylabel="Precision (positive predictive value)",
        )  # fmt: skip
        _legend(figure, axes, len(shown))
    return figure


def calibration_figure(table: PredictionTable) -> Figure | None:
    """Observed share against predicted probability in bins of equal size; None without slides enough for two bins.

    Two classes: probability of the positive class; more: of the predicted class, against how often it was right.
    """
    labelled = table.labelled()
    num_bins = min(MAX_BINS, labelled.num_slides // MIN_SLIDES_PER_BIN)
    if num_bins < 2:
        return None
    if len(table.class_names) == 2:
        outcome, scores = labelled.true_index == 1, labelled.probabilities[:, 1]
        words = f"of {drawable(table.class_names[1])}"
    else:
        outcome, scores = labelled.true_index == labelled.predicted_index, labelled.probabilities.max(axis=1)
        words = "of the predicted class"
    observed, predicted = calibration_curve(outcome, scores, n_bins=num_bins, strategy="quantile")
    with _axes("Calibration") as (figure, axes):
        axes.plot([0, 1], [0, 1], color="0.45", linestyle=(0, (1, 2)), linewidth=1.2, label="perfect calibration")
        axes.plot(predicted, observed, marker="o", markersize=6, label=f"{len(observed)} bins", **_line(0))
        axes.plot(scores, np.where(outcome, 1.0, 0.0), "|", color="0.3", markersize=9, alpha=0.5, label="slides")
        axes.set(
            xlim=(-0.02, 1.02), ylim=(-0.04, 1.04), aspect="equal",
            xlabel=f"Predicted probability {words}\n{_counts(labelled)}", ylabel="Observed share",
        )  # fmt: skip
        axes.legend(loc="upper left", framealpha=0.95)
    return figure


def survival_figure(frame: pd.DataFrame) -> Figure | None:
    """Kaplan–Meier curves of the patients below and above the median predicted risk; None with fewer than four."""
    known = frame.dropna(subset=["time", "event", "risk"])
    cases: Any = known.groupby("case_id", sort=False)[["time", "event", "risk"]].mean()
    if len(cases) < 4:
        return None
    time, event, risk = cases.to_numpy(dtype=np.float64).T
    high = risk > np.median(risk)
    with _axes("Survival by predicted risk") as (figure, axes):
        for number, (name, chosen) in enumerate((("low risk", ~high), ("high risk", high))):
            if chosen.any():
                steps, share = kaplan_meier_steps(time[chosen], event[chosen] == 1)
                text = f"{name}, n = {chosen.sum()}, {int(event[chosen].sum())} events"
                axes.plot(steps, share, drawstyle="steps-post", label=text, **_line(number))
                censored = np.sort(time[chosen & (event != 1)])
                axes.plot(censored, _read_steps(steps, share, censored), "|", color=OKABE_ITO[number], markersize=9)
        axes.set(
            xlim=(0, None), ylim=(-0.02, 1.04), ylabel="Share without event",
            xlabel=f"Time (unit of the cohort table); ticks: censored\n{counts(len(known), len(cases))}, "
            "halves by median risk",
        )  # fmt: skip
        axes.legend(loc="lower left", framealpha=0.95)
    return figure


def kaplan_meier_steps(
    time: NDArray[np.float64], event: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Product-limit estimate (Kaplan and Meier, 1958): times and the share that lives on from each.

    Args:
        time: of event or censoring, `[cases]`.
        event: whether it was an event, `[cases]`.
    """
    times = np.unique(time)
    at_risk = np.array([(time >= one).sum() for one in times])
    events = np.array([(event & (time == one)).sum() for one in times])
    return np.r_[0.0, times], np.r_[1.0, np.cumprod(1.0 - events / at_risk)]


def scatter_figure(frame: pd.DataFrame) -> Figure | None:
    """Predicted against true numbers, one point a slide; None without labels."""
    known = frame.dropna(subset=["y_true", "y_pred"])
    if known.empty:
        return None
    true, predicted = known["y_true"].to_numpy(np.float64), known["y_pred"].to_numpy(np.float64)
    low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    margin = 0.04 * (high - low) or 1.0
    with _axes("Predicted against true") as (figure, axes):
        axes.plot([low, high], [low, high], color="0.45", linestyle=(0, (1, 2)), linewidth=1.2, label="equal")
        axes.plot(true, predicted, "o", color=OKABE_ITO[0], markersize=5, alpha=0.6, markeredgewidth=0, label="slides")
        axes.set(
            xlim=(low - margin, high + margin), ylim=(low - margin, high + margin), aspect="equal",
            xlabel=f"True value\n{counts(len(known), len(set(known['case_id'])))}", ylabel="Predicted value",
        )  # fmt: skip
        axes.legend(loc="upper left", framealpha=0.95)
    return figure


def dice_figure(frame: pd.DataFrame) -> Figure | None:
    """Dice of every slide, one column a class, with the median; None without annotated slides."""
    names = segmented_classes(frame)
    values = [class_dice(frame, name) for name in names]
    values = [one[~np.isnan(one)] for one in values]
    if not sum(map(len, values)):
        return None
    with _axes("Dice by slide") as (figure, axes):
        for place, found in enumerate(values):
            spread = np.linspace(-0.25, 0.25, len(found)) if len(found) > 1 else np.zeros(len(found))
            axes.plot(
                place + spread, np.sort(found), "o", color=OKABE_ITO[0], alpha=0.6, markersize=5, markeredgewidth=0
            )
            if len(found):
                axes.hlines(np.median(found), place - 0.35, place + 0.35, color=OKABE_ITO[1], linewidth=2)
        ticks = [f"{drawable(name, 14)}\nn = {len(found)}" for name, found in zip(names, values, strict=True)]
        axes.set_xticks(range(len(names)), ticks)
        axes.set(
            xlim=(-0.6, len(names) - 0.4), ylim=(-0.02, 1.02), ylabel="Dice (bar: median)",
            xlabel=counts(len(frame), len(set(frame["case_id"]))),
        )  # fmt: skip
    return figure


@contextmanager
def _axes(title: str) -> Iterator[tuple[Figure, Any]]:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 5.4), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_title(title)
        axes.grid(color="0.9", linewidth=0.7)
        yield figure, axes


def _line(number: int) -> dict[str, Any]:
    return {
        "color": OKABE_ITO[number % len(OKABE_ITO)],
        "linestyle": DASHES[number % len(DASHES)],
        "linewidth": 2,
    }


def _legend(figure: Figure, axes: Any, num_curves: int) -> None:
    if num_curves == 1:
        axes.legend(loc="lower left", framealpha=0.95)
    else:
        figure.legend(loc="outside lower center", ncols=1 if num_curves < 5 else 2, fontsize=9)


def _counts(labelled: PredictionTable) -> str:
    return counts(labelled.num_slides, len(np.unique(labelled.case_index)))


def _read_steps(steps: NDArray[np.float64], share: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    return share[np.searchsorted(steps, at, side="right") - 1]
