"""What do several models say together?

    classification   mean of the probabilities; the class with the highest mean
    multi_label      mean of the probabilities
    regression       mean of the predictions
    segmentation     mean of the probabilities of each patch, which the models' tables do not hold: whoever runs the
                     models averages them (`span_sparse.training.ensemble`)
    survival         mean of the risks: of `−Σ_t S_t` for hazards in bins, of the log relative hazards for Cox, whose
                     unknown offsets shift all patients alike. Survival curves: mean, where all have the same times

Votes, or the mean of ranks, would make the answer for a slide depend on which other slides were asked about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd

from span_sparse.evaluation.measures import SURVIVAL_PREFIX
from span_sparse.evaluation.predictions import PROBABILITY_PREFIX, Y_PRED

RULES: Final = {
    "classification": "mean of the probabilities",
    "multi_label": "mean of the probabilities",
    "regression": "mean of the predictions",
    "survival": "mean of the risks; mean of the survival curves where their times are the same",
    "segmentation": "mean of the probabilities of each patch; mean of the decision thresholds",
}
"""By kind of task."""


def mean_prediction(members: Sequence[pd.DataFrame], kind: str) -> pd.DataFrame:
    """The table of an ensemble.

    Args:
        members: tables of the same slides in the same order, by each model.
        kind: of the task.

    Raises:
        KeyError: a kind that is not averaged over tables.
    """
    first = members[0]
    averaged = {
        "classification": (PROBABILITY_PREFIX,),
        "multi_label": (PROBABILITY_PREFIX,),
        "regression": (Y_PRED,),
        "survival": ("risk", SURVIVAL_PREFIX),
    }[kind]
    columns = {}
    for name in map(str, first.columns):
        if not name.startswith(averaged):
            columns[name] = first[name]
        elif all(name in member for member in members):
            columns[name] = np.mean([member[name].to_numpy(np.float64) for member in members], axis=0)
    table = pd.DataFrame(columns)
    if kind == "classification":
        names = [name for name in columns if name.startswith(PROBABILITY_PREFIX)]
        best = table[names].to_numpy(np.float64).argmax(axis=1)
        table[Y_PRED] = [names[index].removeprefix(PROBABILITY_PREFIX) for index in best]
    return table
