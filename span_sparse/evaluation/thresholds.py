"""Which cut turns a score into a decision, without a look at the slides it will be judged on?

* `DecisionThreshold`: the probability of the second of two classes from which a slide counts as positive: the one with
  the highest Youden index (sensitivity + specificity − 1; Youden, Cancer 3, 1950) on the slides of split `val`.
* `RiskCut`: the risk above which a case counts as of high risk: the median of the cases of split `val`, else `train`.

A cut chosen on the test split fits its noise: sensitivity and specificity, and the log-rank p of two groups, come out
better than they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from span_sparse.evaluation.measures import survival_cases
from span_sparse.evaluation.predictions import PredictionTable
from span_sparse.metrics.ranking import rank_counts

CHOSEN_ON: Final = "val"


@dataclass(frozen=True, slots=True)
class DecisionThreshold:
    """A threshold and where it comes from.

    Attributes:
        value: least probability of the positive class.
        chosen_on: the split, or `given`.
        num_slides: it was chosen on.
    """

    value: float
    chosen_on: str
    num_slides: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For `metrics.json`."""
        rule = "highest sensitivity + specificity - 1" if self.chosen_on != "given" else "given"
        return {"value": self.value, "rule": rule, "chosen_on": self.chosen_on, "num_slides": self.num_slides}


@dataclass(frozen=True, slots=True)
class RiskCut:
    """The risk above which a case is of high risk.

    Attributes:
        value: the median risk.
        chosen_on: the split.
        num_cases: it was taken of.
    """

    value: float
    chosen_on: str
    num_cases: int


def choose_threshold(table: PredictionTable) -> DecisionThreshold | None:
    """The threshold of the table's validation slides; None without two classes of them.

    It lies half-way to the next lower score; of several equally good ones the one next to 0.5 is taken.

    Args:
        table: predictions, of any splits.
    """
    val = table.of_split(CHOSEN_ON).labelled()
    if len(table.class_names) != 2 or len(np.unique(val.true_index)) < 2:
        return None
    scores = val.probabilities[:, 1]
    counts = rank_counts(scores, val.true_index == 1, np.ones((1, len(scores))))
    youden = counts.hits[0] / counts.hits[0, -1] - counts.false_alarms[0] / counts.false_alarms[0, -1]
    levels = np.unique(scores)[::-1]
    halves = np.r_[1.0, (levels[:-1] + levels[1:]) / 2, 0.0]  # below the first k levels and above the next
    best = np.flatnonzero(youden >= youden.max() - 1e-12)
    value = halves[best[np.argmin(np.abs(halves[best] - 0.5))]]
    return DecisionThreshold(float(value), CHOSEN_ON, len(scores))


def choose_risk_cut(frame: pd.DataFrame) -> RiskCut | None:
    """The median risk of the validation cases, else of the training cases; None without either.

    Args:
        frame: a survival table, of any splits.
    """
    for split in (CHOSEN_ON, "train"):
        cases = survival_cases(frame.loc[frame["split"] == split])
        if len(cases):
            return RiskCut(float(cases["risk"].median()), split, len(cases))
    return None
