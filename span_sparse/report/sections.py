"""Which figures, curves and remarks belong to one split?

1. Every figure is computed from the prediction table again, with the drawings (number, seed, level) that `metrics.json`
   states, so that a reader who recomputes gets the same.
2. Where `metrics.json` says something else, the section says so: then one of the two files was changed.
3. What cannot be drawn is left out, what cannot be computed is a dash with its reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_fscore_support

from span_sparse.evaluation import (
    PredictionTable,
    choose_risk_cut,
    choose_threshold,
    risk_groups,
    score_table,
    subgroup_scores,
)
from span_sparse.evaluation.calibration_figure import calibration_figure
from span_sparse.evaluation.estimates import DEFAULT_RESAMPLES
from span_sparse.evaluation.figures import confusion_figure, roc_figure
from span_sparse.evaluation.survival_figure import kaplan_meier_figure
from span_sparse.metrics import dice, intersection_over_union
from span_sparse.report import curves
from span_sparse.report.drawing import drawable, svg_address, with_drawable_classes
from span_sparse.report.evaluation_folder import Evaluation
from span_sparse.report.slide_errors import class_dice, segmented_classes

WORDS: Final = {
    "auc": "AUC",
    "average_precision": "Average precision",
    "balanced_accuracy": "Balanced accuracy",
    "f1": "Macro F1",
    "accuracy": "Accuracy",
    "kappa": "Cohen's kappa",
    "quadratic_kappa": "Kappa, quadratic weights",
    "brier": "Brier score",
    "ece": "Expected calibration error",
    "sensitivity_at_95_specificity": "Sensitivity at 95 % specificity",
    "specificity_at_95_sensitivity": "Specificity at 95 % sensitivity",
    "threshold_accuracy": "Accuracy at the decision threshold",
    "threshold_sensitivity": "Sensitivity at the decision threshold",
    "threshold_specificity": "Specificity at the decision threshold",
    "c_index": "C-index (Harrell)",
    "c_index_uno": "C-index (Uno)",
    "integrated_brier": "Integrated Brier score",
    "mae": "Mean absolute error",
    "r2": "R²",
    "pearson": "Pearson's r",
    "dice": "Dice, mean over slides",
    "iou": "IoU, mean over slides",
    "pooled_dice": "Dice over all patches",
    "pooled_iou": "IoU over all patches",
}
"""Names of the figures for readers; others are shown as they are called."""

MAX_RESAMPLES: Final = 10_000
TOLERANCE: Final = 1e-6
SUBGROUP_FIGURES: Final = 3
"""How many figures a table of subgroups shows; subgroups.csv has all."""


@dataclass(frozen=True, slots=True)
class FigureRow:
    """A line of the table of figures; texts, ready to be shown."""

    name: str
    value: str
    interval: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as a `data:` address, with what it shows in words."""

    title: str
    address: str
    alternative: str


@dataclass(frozen=True, slots=True)
class Grid:
    """A small table of texts."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class SplitSection:
    """What a report says of one split.

    Attributes:
        name: of the split.
        anchor: id of the section in the page.
        counts: slides, patients, slides without label.
        figures: values by name, as computed; for tests and comparisons.
        rows: the same in words.
        level: share of the drawings inside an interval.
        resamples: drawings behind the intervals, 0 without any.
        grids: tables by class and by subgroup.
        pictures: curves.
        notes: what to mind.
    """

    name: str
    anchor: str
    counts: str
    figures: dict[str, Any]
    rows: list[FigureRow]
    level: float
    resamples: int
    grids: list[Grid] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def split_section(evaluation: Evaluation, split: str, number: int) -> SplitSection:
    """Compute and draw everything about one split.

    Args:
        evaluation: the folder.
        split: one of its splits.
        number: of the section in the page.
    """
    stated = evaluation.metrics.get(split)
    stated = stated if isinstance(stated, dict) else {}
    drawings = _drawings(stated)
    frame = evaluation.frame.loc[evaluation.frame["split"] == split].reset_index(drop=True)
    table = None if evaluation.table is None else evaluation.table.of_split(split)
    settings = drawings if evaluation.table is None else {**drawings, "threshold": choose_threshold(evaluation.table)}
    figures = score_table(frame, evaluation.kind, **settings)
    notes = [*_differences(figures, stated), *_cuts(evaluation, frame, figures)]
    if split == "train":
        notes.append("The model was fitted to these slides: their figures say nothing about new ones.")
    unlabelled = int(figures.get("num_unlabelled") or 0)
    return SplitSection(
        name=split,
        anchor=f"split-{number}",
        counts=_counts_text(frame, unlabelled),
        figures=figures,
        rows=_rows(figures),
        level=drawings["level"],
        resamples=int(figures["bootstrap"]["resamples"]),
        grids=[*_grids(evaluation.kind, frame, table), *_subgroups(evaluation, frame, split, settings)],
        pictures=_pictures(evaluation, frame, table, split, drawings),
        notes=notes,
    )


def figure_names(figures: dict[str, Any]) -> list[str]:
    """Names of the figures of a dictionary of `metrics.json`: those that have an interval or could have one."""
    return [name for name in figures if f"{name}_ci" in figures]


def _drawings(stated: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the bootstrap as `metrics.json` states them, within limits; defaults for what it does not."""
    bootstrap = stated.get("bootstrap")
    bootstrap = bootstrap if isinstance(bootstrap, dict) else {}
    resamples, seed, level = (bootstrap.get(name) for name in ("resamples", "seed", "level"))
    return {
        "resamples": resamples if isinstance(resamples, int) and 0 < resamples <= MAX_RESAMPLES else DEFAULT_RESAMPLES,
        "seed": seed if isinstance(seed, int) and seed >= 0 else 0,
        "level": level if isinstance(level, float) and 0.0 < level < 1.0 else 0.95,
    }


def _differences(figures: dict[str, Any], stated: dict[str, Any]) -> list[str]:
    found = []
    for name in figure_names(figures):
        here, there = figures[name], stated.get(name)
        if isinstance(here, float) and isinstance(there, int | float) and abs(here - there) > TOLERANCE:
            found.append(
                f"{_word(name)}: metrics.json says {there:.4f}, predictions.csv gives {here:.4f}. One of the files was "
                "changed after the evaluation; this report shows what predictions.csv gives."
            )
    return found


def _word(name: str) -> str:
    return WORDS.get(name, name.replace("_", " "))


def _cuts(evaluation: Evaluation, frame: pd.DataFrame, figures: dict[str, Any]) -> list[str]:
    """Sentences about the decision threshold and the groups of risk."""
    threshold = figures.get("decision_threshold")
    if threshold:
        origin = f"{threshold['rule']} on the {threshold['num_slides']} slides of split {threshold['chosen_on']}"
        return [f"Decision threshold {threshold['value']:.3f}: {origin}."]
    cut = choose_risk_cut(evaluation.frame) if evaluation.kind == "survival" else None
    if cut is None:
        return []
    groups = risk_groups(frame, cut)
    p = groups["log_rank_p"]
    parts = [
        f"{name}: {groups[f'num_cases_{name}']} patients, {groups[f'num_events_{name}']} events"
        for name in ("low", "high")
    ]
    test = "no log-rank test" if p is None else f"log-rank p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
    return [f"Groups of risk, cut at the median risk of split {cut.chosen_on}: {'; '.join(parts)}; {test}."]


def _subgroups(evaluation: Evaluation, frame: pd.DataFrame, split: str, settings: dict[str, Any]) -> list[Grid]:
    """The columns that the evaluation was asked to take apart, where the table still has them."""
    stated = evaluation.metrics.get("subgroups")
    columns = stated.get(split) if isinstance(stated, dict) else None
    present = [name for name in columns if name in frame] if isinstance(columns, dict) else []
    grids = []
    for column, groups in subgroup_scores(frame, evaluation.kind, present, **settings).items():
        # those of all groups: times of an AUC(t) are the quartiles of a group's own events
        common = [
            name for name in figure_names(next(iter(groups.values()))) if all(name in one for one in groups.values())
        ]
        names = common[:SUBGROUP_FIGURES]
        rows = [
            (
                value + (" (small)" if one["small"] else ""), str(one["num_slides"]), str(one["num_cases"]),
                *(_with_interval(one, name) for name in names),
            )
            for value, one in groups.items()
        ]  # fmt: skip
        grids.append(Grid(f"By {column}", (column, "Slides", "Patients", *map(_word, names)), rows))
    return grids


def _with_interval(figures: dict[str, Any], name: str) -> str:
    value, interval = figures[name], figures[f"{name}_ci"]
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _rows(figures: dict[str, Any]) -> list[FigureRow]:
    reasons = figures.get("notes") or {}
    rows, before = [], ""
    for name in figure_names(figures):
        value, interval = figures[name], figures[f"{name}_ci"]
        missing = value is None or math.isnan(value)
        reason = reasons.get(name) or (reasons.get(f"{name}_ci") if interval is None or name not in reasons else "")
        rows.append(
            FigureRow(
                name=_word(name),
                value="–" if missing else f"{value:.3f}",
                interval="–" if not interval else f"{interval[0]:.3f} to {interval[1]:.3f}",
                note="as above" if reason and reason == before else str(reason or ""),
            )
        )
        before = reason
    return rows


def _counts_text(frame: pd.DataFrame, unlabelled: int) -> str:
    cases = len(set(frame["case_id"]))
    text = f"{len(frame):,} slide{'s' * (len(frame) != 1)} of {cases:,} patient{'s' * (cases != 1)}"
    return text + (f", {unlabelled:,} without label" if unlabelled else "")


def _grids(kind: str, frame: pd.DataFrame, table: PredictionTable | None) -> list[Grid]:
    if table is not None:
        return _class_grid(table.labelled())
    if kind == "segmentation":
        return [_dice_grid(frame)]
    return []


def _class_grid(labelled: PredictionTable) -> list[Grid]:
    if not labelled.num_slides:
        return []
    never_warn: Any = 0.0
    by_class: Any = precision_recall_fscore_support(
        labelled.true_index, labelled.predicted_index, labels=np.arange(len(labelled.class_names)),
        zero_division=never_warn,
    )  # fmt: skip
    precision, recall, f1, slides = by_class
    predicted = np.bincount(labelled.predicted_index, minlength=len(labelled.class_names))
    rows = [
        (
            name, str(slides[label]), str(predicted[label]),
            f"{recall[label]:.3f}" if slides[label] else "–",
            f"{precision[label]:.3f}" if predicted[label] else "–",
            f"{f1[label]:.3f}" if slides[label] or predicted[label] else "–",
        )
        for label, name in enumerate(labelled.class_names)
    ]  # fmt: skip
    header = ("Class", "Slides", "Predicted", "Sensitivity", "Positive predictive value", "F1")
    return [Grid("By class", header, rows)]


def _dice_grid(frame: pd.DataFrame) -> Grid:
    rows = []
    for name in segmented_classes(frame):
        by_slide = class_dice(frame, name)
        by_slide = by_slide[~np.isnan(by_slide)]
        sums = [
            frame[f"{kind}_{name}"].to_numpy(np.float64).sum(keepdims=True)
            for kind in ("hits", "false_alarms", "misses")
        ]
        mean, median = (f"{by_slide.mean():.3f}", f"{np.median(by_slide):.3f}") if len(by_slide) else ("–", "–")
        pooled = [float(figure(*sums)[0]) for figure in (dice, intersection_over_union)]
        rows.append((name, str(len(by_slide)), mean, median, *("–" if np.isnan(x) else f"{x:.3f}" for x in pooled)))
    header = ("Class", "Slides", "Mean Dice", "Median Dice", "Dice over all patches", "IoU over all patches")
    return Grid("By class", header, rows)


def _pictures(
    evaluation: Evaluation,
    frame: pd.DataFrame,
    table: PredictionTable | None,
    split: str,
    drawings: dict[str, Any],
) -> list[Picture]:
    figures: list[tuple[str, Figure | None]] = []
    title, cut = drawable(split), choose_risk_cut(evaluation.frame) if evaluation.kind == "survival" else None
    if table is not None:
        plain = with_drawable_classes(table)
        figures = [
            ("ROC curve", roc_figure(plain, title=f"ROC, {title}", **drawings)),
            ("Precision–recall curve", curves.precision_recall_figure(plain, title=f"Precision–recall, {title}")),
            ("Calibration curve", calibration_figure(plain, title=f"Calibration, {title}", level=drawings["level"])),
            ("Confusion matrix", confusion_figure(plain, title=f"Confusion, {title}")),
        ]
    elif cut is not None:
        figures = [("Kaplan–Meier curves", kaplan_meier_figure(frame, cut, title=f"Groups of predicted risk, {title}"))]
    elif evaluation.kind == "regression":
        figures = [
            ("Predicted against true values", curves.scatter_figure(frame, title=f"Predicted and true, {title}"))
        ]
    elif evaluation.kind == "segmentation":
        figures = [("Dice by slide", curves.dice_figure(frame, title=f"Dice by slide, {title}"))]
    return [
        Picture(name, svg_address(figure), f"{name} of the split {split}; the numbers are in the tables beside it")
        for name, figure in figures
        if figure is not None
    ]
