from __future__ import annotations

import io
import json
import threading

import numpy as np
import pytest
import tifffile
from PIL import Image

from span_sparse.errors import ReportError, SlideError
from span_sparse.evaluation import write_results
from span_sparse.report import read_evaluation, read_heatmap_folder
from span_sparse.viewer import ViewerContent
from span_sparse.viewer.slides import OpenSlides


@pytest.fixture
def slides_dir(tmp_path):
    """Slides of 1000 × 700 px, each of another grey."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for number, name in enumerate("abcdef"):
        with tifffile.TiffWriter(folder / f"{name}.tif") as file:
            picture = np.full((700, 1000, 3), 40 * number, np.uint8)
            file.write(picture, tile=(64, 64), photometric="rgb", compression="zlib")
    return folder


def content(heatmaps, slides_dir=None, evaluation=None) -> ViewerContent:
    return ViewerContent(read_heatmap_folder(heatmaps), slides_dir, evaluation)


def about(found: ViewerContent, number: int) -> dict:
    return json.loads(found.slide(number))


def test_scores_as_they_were_written(make_heatmaps):
    values = {"attention": [0.25, -1.5, float("nan")], "logit_x": [1.0, 2.0, 3.0]}
    found = content(make_heatmaps({"a": values}))
    assert np.frombuffer(found.corners(0), "<i4").reshape(-1, 2).tolist() == [[0, 0], [64, 0], [128, 0]]
    np.testing.assert_array_equal(np.frombuffer(found.score(0, 0), "<f4"), np.float32(values["attention"]))
    assert json.loads(found.patch(0, 1)) == {"row": 0, "col": 1, "x_px0": 64, "y_px0": 0, "values": [-1.5, 2.0]}
    assert json.loads(found.patch(0, 2))["values"] == [None, 3.0]
    slide = about(found, 0)
    assert (slide["scores"], slide["default"], slide["has_slide"]) == (["attention", "logit_x"], 0, False)
    assert slide["limits"][1] == [pytest.approx(-2.98), pytest.approx(2.98), False]


def test_no_other_number_has_an_answer(make_heatmaps):
    found = content(make_heatmaps({"a": {"attention": [1.0]}}))
    assert found.slide(1) is None
    assert found.slide(-1) is None
    assert found.corners(1) is None
    assert found.score(0, 1) is None
    assert found.patch(0, 1) is None
    assert found.patch(1, 0) is None
    assert found.tile(1, 8, 0, 0) is None
    assert found.tile(0, 8, 1, 0) is None


def test_the_scale_of_the_cohort(make_heatmaps):
    heatmaps = make_heatmaps({"a": {"attention": [1.0, 2.0], "logit_x": [1.0, 2.0]}})
    (heatmaps / "scale.json").write_text(json.dumps({"score": "attention", "low": -7.0, "high": 9.0}))
    limits = about(content(heatmaps), 0)["limits"]
    assert limits[0] == [-7.0, 9.0, True]
    assert limits[1][2] is False
    (heatmaps / "scale.json").write_text(json.dumps({"score": "attention", "low": 9.0, "high": 9.0}))
    with pytest.raises(ReportError, match=r"scale\.json"):
        content(heatmaps)


def test_tiles_are_the_slide_or_white(make_heatmaps, slides_dir):
    found = content(make_heatmaps({"c": {"attention": [1.0]}, "elsewhere": {"attention": [1.0]}}), slides_dir)
    grey = np.asarray(Image.open(io.BytesIO(found.tile(0, 9, 1, 0))))
    assert grey.shape == (256, 244, 3)
    assert abs(grey.astype(int) - 80).max() <= 1
    white = np.asarray(Image.open(io.BytesIO(found.tile(1, 9, 1, 0))))
    assert white.shape == grey.shape
    assert white.min() == 255
    assert about(found, 0)["has_slide"]
    assert "elsewhere" in about(found, 1)["reason"]


def test_a_slide_of_another_size_is_not_shown(make_heatmaps, slides_dir):
    found = content(make_heatmaps({"a": {"attention": [1.0]}}, dimensions_px0=[1000, 701]), slides_dir)
    assert "1000 × 700 px, the scores are of a slide of 1000 × 701" in about(found, 0)["reason"]


@pytest.mark.parametrize("stated", ["../outside.tif", "/etc/passwd", "{root}/outside.tif"])
def test_no_slide_outside_the_folder_is_opened(make_heatmaps, slides_dir, tmp_path, stated):
    (slides_dir / "a.tif").rename(tmp_path / "outside.tif")
    heatmaps = make_heatmaps({"a": {"attention": [1.0]}, "../outside": {"attention": [1.0]}},
                             slide_path=stated.format(root=tmp_path))  # fmt: skip
    found = content(heatmaps, slides_dir)
    assert not about(found, 0)["has_slide"]
    assert not about(found, 1)["has_slide"]


def test_the_most_wrong_come_first(make_heatmaps, tmp_path):
    import pandas as pd

    frame = pd.DataFrame(
        {
            "slide_id": ["a", "b", "c"], "case_id": ["p", "q", "r"], "fold": "0", "split": "test",
            "y_true": ["x", "x", ""], "y_pred": ["x", "y", "x"], "prob_x": [0.8, 0.1, 0.9], "prob_y": [0.2, 0.9, 0.1],
        }
    )  # fmt: skip
    write_results(tmp_path / "evaluation", frame, "classification", resamples=10)
    heatmaps = make_heatmaps({name: {"attention": [1.0]} for name in "abcd"})
    found = content(heatmaps, evaluation=read_evaluation(tmp_path / "evaluation"))
    listed = json.loads(found.cohort())["slides"]
    assert [slide["id"] for slide in listed] == ["b", "a", "c", "d"]
    assert [slide["wrong"] for slide in listed] == [True, False, False, False]
    assert listed[0]["error"] == pytest.approx(0.9)
    assert listed[3]["predicted"] == "b 0.250"
    assert listed[2]["error"] is None


def test_few_slides_stay_open_under_many_threads(slides_dir):
    slides = OpenSlides(max_open=2)
    wrong = []

    def look(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 6, 12).tolist():
            tile = slides.tile(slides_dir / f"{'abcdef'[number]}.tif", 9, 0, 0)
            if abs(np.asarray(Image.open(io.BytesIO(tile))).astype(int) - 40 * number).max() > 1:
                wrong.append(number)

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert slides.num_open <= 2
    slides.close()
    assert slides.num_open == 0
    with pytest.raises(SlideError):
        slides.tile(slides_dir / "absent.tif", 9, 0, 0)
