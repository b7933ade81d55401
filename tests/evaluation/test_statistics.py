from __future__ import annotations

import dataclasses
import json
import time

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    balanced_accuracy_score,
    cohen_kappa_score,
    f1_score,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from span_sparse.evaluation import bootstrap, precision_recall_points, reliability_table, roc_points
from span_sparse.evaluation.predictions import parse_predictions
from span_sparse.evaluation.statistics import (
    METRICS,
    classification_measures,
    classification_metrics,
    metrics_by_split,
)
from span_sparse.evaluation.thresholds import DecisionThreshold, choose_threshold
from span_sparse.metrics import ranking


def binary(rows: list[tuple[str, str, str, float]]) -> pd.DataFrame:
    """(case, y_true, y_pred, probability of the positive class `m`)."""
    return pd.DataFrame(
        [
            {
                "slide_id": f"s{number}", "case_id": case, "fold": 0, "split": "test", "y_true": true,
                "y_pred": predicted, "prob_b": 1 - score, "prob_m": score,
            }
            for number, (case, true, predicted, score) in enumerate(rows)
        ]
    )  # fmt: skip


def test_figures_worked_out_by_hand():
    table = parse_predictions(
        binary(
            [
                ("p", "m", "m", 0.9),
                ("p", "m", "b", 0.4),
                ("q", "b", "b", 0.4),
                ("r", "b", "b", 0.1),
                ("r", "b", "m", 0.6),
            ]
        )
    )
    metrics = classification_metrics(table)
    assert metrics.values["auc"] == pytest.approx((3 + 0.5 + 1 + 0) / 6)  # 0.9 beats three; 0.4 ties one, beats one
    assert metrics.values["balanced_accuracy"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert metrics.values["f1"] == pytest.approx((2 / 4 + 4 / 6) / 2)
    assert metrics.values["accuracy"] == pytest.approx(3 / 5)
    assert (metrics.num_slides, metrics.num_cases) == (5, 3)
    assert metrics.auc_ci is None
    assert "3 cases" in metrics.notes["auc_ci"]


def test_the_last_probability_column_is_the_positive_class(make_frame):
    frame = make_frame()
    forward = classification_metrics(parse_predictions(frame), resamples=0)
    swapped = frame[[*frame.columns[:6], "prob_tumour", "prob_benign"]]
    assert classification_metrics(parse_predictions(swapped), resamples=0).auc == pytest.approx(forward.auc)
    assert forward.as_dict()["positive_class"] == "tumour"
    assert forward.auc == pytest.approx(roc_auc_score(frame["y_true"] == "tumour", frame["prob_tumour"]))
    assert forward.auc > 0.6


def test_macro_auc_equals_scikit_learn(make_frame, make_table):
    classes = ("a", "b", "c", "d")
    frame = make_frame(classes=classes)
    metrics = classification_metrics(make_table(classes=classes), resamples=0)
    probabilities = frame[[f"prob_{name}" for name in classes]].to_numpy()
    expected = roc_auc_score(frame["y_true"], probabilities, multi_class="ovr", average="macro")
    assert metrics.auc == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c")])
def test_resampled_figures_equal_scikit_learn(make_frame, classes):
    frame = make_frame(num_cases=15, classes=classes)
    names = [f"prob_{name}" for name in classes]
    frame[names] = frame[names].round(1)  # many ties
    frame[names[0]] = 1 - frame[names[1:]].sum(axis=1).clip(upper=1)
    frame[names] = frame[names].div(frame[names].sum(axis=1), axis=0)
    table = parse_predictions(frame)
    drawn = bootstrap.draw_cases(table.true_index, table.case_index, resamples=25, seed=3)
    fast = classification_measures(table).compute(drawn.slide_weights)
    for number, weights in enumerate(drawn.slide_weights.astype(int)):
        rows = np.repeat(np.arange(table.num_slides), weights)
        true, predicted = table.true_index[rows], table.predicted_index[rows]
        probabilities = table.probabilities[rows]
        scores = probabilities[:, 1] if len(classes) == 2 else probabilities
        assert fast["auc"][number] == pytest.approx(roc_auc_score(true, scores, multi_class="ovr"), abs=1e-12)
        assert fast["balanced_accuracy"][number] == pytest.approx(balanced_accuracy_score(true, predicted), abs=1e-12)
        assert fast["f1"][number] == pytest.approx(f1_score(true, predicted, average="macro"), abs=1e-12)
        assert fast["accuracy"][number] == pytest.approx((true == predicted).mean(), abs=1e-12)


def test_blocks_of_resamples_give_the_same_figures(make_table, monkeypatch):
    table = make_table()
    whole = classification_metrics(table, resamples=50)
    monkeypatch.setattr(bootstrap, "_MAX_BLOCK", 7 * table.num_slides)
    blocks = classification_metrics(table, resamples=50)
    assert dataclasses.replace(blocks, intervals=whole.intervals) == whole
    assert blocks.intervals.keys() == whole.intervals.keys()
    for name, interval in blocks.intervals.items():  # BLAS may sum other shapes in another order
        assert interval == pytest.approx(whole.intervals[name], rel=1e-12)


def test_cases_are_drawn_whole_with_replacement(make_table):
    table = make_table(num_cases=12, slides_per_case=3)
    weights = bootstrap.draw_cases(table.true_index, table.case_index, resamples=400, seed=1).slide_weights
    by_case = weights.reshape(400, 12, 3)
    assert (by_case == by_case[:, :, :1]).all()
    assert (by_case[:, :, 0].sum(axis=1) == 12).all()
    assert np.allclose(by_case[:, :, 0].mean(axis=0), 1.0, atol=0.2)
    assert (by_case[:, :, 0] > 1).any()


def test_copies_of_a_slide_in_the_same_case_change_no_interval(make_frame):
    frame = make_frame(num_cases=24, slides_per_case=1)
    copies = pd.concat([frame.assign(slide_id=frame["slide_id"] + suffix) for suffix in "abcd"], ignore_index=True)
    once = classification_metrics(parse_predictions(frame), seed=5)
    often = classification_metrics(parse_predictions(copies), seed=5)
    assert often.num_slides == 4 * once.num_slides
    for metric in METRICS:
        assert often.values[metric] == pytest.approx(once.values[metric])
        assert often.intervals[metric] == pytest.approx(once.intervals[metric])
    as_if_independent = copies.assign(case_id=copies["slide_id"])
    narrow = classification_metrics(parse_predictions(as_if_independent), seed=5)
    assert np.ptp(narrow.auc_ci) < 0.7 * np.ptp(once.auc_ci)


def test_drawings_without_a_class_are_redrawn_and_counted():
    true_index = np.array([1] * 3 + [0] * 27)
    drawn = bootstrap.draw_cases(true_index, np.arange(30), resamples=2000, seed=0)
    assert (drawn.slide_weights[:, :3].sum(axis=1) > 0).all()
    share = drawn.num_redrawn / (drawn.num_redrawn + 2000)
    assert share == pytest.approx((27 / 30) ** 30, abs=0.015)  # 4.2 % of drawings miss three of thirty


def test_intervals_cover_the_truth():
    """Normal scores one unit apart, 30 cases of two equal slides: AUC of the population Φ(1/√2) = 0.760."""
    generator = np.random.default_rng(11)
    true_index = np.repeat(np.arange(30) % 2, 2)
    case_index = np.repeat(np.arange(30), 2)
    hits, trials = 0, 300
    for trial in range(trials):
        scores = np.repeat(generator.normal(size=30) + (np.arange(30) % 2), 2)
        weights = bootstrap.draw_cases(true_index, case_index, resamples=300, seed=trial).slide_weights
        low, high = bootstrap.percentile_interval(
            ranking.auc(ranking.rank_counts(scores, true_index == 1, weights)), 0.95
        )
        hits += low <= 0.76025 <= high
    assert 0.90 <= hits / trials <= 0.985


def test_seed_and_level_decide_the_interval(make_table):
    table = make_table()
    wide, again = classification_metrics(table, seed=2), classification_metrics(table, seed=2)
    assert wide == again
    assert wide.auc_ci != classification_metrics(table, seed=3).auc_ci
    low, high = classification_metrics(table, seed=2, level=0.5).auc_ci
    assert wide.auc_ci[0] < low < wide.auc < high < wide.auc_ci[1]


def test_a_thousand_resamples_of_forty_slides_are_fast(make_table):
    table = make_table(num_cases=25, slides_per_case=2)
    start = time.perf_counter()
    classification_metrics(table, resamples=1000)
    assert time.perf_counter() - start < 1.5


def test_one_class_gives_reasons_not_exceptions(make_frame):
    frame = make_frame(num_cases=24, slides_per_case=1)
    frame["split"] = np.where(frame["y_true"] == "benign", "train", "test")
    result = metrics_by_split(parse_predictions(frame), resamples=100)
    assert list(result) == ["train", "test"]
    assert result["train"]["auc"] is None
    assert result["train"]["auc_ci"] is None
    assert "only class 'benign'" in result["train"]["notes"]["auc"]
    assert "only class 'benign'" in result["train"]["notes"]["auc_ci"]
    right = (frame["y_pred"] == "benign")[frame["split"] == "train"].mean()
    assert result["train"]["balanced_accuracy"] == pytest.approx(right)
    assert result["train"]["accuracy_ci"][0] < right


def test_unlabelled_slides_are_left_out_and_counted(make_frame):
    frame = make_frame(num_cases=24)
    labelled = classification_metrics(parse_predictions(frame), resamples=200)
    more = pd.concat([frame, frame.assign(slide_id=frame["slide_id"] + "x", y_true="")], ignore_index=True)
    both = classification_metrics(parse_predictions(more), resamples=200)
    assert both == dataclasses.replace(labelled, num_unlabelled=48)
    nothing = classification_metrics(parse_predictions(frame.assign(y_true=None))).as_dict()
    assert [nothing[metric] for metric in METRICS] == [None] * len(METRICS)
    assert nothing["notes"]["auc"] == nothing["notes"]["f1_ci"] == "no labelled slides"
    assert (nothing["num_slides"], nothing["num_cases"], nothing["num_unlabelled"]) == (0, 0, 48)


def test_a_class_that_does_not_occur_is_noted(make_frame):
    frame = make_frame(num_cases=33, classes=("a", "b", "c"))
    frame = frame[frame["y_true"] != "b"]
    metrics = classification_metrics(parse_predictions(frame), resamples=100)
    expected = [roc_auc_score(frame["y_true"] == name, frame[f"prob_{name}"]) for name in "ac"]
    assert metrics.auc == pytest.approx(np.mean(expected))
    assert "without b" in metrics.notes["auc"]
    assert metrics.slides_per_class == {"a": 22, "b": 0, "c": 22}
    assert metrics.auc_ci is not None


def test_too_few_cases_of_a_class():
    rows = [(f"p{number}", "m" if number < 2 else "b", "b", 0.5) for number in range(20)]
    metrics = classification_metrics(parse_predictions(binary(rows)))
    assert metrics.auc == 0.5
    assert metrics.as_dict()["auc_ci"] is None
    assert "a class with 2 cases" in metrics.notes["auc_ci"]
    assert metrics.as_dict()["bootstrap"]["resamples"] == 0


def test_an_interval_without_width_says_so():
    rows = [(f"p{number}", *(("m", "m", 0.9) if number % 2 else ("b", "b", 0.1))) for number in range(20)]
    metrics = classification_metrics(parse_predictions(binary(rows)))
    assert metrics.auc_ci == (1.0, 1.0)
    assert "no width" in metrics.notes["auc_ci"]


def test_the_dictionary_is_plain_json_with_pinned_keys(make_table):
    values = classification_metrics(make_table(), resamples=100).as_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert list(values) == [
        "auc", "auc_ci", "average_precision", "average_precision_ci", "balanced_accuracy", "balanced_accuracy_ci",
        "f1", "f1_ci", "accuracy", "accuracy_ci", "kappa", "kappa_ci", "brier", "brier_ci", "ece", "ece_ci",
        "sensitivity_at_95_specificity", "sensitivity_at_95_specificity_ci", "specificity_at_95_sensitivity",
        "specificity_at_95_sensitivity_ci", "num_slides", "num_cases", "num_unlabelled", "classes", "positive_class",
        "slides_per_class", "decision_threshold", "bootstrap", "notes",
    ]  # fmt: skip
    assert values["classes"] == ["benign", "tumour"]
    assert values["bootstrap"] == {"unit": "case_id", "resamples": 100, "redrawn": 0, "seed": 0, "level": 0.95}


@pytest.mark.parametrize("settings", [{"resamples": -1}, {"level": 0.0}, {"level": 1.0}])
def test_impossible_settings(make_table, settings):
    with pytest.raises(ValueError, match="expected resamples >= 0"):
        classification_metrics(make_table(), **settings)


def test_the_threshold_comes_from_the_validation_slides_alone(make_frame):
    """Validation: positives 0.9, 0.7, 0.4, negatives 0.6, 0.3, 0.1; best above 0.6 or 0.3, both with index 2/3."""
    scores = [0.9, 0.7, 0.4, 0.6, 0.3, 0.1]
    val = binary([(f"p{row}", "m" if row < 3 else "b", "b", score) for row, score in enumerate(scores)])
    test = binary([(f"q{row}", "m" if row % 2 else "b", "m", score) for row, score in enumerate([0.64, 0.66] * 6)])
    table = parse_predictions(pd.concat([val.assign(split="val"), test], ignore_index=True))
    threshold = choose_threshold(table)
    assert (threshold.chosen_on, threshold.num_slides) == ("val", 6)
    assert min(abs(threshold.value - 0.65), abs(threshold.value - 0.35)) < 1e-12
    found = metrics_by_split(table, resamples=0)
    assert found["test"]["decision_threshold"]["chosen_on"] == "val"
    assert choose_threshold(parse_predictions(test)) is None
    only_test = metrics_by_split(parse_predictions(test), resamples=0)["test"]
    assert only_test["decision_threshold"] is None
    assert "threshold_accuracy" not in only_test
    given = classification_metrics(parse_predictions(test), resamples=0, threshold=DecisionThreshold(0.65, "given"))
    assert [given.values[f"threshold_{name}"] for name in ("accuracy", "sensitivity", "specificity")] == [1, 1, 1]


def test_figures_of_more_than_two_classes(make_frame, make_table):
    values = classification_metrics(make_table(classes=("a", "b", "c")), resamples=0).values
    assert "quadratic_kappa" in values
    assert "sensitivity_at_95_specificity" not in values
    frame = make_frame(classes=("a", "b", "c"))
    index = {name: number for number, name in enumerate("abc")}
    expected = cohen_kappa_score(frame["y_true"].map(index), frame["y_pred"].map(index), weights="quadratic")
    assert values["quadratic_kappa"] == pytest.approx(expected)


def test_the_reliability_table_is_the_calibration_curve_of_scikit_learn(make_frame, make_table):
    bins = reliability_table(make_table(num_cases=60))
    frame = make_frame(num_cases=60)
    observed, mean = calibration_curve(frame["y_true"] == "tumour", frame["prob_tumour"], n_bins=10)
    used = bins[bins["num_slides"] > 0]
    np.testing.assert_allclose(used["observed"], observed)
    np.testing.assert_allclose(used["mean_predicted"], mean)
    gaps = (used["num_slides"] * (used["observed"] - used["mean_predicted"]).abs()).sum() / bins["num_slides"].sum()
    assert classification_metrics(make_table(num_cases=60), resamples=0).values["ece"] == pytest.approx(gaps)


def test_points_of_the_curves_are_those_of_scikit_learn(make_frame, make_table):
    frame, table = make_frame(), make_table()
    truth, scores = frame["y_true"] == "tumour", frame["prob_tumour"]
    false_rate, true_rate, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    points = roc_points(table)
    np.testing.assert_allclose(points.to_numpy(), np.stack([thresholds, false_rate, true_rate], axis=1))
    precision, recall, cuts = precision_recall_curve(truth, scores)
    points = precision_recall_points(table)
    np.testing.assert_allclose(points.to_numpy()[::-1], np.stack([cuts, recall[:-1], precision[:-1]], axis=1))
    benign = parse_predictions(frame[frame["y_true"] == "benign"])
    assert len(roc_points(benign)) == len(precision_recall_points(benign)) == 0
