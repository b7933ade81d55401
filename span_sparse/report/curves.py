"""What do predictions look like beyond the ROC curve and the confusion matrix?

ROC, confusion, calibration and Kaplan–Meier are drawn by `span_sparse.evaluation`; here are precision–recall,
predicted against true numbers, and Dice by slide. Each figure says on how many slides and patients it rests,
has units on its axes, uses the colours of Okabe and Ito and tells its curves apart by dashes too.
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
from sklearn.metrics import average_precision_score, precision_recall_curve

from span_sparse.evaluation import PredictionTable
from span_sparse.evaluation.figures import DASHES, OKABE_ITO, STYLE
from span_sparse.report.drawing import counts, drawable
from span_sparse.report.slide_errors import class_dice, segmented_classes


def precision_recall_figure(table: PredictionTable, *, title: str) -> Figure | None:
    """Precision against recall; None when fewer than two classes occur.

    Two classes: the last of the table is the positive one; more: each against the rest.
    """
    labelled = table.labelled()
    occurring = np.unique(labelled.true_index)
    if len(occurring) < 2:
        return None
    shown = [1] if len(table.class_names) == 2 else occurring.tolist()
    with _axes(title) as (figure, axes):
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


def scatter_figure(frame: pd.DataFrame, *, title: str) -> Figure | None:
    """Predicted against true numbers, one point a slide; None without labels."""
    known = frame.dropna(subset=["y_true", "y_pred"])
    if known.empty:
        return None
    true, predicted = known["y_true"].to_numpy(np.float64), known["y_pred"].to_numpy(np.float64)
    low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    margin = 0.04 * (high - low) or 1.0
    with _axes(title) as (figure, axes):
        axes.plot([low, high], [low, high], color="0.45", linestyle=(0, (1, 2)), linewidth=1.2, label="equal")
        axes.plot(true, predicted, "o", color=OKABE_ITO[0], markersize=5, alpha=0.6, markeredgewidth=0, label="slides")
        axes.set(
            xlim=(low - margin, high + margin), ylim=(low - margin, high + margin), aspect="equal",
            xlabel=f"True value\n{counts(len(known), len(set(known['case_id'])))}", ylabel="Predicted value",
        )  # fmt: skip
        axes.legend(loc="upper left", framealpha=0.95)
    return figure


def dice_figure(frame: pd.DataFrame, *, title: str) -> Figure | None:
    """Dice of every slide, one column a class, with the median; None without annotated slides."""
    names = segmented_classes(frame)
    values = [class_dice(frame, name) for name in names]
    values = [one[~np.isnan(one)] for one in values]
    if not sum(map(len, values)):
        return None
    with _axes(title) as (figure, axes):
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
