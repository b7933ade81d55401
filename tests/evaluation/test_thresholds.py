from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from span_sparse.evaluation import choose_risk_cut, risk_groups
from span_sparse.evaluation.survival_figure import kaplan_meier_figure
from span_sparse.evaluation.thresholds import RiskCut


@pytest.fixture
def frame() -> pd.DataFrame:
    """40 test cases, 10 validation cases with risks 0 to 9; hazard grows with the risk."""
    random = np.random.default_rng(0)
    risk = np.r_[random.random(40) * 9, np.arange(10.0)]
    return pd.DataFrame(
        {
            "slide_id": [f"s{row}" for row in range(50)],
            "case_id": [f"p{row}" for row in range(50)],
            "split": ["test"] * 40 + ["val"] * 10,
            "risk": risk,
            "time": random.exponential(np.exp(-0.4 * risk)) * 50,
            "event": (random.random(50) < 0.8) * 1.0,
        }
    )


def test_the_cut_is_the_median_of_validation_never_of_test(frame) -> None:
    assert choose_risk_cut(frame) == RiskCut(4.5, "val", 10)
    assert choose_risk_cut(frame.replace({"split": {"val": "train"}})) == RiskCut(4.5, "train", 10)
    assert choose_risk_cut(frame[frame["split"] == "test"]) is None


def test_groups_and_picture(frame) -> None:
    test = frame[frame["split"] == "test"].reset_index(drop=True)
    groups = risk_groups(test, RiskCut(4.5, "val", 10))
    assert groups["num_cases_low"] == (test["risk"] <= 4.5).sum()
    assert groups["num_cases_low"] + groups["num_cases_high"] == 40
    assert groups["median_time_high"] < groups["median_time_low"]
    assert groups["log_rank_p"] < 0.05
    figure = kaplan_meier_figure(test, RiskCut(4.5, "val", 10), title="T")
    axes, table = figure.axes
    low, high = (line for line in axes.lines if " risk, n = " in line.get_label())
    assert (low.get_label(), high.get_label()) == (
        f"low risk, n = {groups['num_cases_low']}", f"high risk, n = {groups['num_cases_high']}",
    )  # fmt: skip
    assert [text.get_text() for text in table.texts if text.get_position()[0] == 0] == [
        str(groups["num_cases_low"]), str(groups["num_cases_high"]),
    ]  # fmt: skip


def test_one_empty_group_has_no_test_and_no_picture(frame) -> None:
    cut = RiskCut(100.0, "val", 10)
    assert kaplan_meier_figure(frame, cut, title="T") is None
    groups = risk_groups(frame, cut)
    assert (groups["log_rank_p"], groups["median_time_high"], groups["num_cases_high"]) == (None, None, 0)
