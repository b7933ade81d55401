"""How wrong is the prediction of each slide, so that the worst can be looked at first?

    classification  1 − probability of the true class
    multi_label     largest |answer − probability| over the questions with an answer
    regression      |true − predicted|
    survival        share of the comparable pairs with this case that the risks order wrongly, by Harrell's rule: a pair
                    is comparable when the earlier of the two times is an event; equal risks count half
    segmentation    1 − mean Dice over the classes

NaN where nothing is known to compare with. The numbers rank slides within one task; they are not figures of a model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from span_sparse.metrics import dice
from span_sparse.report.evaluation_folder import Evaluation


def slide_errors(evaluation: Evaluation) -> NDArray[np.float64]:
    """The error of each row of the table, `[slides]`; NaN without a label."""
    frame = evaluation.frame
    if evaluation.table is not None:
        true, probabilities = evaluation.table.true_index, evaluation.table.probabilities
        errors = 1.0 - probabilities[np.arange(len(true)), np.maximum(true, 0)]
        return np.where(true >= 0, np.maximum(errors, 0.0), np.nan)
    if evaluation.kind == "regression":
        return np.abs(frame["y_true"].to_numpy() - frame["y_pred"].to_numpy())
    if evaluation.kind == "multi_label":
        names = [name.removeprefix("true_") for name in frame.columns if name.startswith("true_")]
        return _largest([np.abs(frame[f"true_{name}"] - frame[f"prob_{name}"]).to_numpy() for name in names])
    if evaluation.kind == "segmentation":
        return 1.0 - mean_dice(frame)
    errors = np.full(len(frame), np.nan)
    for rows in frame.groupby("split", sort=False).indices.values():
        errors[rows] = _discordance(frame.iloc[rows])
    return errors


def mean_dice(frame: pd.DataFrame) -> NDArray[np.float64]:
    """Dice of each slide, the mean over the classes that occur or are predicted, `[slides]`; NaN without any."""
    by_class = np.stack([class_dice(frame, name) for name in segmented_classes(frame)])
    known = ~np.isnan(by_class)
    sums, counts = np.where(known, by_class, 0.0).sum(axis=0), known.sum(axis=0)
    return np.divide(sums, counts, out=np.full(len(frame), np.nan), where=counts > 0)


def class_dice(frame: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """Dice of one class on each slide, `[slides]`; NaN where the class neither occurs nor is predicted."""
    counts = [frame[f"{kind}_{name}"].to_numpy(np.float64) for kind in ("hits", "false_alarms", "misses")]
    return np.asarray(dice(*counts), dtype=np.float64)


def segmented_classes(frame: pd.DataFrame) -> list[str]:
    """Classes of a table of segmentations."""
    return [name.removeprefix("hits_") for name in frame.columns if name.startswith("hits_")]


def _largest(parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    stacked = np.stack(parts)
    known = ~np.isnan(stacked)
    return np.where(known.any(axis=0), np.where(known, stacked, -1.0).max(axis=0), np.nan)


def _discordance(frame: pd.DataFrame) -> NDArray[np.float64]:
    """By row, so that memory grows with the cases and not with their pairs."""
    time, event, risk = (frame[name].to_numpy(dtype=np.float64) for name in ("time", "event", "risk"))
    known = ~(np.isnan(time) | np.isnan(event) | np.isnan(risk))
    case = pd.factorize(frame["case_id"])[0]
    errors = np.full(len(frame), np.nan)
    for row in np.flatnonzero(known):
        others = known & (case != case[row])
        first = others & (event[row] == 1) & (time > time[row])
        second = others & (event == 1) & (time < time[row])
        num_pairs = int(first.sum() + second.sum())
        if num_pairs:
            wrong = (risk[first] > risk[row]).sum() + (risk[second] < risk[row]).sum()
            ties = (risk[first | second] == risk[row]).sum()
            errors[row] = (wrong + ties / 2) / num_pairs
    return errors


def outcome_texts(evaluation: Evaluation) -> list[tuple[str, str]]:
    """What is true of each slide and what was predicted, in words."""
    return [_outcome_text(evaluation, row) for row in evaluation.frame.to_dict("records")]


def is_wrong(evaluation: Evaluation) -> NDArray[np.bool_]:
    """Whether a slide's class was predicted wrongly, `[slides]`; False for tasks without classes."""
    if evaluation.table is None:
        return np.zeros(len(evaluation.frame), dtype=bool)
    true = evaluation.table.true_index
    return (true >= 0) & (true != evaluation.table.predicted_index)


def _outcome_text(evaluation: Evaluation, row: dict[Any, Any]) -> tuple[str, str]:
    if evaluation.kind == "classification":
        return row["y_true"], f"{row['y_pred']} ({row['prob_' + row['y_pred']]:.3f})"
    if evaluation.kind == "regression":
        return _number(row["y_true"]), _number(row["y_pred"])
    if evaluation.kind == "survival":
        ended = {1.0: "event at ", 0.0: "censored at "}.get(row["event"], "")
        return ended and ended + _number(row["time"]), f"risk {_number(row['risk'])}"
    if evaluation.kind == "multi_label":
        names = [name.removeprefix("true_") for name in row if name.startswith("true_")]
        answers = [f"{name}: {_number(row[f'true_{name}'])}" for name in names]
        return ", ".join(answers), ", ".join(f"{name}: {_number(row[f'prob_{name}'])}" for name in names)
    classes = [name.removeprefix("hits_") for name in row if name.startswith("hits_")]
    annotated = [name for name in classes if row[f"hits_{name}"] + row[f"misses_{name}"] > 0]
    found = [name for name in classes if row[f"hits_{name}"] + row[f"false_alarms_{name}"] > 0]
    return ", ".join(annotated), ", ".join(found)


def _number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4g}"
