from __future__ import annotations

import csv
import json
from urllib.parse import unquote

import numpy as np
import pytest

from span_sparse.errors import HeatmapError
from span_sparse.heatmaps import (
    IndexRow,
    folder_name,
    is_complete,
    read_meta,
    read_scores,
    write_index,
    write_meta,
    write_scores,
)


@pytest.mark.parametrize("slide_id", ["TCGA-3C.x", "block 7/slide.1", "..", ".", ".hidden", "Zürich", "a%2Fb", "a\\b"])
def test_folder_names_are_reversible_and_stay_inside(tmp_path, slide_id):
    name = folder_name(slide_id)
    assert unquote(name) == slide_id
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    assert not name.startswith(".")


def test_scores_are_written_as_agreed(tmp_path, make_heatmap):
    write_scores(tmp_path, make_heatmap(attention=[0, 1 / 3, 1e-9, 123456789.0]))
    lines = (tmp_path / "scores.csv").read_text().splitlines()
    assert lines[:3] == [
        "row,col,x_px0,y_px0,attention,gradient_x_input",
        "0,0,0,0,0,-0",
        "0,1,40,0,0.3333333,-0.3333333",
    ]
    assert lines[4] == "3,2,80,120,1.234568e+08,-1.234568e+08"


def test_what_is_written_comes_back(tmp_path, make_heatmap):
    heatmap = make_heatmap(names=('logit_a,"b"', "prob_é\nx"), default_score="prob_é\nx")
    write_scores(tmp_path, heatmap)
    names, grid, values = read_scores(tmp_path)
    assert names == heatmap.names
    assert grid.dtype == np.int32
    np.testing.assert_array_equal(grid, heatmap.grid)
    np.testing.assert_allclose(values, heatmap.values, rtol=1e-6)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "row,col,x_px0,y_px0\n", "row,col,x_px0,y_px0,a\n1,2,3\n",
                                  "row,col,x_px0,y_px0,a\n1,2,3,4,x\n", "\0"])  # fmt: skip
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(HeatmapError, match=r"scores\.csv.*run"):
        read_scores(tmp_path)


def test_meta_says_what_is_complete(tmp_path, make_heatmap):
    heatmap = make_heatmap()
    write_scores(tmp_path, heatmap)
    assert read_meta(tmp_path) is None
    assert not is_complete(tmp_path, "f1")
    write_meta(tmp_path, heatmap, {"scores": "scores.csv"}, "f1")
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta == {
        "slide_id": "s 1", "case_id": "p1", "checkpoint": "best.ckpt", "scores": ["attention", "gradient_x_input"],
        "default_score": "attention", "predicted": {"y_pred": "b", "prob_a": 0.25, "prob_b": 0.75}, "patch_px0": 40,
        "step_px0": 40, "dimensions_px0": [135, 170], "mpp": 0.5, "slide_path": None,
        "files": {"scores": "scores.csv"}, "fingerprint": "f1",
    }  # fmt: skip
    assert is_complete(tmp_path, "f1")
    assert not is_complete(tmp_path, "f2")
    write_meta(tmp_path, heatmap, {"scores": "scores.csv", "png": "heatmap.png"}, "f1")
    assert not is_complete(tmp_path, "f1")  # a file is missing
    write_scores(tmp_path, heatmap)
    assert read_meta(tmp_path) is None  # new scores: the pictures are of others


def test_scores_that_do_not_fit_are_refused(make_heatmap):
    with pytest.raises(HeatmapError, match="do not fit 4 patches"):
        make_heatmap(values=np.zeros((3, 2), np.float32))
    with pytest.raises(HeatmapError, match="default 'x'"):
        make_heatmap(default_score="x")
    with pytest.raises(HeatmapError, match="not finite"):
        make_heatmap(attention=[0, 1, np.nan, 2])


def test_the_index_has_a_row_for_each_slide(tmp_path):
    rows = [IndexRow("a,b", "p", "a%2Cb", "done"), IndexRow("c", "q", "", "failed", "no such\nfile")]
    write_index(tmp_path, rows)
    with (tmp_path / "heatmaps.csv").open(newline="") as stream:
        found = list(csv.reader(stream))
    assert found[0] == ["slide_id", "case_id", "folder", "status", "error"]
    assert found[1:] == [["a,b", "p", "a%2Cb", "done", ""], ["c", "q", "", "failed", "no such file"]]
