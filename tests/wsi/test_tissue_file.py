from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from shapely.geometry import box

from span_sparse.errors import AnnotationError, ConfigError, TissueNotFoundError
from span_sparse.grid import BoxPx0
from span_sparse.wsi import TissueSettings, find_tissue, open_slide, segment_tissue
from span_sparse.wsi.geojson import feature_collection, write_geojson
from span_sparse.wsi.tissue_file import mask_from_file


class Slide:
    """As much of a reader as a mask needs."""

    path = Path("s.mrxs")

    def __init__(self, width: int, height: int, bounds: BoxPx0 | None = None) -> None:
        self.width_px0, self.height_px0, self.bounds = width, height, bounds


def mask_of(path: Path, slide: Slide, scale_px0: int, origin: str = "slide") -> np.ndarray:
    rows, cols = -(-slide.height_px0 // scale_px0), -(-slide.width_px0 // scale_px0)
    return mask_from_file(path, slide, origin, rows, cols, scale_px0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mask_shape", "slide_shape", "scale_px0"),
    [((60, 80), (600, 800), 10), ((60, 80), (600, 800), 16), ((60, 80), (600, 800), 4), ((33, 44), (601, 799), 16)],
)
def test_half_of_a_pixel_decides_whatever_the_size(tmp_path, mask_shape, slide_shape, scale_px0):
    """Against painting the picture on level-0 pixels by nearest neighbour and counting."""
    picture = np.random.default_rng(0).random(mask_shape) < 0.5
    picture = np.kron(picture[::4, ::4], np.ones((4, 4), bool))[: mask_shape[0], : mask_shape[1]]
    Image.fromarray(picture.astype(np.uint8) * 7).save(tmp_path / "m.png")
    found = mask_of(tmp_path / "m.png", Slide(slide_shape[1], slide_shape[0]), scale_px0)
    rows, cols = (
        ((np.arange(extent) + 0.5) * size / extent).astype(int)
        for extent, size in zip(slide_shape, picture.shape, strict=True)
    )
    full = picture[np.ix_(rows, cols)].astype(float)
    padded = np.full((found.shape[0] * scale_px0, found.shape[1] * scale_px0), np.nan)
    padded[: slide_shape[0], : slide_shape[1]] = full
    blocks = padded.reshape(found.shape[0], scale_px0, found.shape[1], scale_px0)
    share = np.nanmean(blocks, axis=(1, 3))
    clear = np.abs(share - 0.5) > 0.06  # nearest neighbour moves edges by up to half a pixel
    np.testing.assert_array_equal(found[clear], share[clear] > 0.5)
    assert clear.mean() > 0.8


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "RGB", "RGBA", "P", "LA"])
def test_kinds_of_pictures(tmp_path, mode):
    """Set: the left half; where there is opacity, what is transparent is not set, whatever its colour."""
    pixels = np.zeros((20, 40), np.uint8)
    pixels[:, :20] = 1
    image = {
        "1": lambda: Image.fromarray(pixels * 255).convert("1"),
        "L": lambda: Image.fromarray(pixels),
        "I;16": lambda: Image.fromarray(pixels.astype(np.uint16) * 300),
        "RGB": lambda: Image.fromarray(np.stack([0 * pixels, 0 * pixels, pixels], axis=2)),
        "RGBA": lambda: Image.fromarray(np.stack([pixels | 1] * 3 + [pixels * 200], axis=2)),
        "P": lambda: Image.fromarray(pixels, mode="P"),
        "LA": lambda: Image.merge("LA", [Image.new("L", (40, 20), 255), Image.fromarray(pixels * 9)]),
    }[mode]()
    assert image.mode == mode
    if mode == "P":
        image.putpalette([0, 0, 0, 0, 0, 0])  # the index counts, not the colour
    image.save(tmp_path / "m.png")
    expected = np.zeros((10, 20), bool)
    expected[:, :10] = True
    np.testing.assert_array_equal(mask_of(tmp_path / "m.png", Slide(400, 200), 20), expected)


def test_a_tiled_tiff(tmp_path):
    pixels = np.zeros((64, 128), np.uint8)
    pixels[16:32] = 255
    tifffile.imwrite(tmp_path / "m.tif", pixels, tile=(32, 32), compression="zlib")
    assert mask_of(tmp_path / "m.tif", Slide(1280, 640), 40).sum(axis=1).tolist() == [0] * 4 + [32] * 4 + [0] * 8


def test_geojson_and_bounds(tmp_path):
    """A file that shows the bounds counts from their corner."""
    path = tmp_path / "a.geojson"
    write_geojson(path, feature_collection([({}, box(0, 0, 100, 50)), ({}, box(50, 0, 150, 50))]))
    slide = Slide(400, 200, BoxPx0(200, 100, 400, 200))
    on_slide, on_bounds = mask_of(path, slide, 10), mask_of(path, slide, 10, "bounds")
    assert np.argwhere(on_slide).min(axis=0).tolist() == [0, 0]
    assert np.argwhere(on_slide).max(axis=0).tolist() == [4, 14]
    assert on_slide.sum() == 75
    np.testing.assert_array_equal(np.roll(on_slide, (10, 20), axis=(0, 1)), on_bounds)
    Image.fromarray(np.ones((50, 100), np.uint8)).save(tmp_path / "m.png")
    picture = mask_of(tmp_path / "m.png", slide, 10, "bounds")
    assert picture[10:, 20:].all()
    assert picture.sum() == 200


def test_files_that_do_not_fit(tmp_path, monkeypatch):
    slide = Slide(400, 200)
    Image.fromarray(np.ones((50, 90), np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(
        AnnotationError, match=r"m\.png: has 90 × 50 px, proportions 1\.8, .*slide has 400 × 200 px, 2;"
    ):
        mask_of(tmp_path / "m.png", slide, 10)
    with pytest.raises(AnnotationError, match=r"bounds of s\.mrxs, which has none; set tissue_mask_origin to slide"):
        mask_of(tmp_path / "m.png", slide, 10, "bounds")
    write_geojson(tmp_path / "far.geojson", feature_collection([({}, box(1000, 0, 1100, 50))]))
    with pytest.raises(
        AnnotationError, match=r"far\.geojson: its polygons lie at x 1000 to 1100, .* outside the slide"
    ):
        mask_of(tmp_path / "far.geojson", slide, 10)
    write_geojson(tmp_path / "none.geojson", feature_collection([]))
    with pytest.raises(AnnotationError, match=r"none\.geojson: holds no polygon"):
        mask_of(tmp_path / "none.geojson", slide, 10)
    for name, content in (("text.png", b"text"), ("cut.png", (tmp_path / "m.png").read_bytes()[:60])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AnnotationError, match=rf"{name}: cannot be read as a tissue mask"):
            mask_of(tmp_path / name, slide, 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(AnnotationError, match=r"m\.png: is too large for a tissue mask"):
        mask_of(tmp_path / "m.png", slide, 10)


def test_damaged_pictures_are_one_line_or_a_mask(tmp_path):
    """Bytes changed in the header of a TIFF and a PNG; Pillow answers with all kinds of exceptions and warnings."""
    rng = np.random.default_rng(0)
    refused: list[str] = []
    for suffix in ("png", "tif"):
        path = tmp_path / f"m.{suffix}"
        Image.fromarray(np.ones((20, 40), np.uint8)).save(path)
        whole = path.read_bytes()
        for _ in range(150):
            damaged = bytearray(whole)
            for place in rng.integers(0, min(len(whole), 200), 3):
                damaged[place] = rng.integers(0, 256)
            path.write_bytes(damaged)
            try:
                assert mask_of(path, Slide(400, 200), 20).shape == (10, 20)
            except AnnotationError as error:
                refused.append(str(error))
    assert len(refused) > 50
    assert not any("\n" in message for message in refused)


def test_the_mask_is_taken_as_it_is(make_slide, tmp_path):
    """A single pixel of a blank slide counts: nothing is dropped or rejected, and no colour is asked for."""
    pixels = np.zeros((40, 50), np.uint8)
    pixels[7, 9] = 1
    Image.fromarray(pixels).save(tmp_path / "m.png")
    settings = TissueSettings().with_mask_file(tmp_path / "m.png")
    with open_slide(make_slide([np.full((640, 800, 3), 255, np.uint8)])) as slide:
        tissue = find_tissue(slide, 0.5, settings)
        Image.fromarray(pixels * 0).save(tmp_path / "empty.png")
        empty = TissueSettings().with_mask_file(tmp_path / "empty.png")
        assert not segment_tissue(slide, 0.5, empty).mask.any()
        with pytest.raises(TissueNotFoundError, match=r"slide\.tiff: the mask .*empty\.png marks nothing on it"):
            find_tissue(slide, 0.5, empty)
    assert np.argwhere(tissue.mask).tolist() == [[7, 9]]
    assert (tissue.method, tissue.removed) == ("mask", {})


def test_settings_know_the_mask_by_name_and_content(tmp_path):
    for folder, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.png").write_bytes(content)
    a, b, c = (TissueSettings().with_mask_file(tmp_path / folder / "m.png").as_dict() for folder in "abc")
    assert a == b
    assert a != c
    assert a["mask_file"] == "m.png"
    assert set(a) == set(TissueSettings().as_dict())
    with pytest.raises(AnnotationError, match=r"absent\.png: the tissue mask cannot be read: No such file"):
        TissueSettings().with_mask_file(tmp_path / "absent.png")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "otzu"}, "no tissue method 'otzu'; there are otsu, hed, mask"),
        ({"method": "mask"}, "needs a mask file"),
        ({"mask_file": "m.png"}, "used by the tissue method 'mask' only, got 'otsu'"),
        ({"min_object_mm2": -1.0}, r"min_object_mm2 must be in \[0, 1e\+06\], got -1\.0"),
        ({"saturation_floor": float("nan")}, "saturation_floor must be in"),
        ({"hed_low": 0.5}, "thresholds must ascend"),
        ({"mask_origin": "corner"}, "one of slide, bounds, got 'corner'"),
    ],
)
def test_settings_that_cannot_work(values, message):
    with pytest.raises(ConfigError, match=message):
        TissueSettings(**values)
