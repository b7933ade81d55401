from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from span_sparse.errors import SlideError
from span_sparse.grid import BoxPx0
from span_sparse.heatmaps import ColourScale, render
from span_sparse.heatmaps.gallery import top_patches
from span_sparse.wsi import open_slide
from span_sparse.wsi.openslide_reader import OpenSlideReader

SCALE = ColourScale("attention", 0, 3)


@pytest.fixture
def slide(tmp_path):
    """135 × 170 px; the four patches of the fixture are red, green, blue and yellow."""
    picture = np.full((170, 135, 3), 240, dtype=np.uint8)
    for (x, y), colour in zip([(0, 0), (40, 0), (40, 40), (80, 120)],
                              [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)], strict=True):  # fmt: skip
        picture[y : y + 40, x : x + 40] = colour
    tifffile.imwrite(tmp_path / "s.tiff", picture, tile=(64, 64), photometric="rgb", compression="zlib",
                     resolution=(20_000, 20_000), resolutionunit="CENTIMETER")  # fmt: skip
    return tmp_path / "s.tiff"


def test_with_the_slide(tmp_path, make_heatmap, slide):
    heatmap = make_heatmap(slide_path=slide)
    with open_slide(slide) as reader:
        files = render(tmp_path, heatmap, SCALE, reader=reader, regions={"tumor": np.array([True, True, False, True])})
    assert files == {
        "scores": "scores.csv", "png": "heatmap.png", "tif": "heatmap.tif", "patches": "patches.geojson",
        "regions": "regions.geojson", "gallery": "gallery.png",
    }  # fmt: skip
    assert all((tmp_path / name).is_file() for key, name in files.items() if key != "scores")
    gallery = np.asarray(Image.open(tmp_path / "gallery.png").convert("RGB")).astype(int)
    middles = [gallery[83 + 150, 150 + 300 * place].tolist() for place in range(4)]
    assert middles == [[200, 200, 0], [0, 0, 200], [0, 200, 0], [200, 0, 0]]  # the highest score first


def test_without_the_slide(tmp_path, make_heatmap):
    (tmp_path / "gallery.png").write_bytes(b"of an earlier run")
    (tmp_path / "regions.geojson").write_bytes(b"of an earlier run")
    files = render(tmp_path, make_heatmap(), SCALE)
    assert set(files) == {"scores", "png", "tif", "patches"}
    assert {path.name for path in tmp_path.iterdir()} == {"heatmap.png", "heatmap.tif", "patches.geojson"}
    picture = np.asarray(Image.open(tmp_path / "heatmap.png").convert("RGB")).reshape(-1, 3)
    for colour in SCALE.colours(np.arange(4)):  # opaque on white
        assert (picture == colour).all(axis=1).sum() > 1000


def test_the_picture_is_the_slide_under_half_transparent_colours(tmp_path, make_heatmap, slide):
    with open_slide(slide) as reader:
        render(tmp_path, make_heatmap(), SCALE, reader=reader)
    picture = np.asarray(Image.open(tmp_path / "heatmap.png").convert("RGB")).astype(float)
    colours = SCALE.colours(np.arange(4)) * 0.55 + 0.45 * np.array(
        [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0)]
    )
    scale = (np.abs(picture - 240).max(axis=2) < 2).any(axis=0).sum() / 135  # pixels of the picture per slide pixel
    for colour in colours:
        number = (np.abs(picture - colour).max(axis=2) < 3).sum()
        assert number == pytest.approx((40 * scale) ** 2, rel=0.05)


def test_another_slide_is_refused(tmp_path, make_heatmap, slide):
    with open_slide(slide) as reader, pytest.raises(SlideError, match="has 135 × 170 px, the slide of the features"):
        render(tmp_path, make_heatmap(dimensions_px0=(136, 170)), SCALE, reader=reader)


def test_the_origin_is_the_corner_of_the_bounds(tmp_path, make_heatmap, slide, monkeypatch):
    monkeypatch.setattr(OpenSlideReader, "bounds", property(lambda reader: BoxPx0(31, 17, 135, 170)))
    with open_slide(slide) as reader:
        render(tmp_path, make_heatmap(), SCALE, reader=reader, regions={"tumor": np.ones(4, bool)})
    patches = json.loads((tmp_path / "patches.geojson").read_text())
    assert patches["features"][3]["geometry"]["coordinates"][0][0] in ([49, 103], [89, 103], [49, 143], [89, 143])
    regions = json.loads((tmp_path / "regions.geojson").read_text())
    corners = np.concatenate([ring for one in regions["features"] for ring in one["geometry"]["coordinates"]])
    assert corners.min(axis=0).tolist() == [-31, -17]
    picture = np.asarray(Image.open(tmp_path / "heatmap.png").convert("RGB")).astype(float)
    yellow = SCALE.colours(np.array([3]))[0] * 0.55 + 0.45 * np.array((200, 200, 0))
    rows, cols = np.nonzero(np.abs(picture - yellow).max(axis=2) < 3)
    scale = (cols.max() + 1 - cols.min()) / 40  # pixels of the picture per slide pixel
    assert cols.min() == pytest.approx((80 - 31) * scale, abs=2)  # the picture begins at the bounds
    shown = (np.abs(picture - 240).max(axis=2) < 2).sum(axis=1) > 100  # glass, not the edges of letters
    assert rows.min() - shown.argmax() == pytest.approx((120 - 17) * scale, abs=3)


@pytest.mark.parametrize("slide_id", ["$x^2$ <b>", "腫瘍", "x" * 200])
@pytest.mark.parametrize("dimensions", [(5000, 170), (135, 9000)])
def test_odd_names_and_shapes_are_drawn(tmp_path, make_heatmap, slide_id, dimensions):
    names = ("logit_$a_b", "prob_腫")
    heatmap = make_heatmap(slide_id=slide_id, names=names, default_score=names[0], dimensions_px0=dimensions)
    render(tmp_path, heatmap, ColourScale.of(names[0], heatmap.score()))
    with Image.open(tmp_path / "heatmap.png") as picture:
        assert max(picture.size) < 3500


def test_equal_scores_keep_the_order_of_the_rows():
    assert top_patches(np.array([2.0, 5.0, 5.0, 1.0]), 3).tolist() == [1, 2, 0]
