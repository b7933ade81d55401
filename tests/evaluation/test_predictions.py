from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from span_sparse.errors import PredictionTableError
from span_sparse.evaluation.predictions import parse_predictions, read_predictions, write_predictions

GOOD = """slide_id,case_id,fold,split,y_true,y_pred,prob_NA,prob_tumour,site
007,01,0,test,tumour,tumour,0.25,0.75,A
1.50,01,0,test,NA,NA,0.9,0.1,
"ü/x,1",02,0,val,,tumour,0.5,0.5,B
"""


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding)
    return path


def test_ids_classes_and_missing_labels_survive_as_text(tmp_path):
    table = read_predictions(write(tmp_path / "p.csv", GOOD, "utf-8-sig"))
    assert table.frame["slide_id"].tolist() == ["007", "1.50", "ü/x,1"]
    assert table.frame["case_id"].tolist() == ["01", "01", "02"]
    assert table.class_names == ("NA", "tumour")
    assert table.true_index.tolist() == [1, 0, -1]
    assert table.predicted_index.tolist() == [1, 0, 1]
    assert table.case_index.tolist() == [0, 0, 1]
    assert table.probabilities.tolist() == [[0.25, 0.75], [0.9, 0.1], [0.5, 0.5]]
    assert table.splits == ("test", "val")
    assert table.frame["site"].tolist() == ["A", "", "B"]
    assert table.of_split("val").frame["slide_id"].tolist() == ["ü/x,1"]
    assert table.labelled().num_slides == 2


def test_write_then_read_is_lossless_and_leaves_one_file(tmp_path, make_frame):
    frame = make_frame(num_cases=5)
    frame.loc[0, "y_true"] = None
    frame.loc[1, "y_true"] = np.nan
    frame["fold"] = 3
    path = tmp_path / "new" / "predictions.csv"
    write_predictions(path, frame)
    again = read_predictions(path)
    assert again.probabilities.tolist() == frame[["prob_benign", "prob_tumour"]].to_numpy().tolist()
    assert again.frame["y_true"].tolist()[:2] == ["", ""]
    assert set(again.frame["fold"]) == {"3"}
    assert path.read_bytes().startswith(b"slide_id,case_id,fold,split,y_true,y_pred,prob_benign,prob_tumour\n")
    assert [file.name for file in path.parent.iterdir()] == ["predictions.csv"]
    before = path.read_bytes()
    write_predictions(path, again.frame)
    assert path.read_bytes() == before


def test_a_failed_write_keeps_the_old_file(tmp_path, make_frame, monkeypatch):
    path = tmp_path / "p.csv"
    write_predictions(path, make_frame(num_cases=2))
    before = path.read_bytes()
    with pytest.raises(PredictionTableError):
        write_predictions(path, make_frame(num_cases=3).assign(prob_benign=2.0))

    def full_disk(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_predictions(path, make_frame(num_cases=3))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["p.csv"]


def test_written_files_follow_the_umask(tmp_path, make_frame):
    old = os.umask(0o027)
    try:
        write_predictions(tmp_path / "p.csv", make_frame(num_cases=2))
    finally:
        os.umask(old)
    assert (tmp_path / "p.csv").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.25,0.75", "0.25,0.7498", r"column prob_\*, row 1 \(slide '007'\).*sum to 1, found '0.99"),
        ("0.9,0.1", "1.1,-0.1", r"column prob_NA, row 2 \(slide '1.50'\).*found '1.1'"),
        ("0.9,0.1", "nan,0.1", "column prob_NA, row 2.*found 'nan'"),
        ("0.9,0.1", ",0.1", "column prob_NA, row 2.*found ''"),
        ("0.9,0.1", "0.9,high", "column prob_tumour, row 2.*found 'high'"),
        ("0.9,0.1", "0.9,inf", "column prob_tumour, row 2.*found 'inf'"),
        ("test,NA,NA", "test,Na,NA", "column y_true, row 2.*NA, tumour, found 'Na'"),
        ("test,NA,NA", "test,NA,", "column y_pred, row 2.*found ''"),
        ("007,01", ",01", "column slide_id, row 1.*found ''"),
        ("007,01", "007,", "column case_id, row 1.*found ''"),
        ("0,val", "0,", "column split, row 3.*found ''"),
        ("1.50,01", "007,01", "column slide_id, row 2 .*once in a split"),
        ("0.25,0.75,A", "0.25,0.75", "row 1: expected 9 fields as in the header, found 8"),
        ("0.25,0.75,A", "0.25,0.75,A,B", "row 1: expected 9 fields as in the header, found 10"),
        ("case_id", "patient", "column case_id: missing.*found slide_id, patient"),
        ("prob_NA", "prob_tumour", "column prob_tumour: occurs more than once"),
        ("prob_NA", "p_NA", r"at least two.*found \['prob_tumour'\]"),
        ("prob_NA", "prob_", "each with a class name"),
        ('"ü/x,1"', '"ü/x,1', "cannot be read as a CSV file"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, message):
    assert GOOD.count(old) == 1
    path = write(tmp_path / "p.csv", GOOD.replace(old, new))
    with pytest.raises(PredictionTableError, match=message) as caught:
        read_predictions(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "message"), [(b"", "empty"), (b"\xff\xfe\x00", "UTF-8"), (None, "No such file")])
def test_unreadable_files(tmp_path, content, message):
    path = tmp_path / "p.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PredictionTableError, match=message):
        read_predictions(path)


def test_a_header_without_rows_is_refused(tmp_path):
    with pytest.raises(PredictionTableError, match="no rows"):
        read_predictions(write(tmp_path / "p.csv", GOOD.splitlines()[0] + "\n"))


def test_rounding_to_four_digits_is_accepted_and_the_same_slide_in_two_splits(tmp_path):
    frame = pd.DataFrame(
        {
            "slide_id": ["a", "a"], "case_id": "a", "fold": [0, 1], "split": ["val", "test"], "y_true": "x",
            "y_pred": "x", "prob_x": 0.33333, "prob_y": 0.33333, "prob_z": 0.33333,
        }
    )  # fmt: skip
    assert parse_predictions(frame).num_slides == 2


def test_importing_the_tables_loads_no_torch(run_python):
    run_python(
        "import sys, span_sparse.evaluation.report; assert not {'torch', 'spconv', 'lightning'} & set(sys.modules)"
    )
