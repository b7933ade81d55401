from __future__ import annotations

import json

import pandas as pd
import pytest

from span_sparse.errors import PredictionTableError
from span_sparse.evaluation.predictions import parse_predictions, read_predictions
from span_sparse.evaluation.report import write_evaluation
from span_sparse.evaluation.statistics import metrics_by_split

ALL = [
    "calibration.png", "calibration.svg", "confusion.png", "confusion.svg", "metrics.json", "predictions.csv",
    "reliability.csv", "roc.png", "roc.svg",
]  # fmt: skip


@pytest.fixture
def three_splits(make_frame) -> pd.DataFrame:
    parts = {
        "train": make_frame(num_cases=12),
        "test": make_frame(num_cases=14, seed=1),
        "new": make_frame(num_cases=5, seed=2).assign(y_true=""),
    }
    return pd.concat([frame.assign(split=name, slide_id=name + frame["slide_id"]) for name, frame in parts.items()])


def test_an_evaluation_with_labels(tmp_path, three_splits):
    table = parse_predictions(three_splits)
    result = write_evaluation(tmp_path / "out", table, resamples=50, seed=7)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ALL
    assert sorted(path.name for path in result.paths) == ALL
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics == result.metrics
    expected = metrics_by_split(table, resamples=50, seed=7)
    assert metrics == {"train": expected["train"], "test": expected["test"]}
    assert "test split" in (tmp_path / "out" / "roc.svg").read_text(encoding="utf-8")
    assert "28 slides of 14 patients" in (tmp_path / "out" / "confusion.svg").read_text(encoding="utf-8")
    assert read_predictions(tmp_path / "out" / "predictions.csv").frame.equals(table.frame)
    assert result.notes == ("split new: no labels, so no metrics",)


def test_without_labels_predictions_only_and_no_stale_files(tmp_path, three_splits):
    write_evaluation(tmp_path, parse_predictions(three_splits), resamples=10)
    (tmp_path / "mine.txt").write_text("kept")
    new = three_splits[three_splits["split"] == "new"]
    result = write_evaluation(tmp_path, parse_predictions(new), resamples=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "predictions.csv"]
    assert result.metrics == {}
    assert result.notes == ("split new: no labels, so no metrics",)


def test_one_class_has_no_roc_and_says_so(tmp_path, make_frame):
    frame = make_frame(num_cases=12)
    result = write_evaluation(tmp_path, parse_predictions(frame[frame["y_true"] == "benign"]), resamples=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name for name in ALL if "roc" not in name]
    assert result.notes == ("split test: only class 'benign' occurs; an AUC needs two, so no roc.png",)


def test_the_split_of_the_pictures(tmp_path, three_splits):
    table = parse_predictions(three_splits)
    write_evaluation(tmp_path, table, figure_split="train", resamples=10)
    assert "train split" in (tmp_path / "roc.svg").read_text(encoding="utf-8")
    with pytest.raises(PredictionTableError, match=r"no split 'new' with labels.*train, test"):
        write_evaluation(tmp_path, table, figure_split="new", resamples=10)
