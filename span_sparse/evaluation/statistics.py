"""How good are the predicted classes of a table, and how sure is that?

1. Slides without label are left out and counted.
2. The figures of `span_sparse.metrics` are computed of the labelled slides.
3. A bootstrap over cases gives the percentile interval of each (`estimates.py`).

    auc, average_precision    two classes: of the last `prob_*` column; more: mean of one against the rest over the
                              classes that occur
    balanced_accuracy, f1     mean recall over the classes that occur; mean F1 over those that occur or are predicted
    accuracy, kappa           of `y_pred`; more than two classes also quadratic_kappa, for classes in the table's order
    brier, ece                of the probabilities; ece over 10 bins (`metrics/calibration.py`)
    sensitivity_at_95_specificity, specificity_at_95_sensitivity   two classes; the best point of these slides' own ROC
                              curve, so a little too good where slides are few
    threshold_accuracy, threshold_sensitivity, threshold_specificity   two classes; at the decision threshold chosen on
                              the slides of split val (`thresholds.py`), where there is one

Figures count slides; intervals draw patients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from span_sparse.evaluation.estimates import DEFAULT_RESAMPLES, Estimates, Interval, Measures, estimate
from span_sparse.evaluation.predictions import PredictionTable
from span_sparse.evaluation.thresholds import DecisionThreshold, choose_threshold
from span_sparse.metrics import agreement, calibration, ranking
from span_sparse.metrics.ranking import Floats

METRICS: Final = ("auc", "average_precision", "balanced_accuracy", "f1", "accuracy", "kappa", "brier", "ece")
"""Figures of every classification."""

OPERATING_POINT: Final = 0.95
_BINARY: Final = ("sensitivity_at_95_specificity", "specificity_at_95_sensitivity")
_AT_THRESHOLD: Final = ("threshold_accuracy", "threshold_sensitivity", "threshold_specificity")


@dataclass(frozen=True, slots=True)
class ClassificationMetrics:
    """Figures of one group of slides, usually a split.

    Attributes:
        values: each figure, or `None` with a note.
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
        threshold: the decision threshold behind `threshold_*`, None without one.
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
    threshold: DecisionThreshold | None = None

    @property
    def auc(self) -> float | None:
        """Area under the ROC curve; `None` when only one class occurs."""
        return self.values["auc"]

    @property
    def auc_ci(self) -> Interval | None:
        """Its interval."""
        return self.intervals["auc"]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON: `<metric>` and `<metric>_ci` of each figure, counts, classes, the bootstrap."""
        estimates = Estimates(self.values, self.intervals, self.notes, self.resamples, self.num_redrawn)
        classes = list(self.slides_per_class)
        return estimates.as_dict() | {
            "num_slides": self.num_slides,
            "num_cases": self.num_cases,
            "num_unlabelled": self.num_unlabelled,
            "classes": classes,
            "positive_class": classes[-1] if len(classes) == 2 else None,
            "slides_per_class": dict(self.slides_per_class),
            "decision_threshold": None if self.threshold is None else self.threshold.as_dict(),
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
    table: PredictionTable,
    *,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
    threshold: DecisionThreshold | None = None,
) -> ClassificationMetrics:
    """Figures and intervals of the labelled slides of a table, whatever their split.

    Args:
        table: predictions; unlabelled slides are left out and counted.
        resamples: drawings of cases; 0 for no intervals.
        seed: of the drawings.
        level: share of the drawings inside an interval, between 0 and 1.
        threshold: from which probability a slide counts as positive, for two classes; None leaves `threshold_*` out.

    Raises:
        ValueError: `resamples` negative or `level` not between 0 and 1.
    """
    labelled = table.labelled()
    threshold = threshold if len(table.class_names) == 2 else None
    estimates = estimate(classification_measures(labelled, threshold), resamples=resamples, seed=seed, level=level)
    counts = np.bincount(labelled.true_index, minlength=len(table.class_names)).tolist()
    return ClassificationMetrics(
        values=estimates.values,
        intervals=estimates.intervals,
        notes=estimates.notes,
        num_slides=labelled.num_slides,
        num_cases=len(np.unique(labelled.case_index)),
        num_unlabelled=table.num_slides - labelled.num_slides,
        slides_per_class=dict(zip(table.class_names, counts, strict=True)),
        resamples=estimates.resamples,
        num_redrawn=estimates.num_redrawn,
        seed=seed,
        level=level,
        threshold=threshold,
    )


def metrics_by_split(
    table: PredictionTable, *, resamples: int = DEFAULT_RESAMPLES, seed: int = 0, level: float = 0.95
) -> dict[str, dict[str, Any]]:
    """`{split: {...}}` with `ClassificationMetrics.as_dict` of each split, in order of first appearance.

    The decision threshold is chosen on the slides of split `val`, where there are some, and used for every split.
    """
    threshold = choose_threshold(table)
    return {
        split: classification_metrics(
            table.of_split(split), resamples=resamples, seed=seed, level=level, threshold=threshold
        ).as_dict()
        for split in table.splits
    }


def classification_measures(labelled: PredictionTable, threshold: DecisionThreshold | None = None) -> Measures:
    """What can be computed of slides that all have a label.

    Args:
        labelled: the slides.
        threshold: for `threshold_*`.
    """
    is_binary = len(labelled.class_names) == 2
    names = [*METRICS, *(_BINARY if is_binary else ("quadratic_kappa",)), *(_AT_THRESHOLD if threshold else ())]
    notes = _notes(labelled, names)
    true_index, predicted_index = labelled.true_index, labelled.predicted_index
    probabilities, areas_of, num_classes = labelled.probabilities, auc_classes(labelled), len(labelled.class_names)
    confidence, outcome = calibration.confidence_and_outcome(probabilities, true_index)
    brier = calibration.brier_terms(probabilities, true_index)

    def compute(weights: Floats) -> dict[str, Floats]:
        counts = [ranking.rank_counts(probabilities[:, one], true_index == one, weights) for one in areas_of]
        confusion = agreement.confusion_counts(true_index, predicted_index, num_classes, weights)
        values = {
            "balanced_accuracy": agreement.balanced_accuracy(confusion),
            "f1": agreement.macro_f1(confusion),
            "accuracy": agreement.accuracy(confusion),
            "kappa": agreement.kappa(confusion),
            "brier": ranking.weighted_mean(brier, weights),
            "ece": calibration.calibration_error(confidence, outcome, weights),
        }
        if counts:
            values["auc"] = np.mean([ranking.auc(one) for one in counts], axis=0)
            values["average_precision"] = np.mean([ranking.average_precision(one) for one in counts], axis=0)
        if counts and is_binary:
            values[_BINARY[0]] = ranking.sensitivity_at_specificity(counts[0], OPERATING_POINT)
            values[_BINARY[1]] = ranking.specificity_at_sensitivity(counts[0], OPERATING_POINT)
        if not is_binary:
            values["quadratic_kappa"] = agreement.kappa(confusion, "quadratic")
        if threshold:
            above = (probabilities[:, 1] >= threshold.value).astype(np.int64)
            decided = agreement.confusion_counts(true_index, above, 2, weights)
            both = (agreement.accuracy(decided), *agreement.sensitivity_specificity(decided))
            values |= dict(zip(_AT_THRESHOLD, both, strict=True))
        return values

    return Measures(tuple(names), compute, labelled.case_index, true_index, notes)


def auc_classes(labelled: PredictionTable) -> list[int]:
    """Classes whose one-against-the-rest areas make up the AUC: the last of two, else all that occur, if several do."""
    occurring = np.unique(labelled.true_index).tolist()
    if len(occurring) < 2:
        return []
    return [1] if len(labelled.class_names) == 2 else occurring


def reliability_table(table: PredictionTable) -> pd.DataFrame:
    """Predicted against observed shares of the labelled slides, in the bins of the ECE.

    Of two classes: of the probability of the second one. Of more: of the highest probability, against how often that
    class is right.

    Args:
        table: predictions; unlabelled slides are left out.

    Returns:
        A row for each of the 10 bins: `low, high` (its edges), `num_slides, mean_predicted, observed`; NaN in the last
        two where the bin is empty.
    """
    labelled = table.labelled()
    confidence, outcome = calibration.confidence_and_outcome(labelled.probabilities, labelled.true_index)
    place, num_bins = calibration.bin_of(confidence), calibration.NUM_BINS
    slides = np.bincount(place, minlength=num_bins)
    return pd.DataFrame(
        {
            "low": np.arange(num_bins) / num_bins,
            "high": np.arange(1, num_bins + 1) / num_bins,
            "num_slides": slides,
            "mean_predicted": ranking.ratio(np.bincount(place, weights=confidence, minlength=num_bins), slides),
            "observed": ranking.ratio(np.bincount(place, weights=outcome, minlength=num_bins), slides),
        }
    )


def _notes(labelled: PredictionTable, names: list[str]) -> dict[str, str]:
    """Why figures are None, or rest on fewer classes than the table has."""
    if not labelled.num_slides:
        return dict.fromkeys(names, "no labelled slides")
    occurring = np.unique(labelled.true_index)
    if len(occurring) == 1:
        name = labelled.class_names[occurring[0]]
        dependent = [name for name in names if name in ("auc", "average_precision", *_BINARY)]
        return {one: f"only class {name!r} occurs; an AUC needs two" for one in dependent}
    if len(occurring) < len(labelled.class_names):
        absent = [name for label, name in enumerate(labelled.class_names) if label not in occurring]
        return {"auc": f"mean over the {len(occurring)} classes that occur; without {', '.join(absent)}"}
    return {}
