"""The overlay as other programs open it, and pixel by pixel beside its slide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from span_sparse.grid import Lattice, LatticeSpec
from span_sparse.heatmaps import ColourScale, ScoreRaster
from span_sparse.heatmaps.picture import overlay
from span_sparse.heatmaps.pyramid import overlay_scale, write_pyramid
from span_sparse.wsi import open_slide, read_thumbnail

SLIDES = Path(__file__).parents[3] / "shared" / "slides"
LINEAR = ColourScale("attention", 0.0, 1.0)


def all_cells(rows: int, cols: int) -> list[tuple[int, int]]:
    return [(row, col) for row in range(rows) for col in range(cols)]


def score_of(colours: np.ndarray) -> np.ndarray:
    """The scores in [0, 1] that colours stand for, NaN for others."""
    codes, which = np.unique(LINEAR.colours(np.arange(256) / 255) @ [65536, 256, 1], return_index=True)
    wanted = colours @ np.array([65536, 256, 1])
    place = np.searchsorted(codes, wanted).clip(max=len(codes) - 1)
    return np.where(codes[place] == wanted, which[place] / 255, np.nan)


@pytest.mark.parametrize(
    ("step", "dimensions", "scale"),
    [(448, (100_000, 80_000), 16), (32, (900, 700), 2), (16, (900, 700), 1), (31, (9, 9), 1), (224, (200_000, 9), 16)],
)
def test_the_scale_is_a_power_of_two(step, dimensions, scale):
    assert overlay_scale(step, dimensions) == scale


def test_openslide_opens_it(tmp_path, make_heatmap):
    lattice = LatticeSpec(100, 0.5).on_slide(0.25)  # 200 px, so that a pixel of the overlay is 8 of the slide
    rows, cols = 35, 41
    values = np.random.default_rng(0).random(rows * cols).astype(np.float32)
    heatmap = make_heatmap(all_cells(rows, cols), values, lattice, dimensions_px0=(8301, 7013))
    write_pyramid(tmp_path / "o.tif", heatmap, LINEAR)
    with tifffile.TiffFile(tmp_path / "o.tif") as file:
        assert file.is_bigtiff
        assert file.pages[0].is_tiled
    with openslide.OpenSlide(tmp_path / "o.tif") as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert slide.level_dimensions == ((1038, 877), (519, 439), (260, 220))
        assert slide.level_downsamples == pytest.approx((1, 2, 4), rel=0.01)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(8 * 0.25)
        for level, factor in enumerate((8, 16, 32)):
            picture = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB"))
            for row, col in [(0, 0), (17, 5), (34, 40)]:
                middle = picture[(row * 200 + 100) // factor, (col * 200 + 100) // factor]
                expected = LINEAR.colours(values[row * cols + col])
                np.testing.assert_array_equal(middle, expected)
        assert (picture[-1] == 255).all()  # below the last whole patch


BRIGHT = (3, 4)
"""Cell of the bright square."""


@pytest.fixture
def slide_with_a_square(make_slide) -> Callable[[Lattice, float], Path]:
    """A dark slide of 1003 × 777 px whose cell `BRIGHT` is white, with a second level of another ratio."""

    def make(lattice: Lattice, ratio: float) -> Path:
        picture = np.full((777, 1003, 3), 60, dtype=np.uint8)
        x0, y0, x1, y1 = lattice.box(*BRIGHT)
        picture[y0:y1, x0:x1] = 255
        size = int(1003 / ratio), int(777 / ratio)
        coarse = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
        return make_slide([picture, coarse], mpp=0.5)

    return make


@pytest.fixture
def make_slide(tmp_path) -> Callable[..., Path]:
    def make(levels: Sequence[np.ndarray], mpp: float) -> Path:
        with tifffile.TiffWriter(tmp_path / "slide.tiff") as file:
            for index, picture in enumerate(levels):
                file.write(picture, tile=(64, 64), photometric="rgb", compression="zlib", subfiletype=int(index > 0),
                           resolution=(10_000 / mpp, 10_000 / mpp), resolutionunit="CENTIMETER")  # fmt: skip
        return tmp_path / "slide.tiff"

    return make


@pytest.mark.parametrize("step", [20, 37, 80])
@pytest.mark.parametrize("origin", [(0, 0), (13, 7)])
@pytest.mark.parametrize("ratio", [3.7, 4.016])
def test_the_square_of_the_overlay_is_the_square_of_the_slide(
    tmp_path, make_heatmap, slide_with_a_square, step, origin, ratio
):
    lattice = Lattice(LatticeSpec(20, 1.0), 0.5, step, origin)
    cells = all_cells(*lattice.shape(1003, 777))
    path = slide_with_a_square(lattice, ratio)
    heatmap = make_heatmap(cells, [cell == BRIGHT for cell in cells], lattice, dimensions_px0=(1003, 777))
    write_pyramid(tmp_path / "o.tif", heatmap, LINEAR)
    with openslide.OpenSlide(path) as slide, openslide.OpenSlide(tmp_path / "o.tif") as drawn:
        white = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("L")) == 255
        scale = overlay_scale(step, (1003, 777))
        assert scale == {20: 1, 37: 2, 80: 4}[step]
        for level, (width, height) in enumerate(drawn.level_dimensions):
            factor = scale * 2**level
            found = score_of(np.asarray(drawn.read_region((0, 0), level, (width, height)).convert("RGB")))
            padded = np.zeros((height * factor, width * factor))
            padded[:777, :1003] = white
            share = padded.reshape(height, factor, width, factor).mean(axis=(1, 3))
            known = ~np.isnan(found)  # white where there is no patch
            assert known[share > 0].all()
            assert np.abs(found - share)[known].max() < 0.003  # 256 colours
            assert (found[known] == 1).sum() == (share == 1).sum() > 0
    with open_slide(path) as reader:  # the picture: thumbnail and overlay on the same raster
        for factor in (4, 5, 9):
            bright = (read_thumbnail(reader, factor)[..., 0] - 60.0) / 195
            drawn = overlay(ScoreRaster(heatmap), LINEAR, factor, 1.0)
            scores = np.where(drawn[..., 3] > 0, score_of(drawn[..., :3]), 0)
            x0, y0, x1, y1 = lattice.box(*BRIGHT)  # beyond the slide the thumbnail is white, too
            around = slice(y0 // factor - 2, y1 // factor + 3), slice(x0 // factor - 2, x1 // factor + 3)
            bright, scores = bright[around], scores[around]
            assert np.abs(bright - scores).max() < 0.35  # edges inside a pixel of the level, Lanczos' ripples
            for place in np.indices(scores.shape):
                centres = [(place * weights).sum() / weights.sum() for weights in (bright, scores)]
                assert centres[0] == pytest.approx(centres[1], abs=0.8 / factor)  # less than a pixel of level 0


@pytest.mark.realdata
def test_on_a_real_slide_every_patch_has_its_own_pixels(tmp_path, make_heatmap):
    if not SLIDES.is_dir():
        pytest.skip("the real slides are not here")
    path = SLIDES / "CMU-1-Small-Region.svs"
    with openslide.OpenSlide(path) as slide:
        width, height = slide.dimensions
        mpp = float(slide.properties["openslide.mpp-x"])
        lattice = LatticeSpec(224, 0.5).on_slide(mpp)
        assert lattice.step_px0 == 224
        cells = all_cells(*lattice.shape(width, height))
        grey = np.asarray(slide.read_region((0, 0), 0, (width, height)).convert("L"), dtype=float)
    darkness = [1 - grey[r * 224 : r * 224 + 224, c * 224 : c * 224 + 224].mean() / 255 for r, c in cells]
    heatmap = make_heatmap(cells, darkness, lattice, dimensions_px0=(width, height))
    write_pyramid(tmp_path / "o.tif", heatmap, LINEAR)
    with openslide.OpenSlide(tmp_path / "o.tif") as drawn:
        assert drawn.dimensions == (-(-width // 8), -(-height // 8))
        assert float(drawn.properties["openslide.mpp-x"]) == pytest.approx(8 * mpp, rel=1e-4)
        picture = np.asarray(drawn.read_region((0, 0), 0, drawn.dimensions).convert("RGB"))
    expected = np.full_like(picture, 255)
    for (row, col), colour in zip(cells, LINEAR.colours(heatmap.score()), strict=True):
        expected[row * 28 : row * 28 + 28, col * 28 : col * 28 + 28] = colour
    np.testing.assert_array_equal(picture, expected)
