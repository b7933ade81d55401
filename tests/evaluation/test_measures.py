"""Figures of other tasks against scikit-learn and lifelines, and their intervals."""

from __future__ import annotations

import json
import time

import numpy as np
import pandas as pd
import pytest
from lifelines.utils import concordance_index as lifelines_c
from sklearn.metrics import average_precision_score, brier_score_loss, r2_score, roc_auc_score

from span_sparse.evaluation import score_table
from span_sparse.evaluation.measures import MEASURES


def ids(number: int, slides_per_case: int = 2) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "slide_id": [f"s{row}" for row in range(number)],
            "case_id": [f"p{row // slides_per_case}" for row in range(number)],
            "fold": "",
            "split": "test",
        }
    )


def survival(number: int = 120, seed: int = 0) -> pd.DataFrame:
    """Two slides a case; survival curves of the true model."""
    random = np.random.default_rng(seed)
    log_hazard = np.repeat(random.standard_normal(number // 2), 2)
    death = np.repeat(random.exponential(10, size=number // 2), 2) * np.exp(-log_hazard)
    end = np.repeat(random.exponential(20, size=number // 2), 2)
    curves = {f"survival_{time:g}": np.exp(-time / 10 * np.exp(log_hazard)) for time in (3.0, 6.5, 12.0)}
    noise = 0.2 * random.standard_normal(number)
    return ids(number).assign(
        risk=log_hazard + noise, time=np.minimum(death, end), event=(death <= end) * 1.0, **curves
    )


def test_survival(monkeypatch) -> None:
    frame = survival()
    scores = score_table(frame, "survival", resamples=200)
    cases = frame.groupby("case_id").mean(numeric_only=True)
    expected = lifelines_c(cases["time"], -cases["risk"], cases["event"])
    assert scores["c_index"] == pytest.approx(expected)
    assert {"c_index_uno", "auc_at_3", "auc_at_6.5", "auc_at_12", "brier_at_12", "integrated_brier"} <= scores.keys()
    briers = [scores[f"brier_at_{moment}"] for moment in ("3", "6.5", "12")]
    integral = (briers[0] + briers[1]) / 2 * 3.5 + (briers[1] + briers[2]) / 2 * 5.5
    assert scores["integrated_brier"] == pytest.approx(integral / 9)
    assert scores["integrated_brier"] < 0.2  # 0.25 for a model that always says one half
    for name in ("c_index", "c_index_uno", "auc_at_3", "integrated_brier"):
        low, high = scores[f"{name}_ci"]
        assert low < scores[name] < high
    assert (scores["num_slides"], scores["num_cases"], scores["num_unlabelled"]) == (120, 60, 0)
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_risks_without_curves_have_no_brier_score() -> None:
    frame = survival().drop(columns=["survival_3", "survival_6.5", "survival_12"])
    scores = score_table(frame, "survival", resamples=0)
    assert not [name for name in scores if "brier" in name]
    assert "no survival curves" in scores["notes"]["brier"]
    assert len([name for name in scores if name.startswith("auc_at_") and not name.endswith("_ci")]) == 3


def test_regression() -> None:
    random = np.random.default_rng(1)
    truth = np.repeat(random.normal(1000, 3, size=30), 2)
    frame = ids(60).assign(y_true=truth, y_pred=truth + random.standard_normal(60))
    cases = frame.groupby("case_id").mean(numeric_only=True)
    scores = score_table(frame, "regression", resamples=300)
    assert scores["mae"] == pytest.approx((cases["y_true"] - cases["y_pred"]).abs().mean())
    assert scores["r2"] == pytest.approx(r2_score(cases["y_true"], cases["y_pred"]))
    assert scores["pearson"] == pytest.approx(np.corrcoef(cases["y_true"], cases["y_pred"])[0, 1])
    assert scores["r2_ci"][0] < scores["r2"] < scores["r2_ci"][1]
    constant = score_table(frame.assign(y_true=5.0), "regression", resamples=20)
    assert (constant["r2"], constant["pearson"]) == (None, None)
    assert "cannot be computed" in constant["notes"]["r2"]


def test_several_questions() -> None:
    random = np.random.default_rng(2)
    frame = ids(60, 1).assign(
        true_x=random.integers(2, size=60).astype(float), true_y=random.integers(2, size=60).astype(float), true_z=1.0
    )
    frame.loc[:9, "true_y"] = np.nan
    for name in "xyz":
        frame[f"prob_{name}"] = random.random(60) * 0.6 + 0.4 * frame[f"true_{name}"].fillna(0)
    known = frame["true_y"].notna()
    scores = score_table(frame, "multi_label", resamples=50)
    areas = [
        roc_auc_score(frame["true_x"], frame["prob_x"]),
        roc_auc_score(frame["true_y"][known], frame["prob_y"][known]),
    ]
    assert [scores["auc_x"], scores["auc_y"], scores["auc_z"]] == [*map(pytest.approx, areas), None]
    assert scores["auc"] == pytest.approx(np.mean(areas))
    precisions = [
        average_precision_score(frame["true_x"], frame["prob_x"]),
        average_precision_score(frame["true_y"][known], frame["prob_y"][known]),
    ]
    assert scores["average_precision"] == pytest.approx(np.mean(precisions))
    briers = [
        brier_score_loss(frame[f"true_{name}"][rows], frame[f"prob_{name}"][rows], pos_label=1)
        for name, rows in (("x", slice(None)), ("y", known))
    ]
    briers.append(float(((1 - frame["prob_z"]) ** 2).mean()))
    assert scores["brier"] == pytest.approx(np.mean(briers))


def test_segmentation() -> None:
    """Slides with Dice 2/3, 1, nothing, 0; patches pooled: 2·(2 + 3) / (2·5 + 1 + 5)."""
    frame = ids(4, 1).assign(hits_t=[2, 3, 0, 0], false_alarms_t=[1, 0, 0, 0], misses_t=[1, 0, 0, 4])
    scores = score_table(frame, "segmentation", resamples=10)
    assert scores["dice"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert scores["iou"] == pytest.approx((2 / 4 + 1 + 0) / 3)
    assert scores["pooled_dice"] == pytest.approx(10 / 16)
    assert scores["pooled_iou"] == pytest.approx(5 / 11)
    assert scores["dice_ci"] is None
    assert "4 cases" in scores["notes"]["dice_ci"]


@pytest.mark.parametrize("kind", ["survival", "regression", "multi_label", "segmentation"])
def test_a_drawing_is_a_cohort_with_cases_repeated(kind: str) -> None:
    random = np.random.default_rng(3)
    frame = survival(60).assign(y_true=random.random(60), y_pred=random.random(60))
    frame = frame.assign(true_a=random.integers(2, size=60) * 1.0, prob_a=random.random(60))
    frame = frame.assign(hits_a=random.integers(9, size=60), false_alarms_a=random.integers(9, size=60), misses_a=1)
    measures = MEASURES[kind](frame)
    cases = random.multinomial(30, np.full(30, 1 / 30), size=4)
    found = measures.compute(cases[:, measures.case_index].astype(float))
    for number, counts in enumerate(cases):
        parts = [
            frame[frame["case_id"] == f"p{case}"].assign(case_id=f"p{case}-{copy}")
            for case, times in enumerate(counts)
            for copy in range(times)
        ]
        alone = score_table(pd.concat(parts, ignore_index=True), kind, resamples=0)
        for name in measures.names:
            if name in alone and alone[name] is not None:  # Uno's C of tied copies is the same: pairs are of two times
                assert found[name][number] == pytest.approx(alone[name]), name


def test_two_thousand_drawings_of_a_thousand_slides_take_seconds() -> None:
    frame = survival(1000)
    start = time.perf_counter()
    score_table(frame, "survival", resamples=2000)
    assert time.perf_counter() - start < 8


def test_the_interval_of_a_survival_figure_covers_the_truth() -> None:
    """Concordance of log-normal times: risk = −log time + noise; the truth from 20,000 cases."""
    random = np.random.default_rng(5)

    def cohort(number: int) -> pd.DataFrame:
        log_time = random.standard_normal(number)
        risk = -log_time + random.standard_normal(number)
        return ids(number, 1).assign(risk=risk, time=np.exp(log_time), event=1.0)

    truth = score_table(cohort(6000), "survival", resamples=0)["c_index"]
    hits = 0
    for trial in range(150):
        low, high = score_table(cohort(40), "survival", resamples=200, seed=trial)["c_index_ci"]
        hits += low <= truth <= high
    assert 0.88 <= hits / 150 <= 0.99
