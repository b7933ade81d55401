"""What is computed of the predictions of a task that is not a classification?

Classification has its own module (`statistics.py`). Of the other tasks a table has `slide_id, case_id, fold, split`,

    survival      risk, time, event    c_index (Harrell), c_index_uno, auc_at_<time>; with survival_<time> also
                                       brier_at_<time>, integrated_brier. By case: means over a case's slides
    regression    y_true, y_pred       mae, r2, pearson by case: means over a case's slides
    multi_label   true_<name>, prob_<name>      auc, average_precision, brier: means over the questions that have both
                                                answers; auc_<name>
    segmentation  hits_, false_alarms_, misses_<class>   dice, iou: means over slides; pooled_dice, pooled_iou: over
                                                all patches; means over the classes

The times of AUC(t) and Brier(t) are those of the columns survival_<time>, else the quartiles of the event times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from span_sparse.evaluation.estimates import Measures
from span_sparse.metrics import dice, intersection_over_union
from span_sparse.metrics.calibration import brier_terms
from span_sparse.metrics.censoring import censoring_curve
from span_sparse.metrics.ranking import Floats, auc, average_precision, rank_counts, ratio, weighted_mean
from span_sparse.metrics.survival import auc_at, brier_at, concordance, mean_over_time

SURVIVAL_PREFIX: Final = "survival_"
_QUARTILES: Final = (0.25, 0.5, 0.75)


def survival_cases(frame: pd.DataFrame) -> pd.DataFrame:
    """`time, event, risk` and `survival_<time>` of every case whose outcome is known: means over its slides."""
    columns = ["time", "event", "risk", *(SURVIVAL_PREFIX + name for name in suffixes(frame, SURVIVAL_PREFIX))]
    return _case_means(frame, columns)


def _survival(frame: pd.DataFrame) -> Measures:
    cases = survival_cases(frame)
    time, event, risk = (cases[name].to_numpy(np.float64) for name in ("time", "event", "risk"))
    seen = event == 1
    names = suffixes(frame, SURVIVAL_PREFIX)
    moments = np.sort(np.array([float(name) for name in names]))
    curves = cases[[SURVIVAL_PREFIX + name for name in sorted(names, key=float)]].to_numpy(np.float64)
    notes = {"c_index_uno": "weighted by the chance not to be censored, estimated from these cases; no time limit"}
    has_curves = len(moments) > 0
    if not has_curves:
        moments = np.unique(np.quantile(time[seen], _QUARTILES)) if seen.any() else moments
        notes["brier"] = "the model gives risks and no survival curves, so no Brier scores"

    def compute(weights: Floats) -> dict[str, Floats]:
        censoring = censoring_curve(time, seen, weights)
        values = {
            "c_index": concordance(time, seen, risk, weights),
            "c_index_uno": concordance(time, seen, risk, weights, censoring),
        }
        for moment in moments:
            values[f"auc_at_{moment:g}"] = auc_at(time, seen, risk, moment, weights, censoring)
        if has_curves:
            scores = [
                brier_at(time, seen, curve, moment, weights, censoring)
                for curve, moment in zip(curves.T, moments, strict=True)
            ]
            values |= {f"brier_at_{moment:g}": score for moment, score in zip(moments, scores, strict=True)}
            if len(moments) > 1:
                values["integrated_brier"] = mean_over_time(np.stack(scores, axis=1), moments)
        return values

    names_of_figures = ["c_index", "c_index_uno", *(f"auc_at_{moment:g}" for moment in moments)]
    if has_curves:
        names_of_figures += [f"brier_at_{moment:g}" for moment in moments]
        names_of_figures += ["integrated_brier"] * (len(moments) > 1)
    return _of_cases(names_of_figures, compute, len(cases), notes)


def _regression(frame: pd.DataFrame) -> Measures:
    cases = _case_means(frame, ["y_true", "y_pred"])
    true, predicted = cases["y_true"].to_numpy(np.float64), cases["y_pred"].to_numpy(np.float64)
    centre = true.mean() if len(true) else 0.0
    true, predicted = true - centre, predicted - centre  # moments of numbers far from 0 lose their digits

    def compute(weights: Floats) -> dict[str, Floats]:
        spread, other = _variance(true, weights), _variance(predicted, weights)
        product = weighted_mean(true, weights) * weighted_mean(predicted, weights)
        covariance = weighted_mean(true * predicted, weights) - product
        return {
            "mae": weighted_mean(np.abs(true - predicted), weights),
            "r2": 1.0 - ratio(weighted_mean((true - predicted) ** 2, weights), spread),
            "pearson": ratio(covariance, np.sqrt(spread * other)),
        }

    return _of_cases(["mae", "r2", "pearson"], compute, len(cases))


def _variance(values: Floats, weights: Floats) -> Floats:
    """0 where all values of a drawing are the same but for rounding."""
    found = weighted_mean(values**2, weights) - weighted_mean(values, weights) ** 2
    return np.where(found > 1e-12 * float(np.square(values).max(initial=0.0)), found, 0.0)


def _multi_label(frame: pd.DataFrame) -> Measures:
    questions = suffixes(frame, "true_")
    true = {name: frame[f"true_{name}"].to_numpy(np.float64) for name in questions}
    score = {name: frame[f"prob_{name}"].to_numpy(np.float64) for name in questions}

    def compute(weights: Floats) -> dict[str, Floats]:
        areas, precisions, briers = {}, [], []
        for name in questions:
            known = ~np.isnan(true[name])
            positive, chance = true[name][known] == 1, score[name][known]
            counts = rank_counts(chance, positive, weights[:, known])
            areas[name] = auc(counts)
            precisions.append(np.where(np.isnan(areas[name]), np.nan, average_precision(counts)))
            both = np.stack([1 - chance, chance], axis=1)
            briers.append(weighted_mean(brier_terms(both, positive.astype(np.int64)), weights[:, known]))
        means = {"auc": list(areas.values()), "average_precision": precisions, "brier": briers}
        return {name: _mean_of_known(values) for name, values in means.items()} | {
            f"auc_{name}": area for name, area in areas.items()
        }

    names = ["auc", "average_precision", "brier", *(f"auc_{name}" for name in questions)]
    return _of_slides(names, compute, frame)


def _segmentation(frame: pd.DataFrame) -> Measures:
    kinds = ("hits", "false_alarms", "misses")
    counts = [
        np.stack([frame[f"{kind}_{name}"].to_numpy(np.float64) for kind in kinds]) for name in suffixes(frame, "hits_")
    ]  # (kinds, slides) of every class

    def compute(weights: Floats) -> dict[str, Floats]:
        values: dict[str, Floats] = {}
        for name, agreement in (("dice", dice), ("iou", intersection_over_union)):
            by_slide = np.stack([agreement(*of_class) for of_class in counts])  # (classes, slides)
            known = ~np.isnan(by_slide)
            sums = (np.nan_to_num(by_slide).sum(axis=0), known.sum(axis=0).astype(np.float64))
            values[name] = ratio(weights @ sums[0], weights @ sums[1])
            values[f"pooled_{name}"] = _mean_of_known([agreement(*(weights @ of_class.T).T) for of_class in counts])
        return values

    return _of_slides(["dice", "iou", "pooled_dice", "pooled_iou"], compute, frame)


MEASURES: Final[dict[str, Callable[[pd.DataFrame], Measures]]] = {
    "survival": _survival,
    "regression": _regression,
    "multi_label": _multi_label,
    "segmentation": _segmentation,
}
"""By kind of task."""


def is_labelled(frame: pd.DataFrame, kind: str) -> NDArray[np.bool_]:
    """Whether anything is known of each slide, `[slides]`."""
    columns = {
        "survival": ["time", "event"],
        "regression": ["y_true"],
        "multi_label": [f"true_{name}" for name in suffixes(frame, "true_")],
    }
    if kind == "segmentation":
        counts = [name for name in frame.columns if name.startswith(("hits_", "false_alarms_", "misses_"))]
        return (frame[counts].fillna(0).sum(axis=1) > 0).to_numpy(dtype=bool)
    known = frame[columns[kind]].notna().to_numpy(dtype=bool)
    return known.any(axis=1) if kind == "multi_label" else known.all(axis=1)


def suffixes(frame: pd.DataFrame, prefix: str) -> list[str]:
    """What follows a prefix in the names of the columns."""
    return [name.removeprefix(prefix) for name in map(str, frame.columns) if name.startswith(prefix)]


def _case_means(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Means over the slides of each case that have all of the columns, in order of first appearance."""
    grouped: Any = frame.dropna(subset=columns).astype(dict.fromkeys(columns, np.float64))
    return grouped.groupby("case_id", sort=False)[columns].mean()


def _mean_of_known(values: list[Floats]) -> Floats:
    """Mean over the figures that a drawing has, `[drawings]`."""
    stacked = np.stack(values)
    return ratio(np.nansum(stacked, axis=0), (~np.isnan(stacked)).sum(axis=0))


def _of_cases(names: list[str], compute: Any, num_cases: int, notes: dict[str, str] | None = None) -> Measures:
    cases = np.arange(num_cases)
    return Measures(tuple(names), compute, cases, np.zeros_like(cases), notes or {})


def _of_slides(names: list[str], compute: Any, frame: pd.DataFrame) -> Measures:
    codes = pd.factorize(frame["case_id"])[0].astype(np.int64)
    return Measures(tuple(names), compute, codes, np.zeros_like(codes))
