"""How good are predicted risks, numbers, answers or segmented patches? Figures, with intervals by patient.

Classification has its own module (`statistics.py`). Of the other tasks a table has `slide_id, case_id, fold, split`,

    survival      risk, time, event             c_index: Harrell's C by case, the mean risk of a case's slides
    regression    y_true, y_pred                mae, r2, pearson by case, means of a case's slides
    multi_label   true_<name>, prob_<name>      auc: mean over the questions that have both answers; auc_<name>
    segmentation  hits_, false_alarms_, misses_<class>   dice, pooled_dice, pooled_iou: means over the classes

Intervals: percentiles of drawings of cases with replacement, as in `bootstrap.py`; a drawing on which a figure cannot
be computed is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import mean_absolute_error, r2_score, roc_auc_score

from span_sparse.evaluation.bootstrap import MIN_CASES, percentile_interval
from span_sparse.evaluation.predictions import parse_predictions
from span_sparse.evaluation.report import METRICS_FILE, PREDICTIONS, EvaluationFiles, remove_stale, write_evaluation
from span_sparse.evaluation.statistics import DEFAULT_RESAMPLES
from span_sparse.files import write_atomically
from span_sparse.metrics import concordance_index, dice, intersection_over_union

Figures = dict[str, float]


def _survival(frame: pd.DataFrame) -> Figures:
    time, event, risk = _case_means(frame, ["time", "event", "risk"])
    return {"c_index": concordance_index(time, event == 1, risk)}


def _regression(frame: pd.DataFrame) -> Figures:
    true, predicted = _case_means(frame, ["y_true", "y_pred"])
    if not len(true):
        return dict.fromkeys(("mae", "r2", "pearson"), np.nan)
    varied = len(np.unique(true)) > 1
    both = varied and len(np.unique(predicted)) > 1
    return {
        "mae": float(mean_absolute_error(true, predicted)),
        "r2": float(r2_score(true, predicted)) if varied else np.nan,
        "pearson": float(np.corrcoef(true, predicted)[0, 1]) if both else np.nan,
    }


def _case_means(frame: pd.DataFrame, columns: list[str]) -> NDArray[np.float64]:
    """Means over the slides of each case that have all of the columns, `[columns, cases]`."""
    grouped: Any = frame.dropna(subset=columns).groupby("case_id", sort=False)
    return grouped[columns].mean().to_numpy(dtype=np.float64).T


def _multi_label(frame: pd.DataFrame) -> Figures:
    areas: Figures = {}
    for name in _suffixes(frame, "true_"):
        known = frame[f"true_{name}"].notna()
        true = frame.loc[known, f"true_{name}"].to_numpy(np.float64)
        both = len(np.unique(true)) == 2
        areas[name] = float(roc_auc_score(true, frame.loc[known, f"prob_{name}"])) if both else np.nan
    possible = [area for area in areas.values() if not np.isnan(area)]
    mean = float(np.mean(possible)) if possible else np.nan
    return {"auc": mean} | {f"auc_{name}": area for name, area in areas.items()}


def _segmentation(frame: pd.DataFrame) -> Figures:
    by_slide: list[float] = []
    pooled: list[tuple[float, float]] = []
    for name in _suffixes(frame, "hits_"):
        counts = [frame[f"{kind}_{name}"].to_numpy(np.float64) for kind in ("hits", "false_alarms", "misses")]
        by_slide += [value for value in dice(*counts).tolist() if not np.isnan(value)]
        sums = [column.sum(keepdims=True) for column in counts]
        pooled.append((float(dice(*sums)[0]), float(intersection_over_union(*sums)[0])))
    values = np.array(pooled)
    mean = np.nan if np.isnan(values).all() else np.nanmean(values, axis=0)
    overall = np.broadcast_to(mean, 2)
    return {
        "dice": float(np.mean(by_slide)) if by_slide else np.nan,
        "pooled_dice": float(overall[0]),
        "pooled_iou": float(overall[1]),
    }


def _suffixes(frame: pd.DataFrame, prefix: str) -> list[str]:
    return [name.removeprefix(prefix) for name in frame.columns if name.startswith(prefix)]


FIGURES: Final[dict[str, Callable[[pd.DataFrame], Figures]]] = {
    "survival": _survival,
    "regression": _regression,
    "multi_label": _multi_label,
    "segmentation": _segmentation,
}
"""What is computed of a table, by kind of task; NaN where it cannot be."""


def score_table(
    frame: pd.DataFrame, kind: str, *, resamples: int = DEFAULT_RESAMPLES, seed: int = 0, level: float = 0.95
) -> dict[str, Any]:
    """Figures of a table with intervals: `<name>`, `<name>_ci` (None where there is none), counts, the bootstrap.

    Args:
        frame: see the module's docstring.
        kind: of the task.
        resamples: drawings of cases; 0 for no intervals.
        seed: of the drawings.
        level: share of the drawings inside an interval.
    """
    compute = FIGURES[kind]
    values = compute(frame)
    rows_of_case = [np.asarray(rows) for rows in frame.groupby("case_id", sort=False).indices.values()]
    generator = np.random.default_rng(seed)
    enough = len(rows_of_case) >= MIN_CASES
    drawings = [compute(_drawn(frame, rows_of_case, generator)) for _ in range(resamples if enough else 0)]
    scores: dict[str, Any] = {}
    for name, value in values.items():
        found = np.array([drawing[name] for drawing in drawings if not np.isnan(drawing[name])])
        is_known = not np.isnan(value)
        scores[name] = value if is_known else None
        scores[f"{name}_ci"] = list(percentile_interval(found, level)) if is_known and len(found) else None
    return scores | {
        "num_slides": len(frame),
        "num_cases": len(rows_of_case),
        "bootstrap": {"unit": "case_id", "resamples": len(drawings), "seed": seed, "level": level},
    }


def _drawn(frame: pd.DataFrame, rows_of_case: list[NDArray[np.intp]], generator: np.random.Generator) -> pd.DataFrame:
    """As many cases as there are, drawn with replacement; one drawn twice is two cases."""
    chosen = generator.integers(len(rows_of_case), size=len(rows_of_case))
    rows = np.concatenate([rows_of_case[case] for case in chosen])
    drawn = frame.iloc[rows].reset_index(drop=True)
    drawn["case_id"] = np.repeat(np.arange(len(chosen)), [len(rows_of_case[case]) for case in chosen])
    return drawn


def write_results(
    output_dir: Path,
    frame: pd.DataFrame,
    kind: str,
    *,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
    about: Mapping[str, Any] | None = None,
) -> EvaluationFiles:
    """Write the predictions of a task of any kind and their figures; pictures too for a classification.

    Args:
        output_dir: created when absent; files of an earlier evaluation are replaced.
        frame: see the module's docstring, or `predictions.py` for a classification.
        kind: of the task.
        resamples: drawings of patients behind the intervals.
        seed: of the drawings.
        about: further entries of `metrics.json`.

    Raises:
        PredictionTableError: the table of a classification breaks its contract.
        OSError: the folder cannot be written.
    """
    if kind not in FIGURES:
        table = parse_predictions(frame, source=str(output_dir / PREDICTIONS))
        return write_evaluation(output_dir, table, resamples=resamples, seed=seed, about=about)
    (output_dir / METRICS_FILE).unlink(missing_ok=True)
    write_atomically(output_dir / PREDICTIONS, frame.to_csv(index=False, lineterminator="\n").encode())
    remove_stale(output_dir, [])
    metrics = {
        str(split): score_table(rows.reset_index(drop=True), kind, resamples=resamples, seed=seed)
        for split, rows in frame.groupby("split", sort=False)
    }
    text = json.dumps({**metrics, **(about or {})}, indent=2, allow_nan=False, ensure_ascii=False)
    write_atomically(output_dir / METRICS_FILE, f"{text}\n".encode())
    return EvaluationFiles(output_dir, (output_dir / PREDICTIONS, output_dir / METRICS_FILE), metrics, ())
