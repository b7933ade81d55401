from __future__ import annotations

import csv
import json

import pandas as pd
import pytest

from span_sparse.errors import PredictionTableError
from span_sparse.evaluation import classification_metrics, parse_predictions, write_results
from span_sparse.evaluation.subgroups import MISSING, subgroup_scores


@pytest.fixture
def frame(make_frame) -> pd.DataFrame:
    """40 cases of two slides: 25 of site A, 13 of B, 2 without a site."""
    case = make_frame(num_cases=40)["case_id"].str[1:].astype(int)
    return make_frame(num_cases=40).assign(site=["A" if one < 25 else "B" if one < 38 else "" for one in case])


def test_each_group_has_the_figures_of_its_rows(frame) -> None:
    found = subgroup_scores(frame, "classification", ["site"], resamples=50, seed=3)["site"]
    assert list(found) == [MISSING, "A", "B"]
    alone = classification_metrics(parse_predictions(frame[frame["site"] == "B"]), resamples=50, seed=3).as_dict()
    assert {name: value for name, value in found["B"].items() if name != "small"} == alone
    assert [found[name]["small"] for name in ("A", "B", MISSING)] == [False, True, True]
    assert found[MISSING]["auc_ci"] is None


def test_the_files_of_an_evaluation_by_site(frame, tmp_path) -> None:
    write_results(tmp_path, frame, "classification", by=["site"], resamples=30)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    groups = metrics["subgroups"]["test"]["site"]
    with (tmp_path / "subgroups.csv").open(newline="") as file:
        rows = {(row["value"], row["figure"]): row for row in csv.DictReader(file)}
    row = rows["A", "auc"]
    assert float(row["estimate"]) == groups["A"]["auc"]
    assert [float(row["low"]), float(row["high"])] == groups["A"]["auc_ci"]
    assert (row["split"], row["column"], row["num_cases"], row["small"]) == ("test", "site", "25", "no")
    assert (rows[MISSING, "auc"]["low"], "2 cases" in rows[MISSING, "auc"]["note"]) == ("", True)
    assert "site" in pd.read_csv(tmp_path / "predictions.csv").columns
    write_results(tmp_path, frame, "classification", resamples=30)
    assert not (tmp_path / "subgroups.csv").exists()


def test_columns_that_cannot_be_used(frame, tmp_path) -> None:
    for column, message in (
        ("scanner", "there is no column 'scanner'"),
        ("split", "column 'split' cannot be a column of subgroups"),
        ("prob_tumour", "cannot be a column of subgroups"),
    ):
        with pytest.raises(PredictionTableError, match=message):
            write_results(tmp_path, frame, "classification", by=[column], resamples=10)
    many = pd.concat([frame.assign(slide_id=frame["slide_id"] + suffix) for suffix in "ab"])
    with pytest.raises(PredictionTableError, match="160 different values"):
        subgroup_scores(many.assign(site=range(160)), "classification", ["site"], resamples=10)
