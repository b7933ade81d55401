from __future__ import annotations

import json

import pytest

from span_sparse.errors import PredictionTableError, ReportError
from span_sparse.report import read_evaluation, read_heatmap_folder, read_scores

HEADER = "slide_id,case_id,fold,split,"


@pytest.fixture
def heatmaps(make_heatmaps):
    return make_heatmaps({"a": {"attention": [0.1, 0.2]}, "b/..": {"attention": [0.3, 0.4], "logit_x": [-1.0, 2.0]}})


def change(folder, **entries):
    path = folder / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_folder_of_heatmaps(heatmaps):
    found = read_heatmap_folder(heatmaps)
    assert list(found.slides) == ["a", "b/.."]
    assert found.remarks == ()
    scores = read_scores(found.slides["b/.."])
    assert scores.grid.tolist() == [[0, 0], [0, 1]]
    assert scores.corners_px0.tolist() == [[0, 0], [64, 0]]
    assert scores.values["logit_x"].tolist() == [-1.0, 2.0]


def test_without_its_table_every_complete_folder_counts(heatmaps):
    (heatmaps / "heatmaps.csv").unlink()
    (heatmaps / "folder0" / "meta.json").unlink()
    assert list(read_heatmap_folder(heatmaps).slides) == ["b/.."]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"patch_px0": 0}, "patch_px0"),
        ({"patch_px0": 10**9}, "patch_px0"),
        ({"step_px0": "64"}, "step_px0"),
        ({"dimensions_px0": [1]}, "dimensions_px0"),
        ({"dimensions_px0": [float("nan"), 2]}, "dimensions_px0"),
        ({"scores": []}, "scores"),
        ({"scores": [3]}, "scores"),
        ({"slide_id": None}, "slide_id"),
    ],
)
def test_a_slide_that_cannot_be_shown_is_a_remark(heatmaps, entries, said):
    change(heatmaps / "folder0", **entries)
    found = read_heatmap_folder(heatmaps)
    assert list(found.slides) == ["b/.."]
    assert len(found.remarks) == 1
    assert said in found.remarks[0]


@pytest.mark.parametrize("name", ["../secret", "..", ".", "/etc", "folder0/../folder0", "link"])
def test_no_folder_outside_is_followed(heatmaps, name):
    secret = heatmaps.parent / "secret"
    secret.mkdir()
    (secret / "meta.json").write_text((heatmaps / "folder0" / "meta.json").read_text())
    (heatmaps / "link").symlink_to(secret)
    (heatmaps / "heatmaps.csv").write_text(
        f"slide_id,case_id,folder,status,error\na,p,{name},done,\nb/..,p,folder1,done,\n"
    )
    found = read_heatmap_folder(heatmaps)
    assert list(found.slides) == ["b/.."]
    assert len(found.remarks) == 1


def test_failed_slides_are_remarks(heatmaps):
    text = "slide_id,case_id,folder,status,error\na,p,,failed,no such file\nb/..,p,folder1,done,\n"
    (heatmaps / "heatmaps.csv").write_text(text)
    assert read_heatmap_folder(heatmaps).remarks == ("no heatmap of slide 'a': no such file",)


def test_nothing_to_show(tmp_path):
    with pytest.raises(ReportError, match="no such folder"):
        read_heatmap_folder(tmp_path / "absent")
    with pytest.raises(ReportError, match="no complete slide"):
        read_heatmap_folder(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "row,col\n1,2\n",
        "row,col,x_px0,y_px0,attention\n0,0,0,0,high\n",
        "row,col,x_px0,y_px0,attention\n0,0,,0,1\n",
    ],
)
def test_damaged_scores(heatmaps, text):
    (heatmaps / "folder0" / "scores.csv").write_text(text)
    with pytest.raises(ReportError, match=r"scores\.csv"):
        read_scores(read_heatmap_folder(heatmaps).slides["a"])


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("", PredictionTableError, "header"),
        ("a,b\n1,2\n", PredictionTableError, "slide_id"),
        (HEADER + "size\na,a,0,test,1\n", PredictionTableError, "not a table of predictions"),
        (HEADER + "y_true,y_pred\na,a,0,test,1\n", PredictionTableError, "as many fields"),
        (HEADER + "y_true,y_pred\na,a,0,test,1,nought\n", PredictionTableError, "column y_pred, row 1"),
        (HEADER + "risk,time,event\na,a,0,test,1,inf,1\n", PredictionTableError, "column time"),
        (HEADER + "y_true,y_pred,prob_a,prob_b\na,a,0,test,a,c,0.5,0.5\n", PredictionTableError, "y_pred"),
    ],
)
def test_tables_that_cannot_be_reported(tmp_path, text, error, said):
    (tmp_path / "predictions.csv").write_text(text)
    with pytest.raises(error, match=said):
        read_evaluation(tmp_path)


def test_ids_stay_text(tmp_path):
    (tmp_path / "predictions.csv").write_text(HEADER + "y_true,y_pred\n007,NA,0,test,1,2\n")
    row = read_evaluation(tmp_path).frame.iloc[0]
    assert (row["slide_id"], row["case_id"]) == ("007", "NA")


def test_damaged_metrics(tmp_path):
    (tmp_path / "predictions.csv").write_text(HEADER + "y_true,y_pred\na,a,0,test,1,2\n")
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ReportError, match=r"metrics\.json"):
        read_evaluation(tmp_path)
    with pytest.raises(ReportError, match=r"has no predictions\.csv"):
        read_evaluation(tmp_path / "absent")
