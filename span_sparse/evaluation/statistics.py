"""How good are the predictions of a table, and how sure is that?

1. Slides without label are left out and counted.
2. scikit-learn computes AUC, balanced accuracy, macro F1 and accuracy of the labelled slides.
3. A bootstrap over cases gives the percentile interval of each (`bootstrap.py`).

The AUC of two classes takes the last `prob_*` column as the positive class. Of more classes it is the mean of the
one-against-the-rest areas over the classes that occur. Balanced accuracy is the mean recall over the classes that
occur; macro F1 the mean over the classes that occur or are predicted. Figures count slides; intervals draw patients.

What cannot be computed is `None`, with the reason in `notes`: a fold with one class is an ordinary thing in a rare
disease and must not end a report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, recall_score, roc_auc_score

from span_sparse.evaluation import bootstrap
from span_sparse.evaluation.predictions import PredictionTable

DEFAULT_RESAMPLES: Final = 2000
METRICS: Final = ("auc", "balanced_accuracy", "f1", "accuracy")

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ClassificationMetrics:
    """Figures of one group of slides, usually a split.

    Attributes:
        values: each of `METRICS`, in [0, 1], or `None` with a note.
        intervals: percentile interval of each, or `None` with a note under `<metric>_ci`.
        notes: why something is `None`, or what to mind.
        num_slides: labelled slides, on which everything rests.
        num_cases: their cases.
        num_unlabelled: slides left out.
        slides_per_class: labelled slides of each class, in the order of the table's classes.
        resamples: drawings behind the intervals, 0 when there are none.
        num_redrawn: further drawings that lacked a class.
        seed: of the drawings.
        level: share of the drawings inside an interval.
    """

    values: dict[str, float | None]
    intervals: dict[str, Interval | None]
    notes: dict[str, str]
    num_slides: int
    num_cases: int
    num_unlabelled: int
    slides_per_class: dict[str, int]
    resamples: int
    num_redrawn: int
    seed: int
    level: float

    @property
    def auc(self) -> float | None:
        """Area under the ROC curve; `None` when only one class occurs."""
        return self.values["auc"]

    @property
    def auc_ci(self) -> Interval | None:
        """Its interval."""
        return self.intervals["auc"]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON: `<metric>` and `<metric>_ci` of each of `METRICS`, counts, classes, the bootstrap."""
        flat: dict[str, Any] = {}
        for metric in METRICS:
            interval = self.intervals[metric]
            flat[metric] = self.values[metric]
            flat[f"{metric}_ci"] = None if interval is None else list(interval)
        classes = list(self.slides_per_class)
        return flat | {
            "num_slides": self.num_slides,
            "num_cases": self.num_cases,
            "num_unlabelled": self.num_unlabelled,
            "classes": classes,
            "positive_class": classes[-1] if len(classes) == 2 else None,
            "slides_per_class": dict(self.slides_per_class),
            "bootstrap": {
                "unit": "case_id",
                "resamples": self.resamples,
                "redrawn": self.num_redrawn,
                "seed": self.seed,
                "level": self.level,
            },
            "notes": dict(self.notes),
        }


def classification_metrics(
    table: PredictionTable, *, resamples: int = DEFAULT_RESAMPLES, seed: int = 0, level: float = 0.95
) -> ClassificationMetrics:
    """Figures and intervals of the labelled slides of a table, whatever their split.

    Args:
        table: predictions; unlabelled slides are left out and counted.
        resamples: drawings of cases; 0 for no intervals.
        seed: of the drawings.
        level: share of the drawings inside an interval, between 0 and 1.

    Raises:
        ValueError: `resamples` negative or `level` not between 0 and 1.
    """
    if resamples < 0 or not 0 < level < 1:
        raise ValueError(f"expected resamples >= 0 and 0 < level < 1, got {resamples} and {level}")
    labelled = table.labelled()
    true_index, case_index = labelled.true_index, labelled.case_index
    values, notes = _values(labelled)
    intervals: dict[str, Interval | None] = dict.fromkeys(METRICS)
    num_redrawn = used = 0
    reason = "no intervals were asked for" if resamples == 0 else "no labelled slides"
    if resamples and labelled.num_slides:
        reason = bootstrap.why_not(true_index, case_index)
    if reason is None:
        drawn = bootstrap.draw_cases(true_index, case_index, resamples=resamples, seed=seed)
        num_redrawn, used = drawn.num_redrawn, resamples
        for metric, drawings in resampled_metrics(labelled, drawn.slide_weights).items():
            intervals[metric] = bootstrap.percentile_interval(drawings, level)
    for metric in METRICS:
        interval = intervals[metric]
        if interval is None:
            notes[f"{metric}_ci"] = reason or notes[metric]
        elif interval[0] == interval[1]:
            notes[f"{metric}_ci"] = "every drawing gave the same value: the interval has no width and says too much"
    counts = np.bincount(true_index, minlength=len(table.class_names)).tolist()
    return ClassificationMetrics(
        values=values,
        intervals=intervals,
        notes=notes,
        num_slides=labelled.num_slides,
        num_cases=len(np.unique(case_index)),
        num_unlabelled=table.num_slides - labelled.num_slides,
        slides_per_class=dict(zip(table.class_names, counts, strict=True)),
        resamples=used,
        num_redrawn=num_redrawn,
        seed=seed,
        level=level,
    )


def metrics_by_split(
    table: PredictionTable, *, resamples: int = DEFAULT_RESAMPLES, seed: int = 0, level: float = 0.95
) -> dict[str, dict[str, Any]]:
    """`{split: {...}}` with `ClassificationMetrics.as_dict` of each split, in order of first appearance."""
    return {
        split: classification_metrics(table.of_split(split), resamples=resamples, seed=seed, level=level).as_dict()
        for split in table.splits
    }


def resampled_metrics(labelled: PredictionTable, slide_weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Each of `METRICS` that can be computed, for every drawing.

    Args:
        labelled: slides, all with a label.
        slide_weights: `[resamples, slides]`; every row has every class that occurs.

    Returns:
        `[resamples]` for each metric; without `auc` when only one class occurs.
    """
    true_index = labelled.true_index
    confusion = bootstrap.weighted_confusion(
        true_index, labelled.predicted_index, len(labelled.class_names), slide_weights
    )
    drawings = {
        "balanced_accuracy": bootstrap.balanced_accuracies(confusion),
        "f1": bootstrap.macro_f1(confusion),
        "accuracy": bootstrap.accuracies(confusion),
    }
    areas = [
        bootstrap.weighted_auc(labelled.probabilities[:, label], true_index == label, slide_weights)
        for label in auc_classes(labelled)
    ]
    return drawings | ({"auc": np.mean(areas, axis=0)} if areas else {})


def auc_classes(labelled: PredictionTable) -> list[int]:
    """Classes whose one-against-the-rest areas make up the AUC: the last of two, else all that occur, if several do."""
    occurring = np.unique(labelled.true_index).tolist()
    if len(occurring) < 2:
        return []
    return [1] if len(labelled.class_names) == 2 else occurring


def _values(labelled: PredictionTable) -> tuple[dict[str, float | None], dict[str, str]]:
    """The figures, and notes on those that are `None` or rest on fewer classes than the table has."""
    if not labelled.num_slides:
        return dict.fromkeys(METRICS), dict.fromkeys(METRICS, "no labelled slides")
    true_index, predicted_index = labelled.true_index, labelled.predicted_index
    occurring = np.unique(true_index)
    notes = {}
    areas = [
        float(roc_auc_score(true_index == label, labelled.probabilities[:, label])) for label in auc_classes(labelled)
    ]
    if not areas:
        notes["auc"] = f"only class {labelled.class_names[occurring[0]]!r} occurs; an AUC needs two"
    elif len(occurring) < len(labelled.class_names):
        absent = [name for label, name in enumerate(labelled.class_names) if label not in occurring]
        notes["auc"] = f"mean over the {len(occurring)} classes that occur; without {', '.join(absent)}"
    never_warn: Any = 0.0  # the stubs know only the name of the default, which warns
    values: dict[str, float | None] = {
        "auc": float(np.mean(areas)) if areas else None,
        "balanced_accuracy": float(
            recall_score(true_index, predicted_index, labels=occurring, average="macro", zero_division=never_warn)
        ),
        "f1": float(f1_score(true_index, predicted_index, average="macro", zero_division=never_warn)),
        "accuracy": float(accuracy_score(true_index, predicted_index)),
    }
    return values, notes
