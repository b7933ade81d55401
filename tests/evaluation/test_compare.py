from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from span_sparse.errors import PredictionTableError
from span_sparse.evaluation.compare import compare, read_compared


def classified(scores: np.ndarray, positive: np.ndarray, case: np.ndarray) -> pd.DataFrame:
    chance = 1 / (1 + np.exp(-scores))
    return pd.DataFrame(
        {
            "slide_id": [f"s{row}" for row in range(len(scores))],
            "case_id": [f"p{one}" for one in case],
            "fold": "",
            "split": "test",
            "y_true": np.where(positive, "m", "b"),
            "y_pred": np.where(chance > 0.5, "m", "b"),
            "prob_b": 1 - chance,
            "prob_m": chance,
        }
    )


def models(number: int = 200, slides: int = 1, gain: float = 0.8, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The second one sees `gain` more of the truth; both share what makes a case hard."""
    random = np.random.default_rng(seed)
    case = np.repeat(np.arange(number // slides), slides)
    positive = (np.arange(number // slides) % 2 == 0)[case]
    hard = random.standard_normal(number // slides)[case]
    first = positive + hard + 0.7 * random.standard_normal(number)
    second = (1 + gain) * positive + hard + 0.7 * random.standard_normal(number)
    return classified(first, positive, case), classified(second, positive, case)


@pytest.fixture
def compared(tmp_path: Path):
    def run(*frames: pd.DataFrame, **settings):
        paths = [tmp_path / f"{number}.csv" for number in range(len(frames))]
        for frame, path in zip(frames, paths, strict=True):
            frame.to_csv(path, index=False)
        return compare(read_compared(paths), **settings)

    return run


def test_a_better_model_is_found(compared) -> None:
    first, second = models()
    (result,) = compared(first, second, resamples=400)
    row = result.figures["auc"]
    areas = [roc_auc_score(frame["y_true"] == "m", frame["prob_m"]) for frame in (first, second)]
    assert [row["first"], row["second"]] == pytest.approx(areas)
    assert row["difference"] == pytest.approx(areas[1] - areas[0])
    low, high = row["difference_ci"]
    assert 0 < low < row["difference"] < high
    assert row["p"] == pytest.approx(2 / 401)
    assert result.delong["difference"] == pytest.approx(row["difference"])
    assert result.delong["unit"] == "slide"
    width = 2 * 1.96 * result.delong["standard_error"]
    assert high - low == pytest.approx(width, rel=0.25)  # two ways to the same interval


def test_the_rows_may_come_in_another_order_and_models_that_agree_do_not_differ(compared) -> None:
    first, _ = models()
    (result,) = compared(first, first.sample(frac=1, random_state=1), resamples=100)
    for row in result.figures.values():
        assert (row["difference"], row["difference_ci"], row["p"]) == (pytest.approx(0), pytest.approx([0, 0]), 1.0)
    assert result.delong["p"] == 1.0


def test_p_is_small_as_often_as_it_says(compared, tmp_path) -> None:
    small = 0
    for seed in range(60):
        (result,) = compared(*models(80, gain=0.0, seed=seed), resamples=150)
        small += result.figures["auc"]["p"] < 0.1
    assert 1 <= small <= 14  # 6 expected


def test_several_slides_of_a_case(compared) -> None:
    (result,) = compared(*models(120, slides=3), resamples=50)
    assert (result.delong["unit"], result.delong["num_cases"]) == ("case", 40)
    assert "mean probability of each case" in result.notes[0]


def test_more_than_two_models_and_other_tasks(compared) -> None:
    first, second = models()
    results = compared(first, second, second, resamples=50)
    assert [result.first[-5:] for result in results] == ["0.csv", "0.csv"]
    assert results[0].figures == results[1].figures
    random = np.random.default_rng(0)
    risk = random.standard_normal(80)
    base = first.iloc[:80][["slide_id", "case_id", "fold", "split"]]
    base = base.assign(time=random.exponential(np.exp(-risk)), event=1.0)
    (result,) = compared(base.assign(risk=random.random(80)), base.assign(risk=risk), resamples=200)
    assert result.delong is None
    assert result.figures["c_index"]["difference_ci"][0] > 0
    patches = base[["slide_id", "case_id", "fold", "split"]].assign(hits_t=5, false_alarms_t=1, misses_t=3)
    (result,) = compared(patches, patches.assign(hits_t=7, misses_t=1), resamples=50)
    assert result.figures["dice"]["difference"] == pytest.approx(14 / 16 - 10 / 14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.iloc[1:], "1 are missing and 0 are new"),
        (lambda frame: frame.assign(case_id="p0"), "column case_id differs"),
        (lambda frame: frame.assign(y_true="m"), "column y_true differs .* for 100 slides"),
        (lambda frame: frame.rename(columns={"prob_b": "prob_c"}).replace("b", "c"), "the classes must agree"),
        (lambda frame: frame[["slide_id", "case_id", "fold", "split"]].assign(y_true=1.0, y_pred=2.0), "regression"),
        (lambda frame: frame.assign(split="val"), "no split 'test', found val"),
        (lambda frame: frame.drop(columns=["y_pred"]), "not a table of predictions"),
        (lambda frame: frame.drop(columns=["case_id"]), "column case_id: missing"),
    ],
)
def test_tables_that_cannot_be_compared(compared, change, message: str) -> None:
    first, second = models()
    with pytest.raises(PredictionTableError, match=message):
        compared(first, change(second), resamples=10)


def test_segmentation_of_other_annotations_is_refused(compared) -> None:
    first, _ = models()
    patches = first[["slide_id", "case_id", "fold", "split"]].assign(hits_t=5, false_alarms_t=1, misses_t=3)
    with pytest.raises(PredictionTableError, match=r"column hits_t \+ misses_t differs"):
        compared(patches, patches.assign(misses_t=4), resamples=10)


def test_two_thousand_drawings_of_a_thousand_slides_take_seconds(compared) -> None:
    start = time.perf_counter()
    compared(*models(1000), resamples=2000)
    assert time.perf_counter() - start < 8


def test_the_command(command, tmp_path, capsys) -> None:
    first, second = models(40)
    for name, frame in (("a", first), ("b", second)):
        (tmp_path / name).mkdir()
        frame.to_csv(tmp_path / name / "predictions.csv", index=False)
    words = [tmp_path / "a", tmp_path / "b" / "predictions.csv", "--resamples", 50]
    assert command("span", "compare", *words, "--output", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert "40 labelled slides of 40 cases" in shown
    assert "AUC, DeLong (by slide)" in shown
    assert "sensitivity_at_95_specificity" in shown
    assert (tmp_path / "out" / "comparison.json").is_file()
    assert command("span", "compare", tmp_path / "a") == 1
    assert "needs two tables" in capsys.readouterr().err


def test_too_few_cases_give_no_delong_and_no_drawings(command, compared, tmp_path, capsys) -> None:
    (result,) = compared(*models(6), resamples=50)
    assert (result.delong, result.num_drawings) == (None, 0)
    assert "no DeLong test: 6 cases; an interval needs at least 10" in result.notes
    positive = np.arange(12) < 2
    rare = classified(np.arange(12) / 3, positive, np.arange(12))
    (result,) = compared(rare, rare, resamples=50)
    assert "no DeLong test: a class with 2 cases; an interval needs at least 3 of every class" in result.notes
    (result,) = compared(*[classified(np.arange(12), np.ones(12, bool), np.arange(12))] * 2, resamples=50)
    assert result.delong is None
    for name, frame in zip("ab", models(6), strict=True):
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    words = [tmp_path / "a.csv", tmp_path / "b.csv", "--output", tmp_path / "out"]
    assert command("span", "compare", *words) == 0
    shown = capsys.readouterr().out
    assert "drawings" not in shown.splitlines()[0]
    assert "AUC, DeLong" not in shown
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (content["bootstrap"]["resamples"], content["comparisons"][0]["num_drawings"]) == (0, 0)


def test_the_interval_of_delong_ends_at_one(command, tmp_path, capsys) -> None:
    positive = np.arange(10) < 3
    good = np.where(positive, 3.0, -3.0) + np.arange(10) / 100
    bad = np.where(positive, -1.0, 1.0) * (np.arange(10) != 0) + np.arange(10) / 100 + 3.0 * (np.arange(10) == 0)
    for name, scores in (("a", good), ("b", bad)):
        classified(scores, positive, np.arange(10)).to_csv(tmp_path / f"{name}.csv", index=False)
    assert command("span", "compare", tmp_path / "a.csv", tmp_path / "b.csv", "--resamples", 50) == 0
    shown = capsys.readouterr().out
    assert "10 cases, 50 drawings" in shown
    (row,) = [line for line in shown.splitlines() if "AUC, DeLong" in line]
    assert "-1.000 to " in row
