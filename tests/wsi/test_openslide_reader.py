from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image

from span_sparse.errors import MppError, SlideError
from span_sparse.grid import BoxPx0
from span_sparse.wsi import open_slide, pick_level, read_thumbnail
from span_sparse.wsi.openslide_reader import OpenSlideReader
from span_sparse.wsi.reader import resampling


class FakeHandle:
    """Properties and one level, without pixels."""

    level_dimensions = ((100, 200),)
    level_downsamples = (1.0,)

    def __init__(self, **properties: str) -> None:
        self.properties = {key.replace("__", ".").replace("_", "-"): value for key, value in properties.items()}

    def close(self) -> None: ...


def with_properties(**properties: str) -> OpenSlideReader:
    return OpenSlideReader(Path("fake.svs"), FakeHandle(**properties))  # type: ignore[arg-type]


def random_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_level_0_pixels_come_back_untouched(make_slide):
    picture = random_picture(301, 203)
    with open_slide(make_slide([picture])) as slide:
        assert (slide.width_px0, slide.height_px0, slide.vendor) == (203, 301, "generic-tiff")
        region = slide.read_region(BoxPx0(37, 101, 37 + 53, 101 + 47), (53, 47))
    np.testing.assert_array_equal(region, picture[101:148, 37:90])


def test_outside_the_slide_is_white(make_slide):
    with open_slide(make_slide([np.zeros((70, 90, 3), np.uint8)])) as slide:
        region = slide.read_region(BoxPx0(-5, 60, 15, 80), 20)
    expected = np.full((20, 20, 3), 255, np.uint8)
    expected[:10, 5:] = 0
    np.testing.assert_array_equal(region, expected)


def test_picks_the_level_that_is_fine_enough_but_no_finer(make_slide):
    """Each level has its own colour, so the colour says which level was read."""
    levels = [np.full((480 // f, 640 // f, 3), colour, np.uint8) for f, colour in ((1, 10), (2, 20), (8, 80))]
    with open_slide(make_slide(levels)) as slide:
        assert slide.level_downsamples == (1.0, 2.0, 8.0)
        box = BoxPx0(0, 0, 160, 160)
        seen = [int(slide.read_region(box, size).max()) for size in (320, 160, 81, 80, 79, 21, 20, 7)]
    assert seen == [10, 10, 10, 20, 20, 20, 80, 80]


@pytest.mark.parametrize(("needed", "level"), [(1.0, 0), (3.9, 0), (4.0, 1), (15.9, 1), (16.0, 2), (0.5, 0), (99.0, 2)])
def test_pick_level_allows_for_rounded_downsamples(needed, level):
    assert pick_level((1.0, 4.00004, 16.003), needed) == level


def test_bright_square_is_where_it_is_on_a_level_with_fractional_downsample(make_slide):
    """A level of 1003 / 401 = 2.50 px0 a pixel, read where level pixels and level-0 pixels never meet."""
    x0, y0, edge = 517, 331, 150
    base = np.zeros((901, 1003, 3), np.uint8)
    base[y0 : y0 + edge, x0 : x0 + edge] = 255
    factor_x, factor_y = 1003 / 401, 901 / 360
    coverage_x = overlap(401, factor_x, x0, x0 + edge)
    coverage_y = overlap(360, factor_y, y0, y0 + edge)
    level = np.rint(255 * coverage_y[:, None, None] * coverage_x[None, :, None]).astype(np.uint8).repeat(3, axis=2)
    with open_slide(make_slide([base, level])) as slide:
        box = BoxPx0(303, 201, 303 + 500, 201 + 500)
        fine = slide.read_region(box, 500)[..., 0].astype(float) / 255
        coarse = slide.read_region(box, 200)[..., 0].astype(float) / 255
    for picture, pixel_px0 in ((fine, 1.0), (coarse, 2.5)):
        rows, cols = np.indices(picture.shape) + 0.5
        centre = (picture * cols).sum() / picture.sum() * pixel_px0, (picture * rows).sum() / picture.sum() * pixel_px0
        assert centre == pytest.approx((x0 - 303 + edge / 2, y0 - 201 + edge / 2), abs=0.35)
        assert picture.sum() * pixel_px0**2 == pytest.approx(edge**2, rel=0.01)


def overlap(num_pixels: int, factor: float, start: float, stop: float) -> np.ndarray:
    """Share of each level pixel inside [start, stop) of level 0."""
    left = np.arange(num_pixels) * factor
    return np.clip(np.minimum(left + factor, stop) - np.maximum(left, start), 0, None) / factor


def ramp(rows: int, cols: int, rise: float) -> np.ndarray:
    """Grey values rising by `rise` a pixel along x, dithered over the rows so that column means keep the fraction."""
    dither = (np.arange(rows) * 3 % 8 + 0.5) / 8
    grey = np.floor((np.arange(cols) + 0.5) * rise + dither[:, None]).astype(np.uint8)
    return grey[..., None].repeat(3, axis=2)


def test_neighbouring_boxes_of_a_fractional_level_do_not_drift(make_slide):
    """A ramp along x: the mean of box k must be its centre, also 20 boxes away; 0.1 grey is 0.8 level-0 pixels."""
    rise = 255 / 2001
    with open_slide(make_slide([ramp(2001, 2001, rise), ramp(500, 500, rise * 4.002)])) as slide:
        assert slide.level_downsamples[1] == pytest.approx(4.002)
        means = [slide.read_region(BoxPx0(97 * k, 3, 97 * (k + 1), 3 + 97), 24).mean() for k in range(20)]
    residual = np.array(means) - [(k + 0.5) * 97 * rise for k in range(20)]
    assert np.abs(residual).max() < 0.2
    assert abs(residual[-8:].mean() - residual[:8].mean()) < 0.05


def test_thumbnail_in_blocks_equals_area_means(make_slide, monkeypatch):
    """Area means, also across the seams of the blocks; 400 × 496 px in blocks of 64."""
    picture = np.stack(
        [ramp(400, 496, 0.5)[..., 0], ramp(496, 400, 0.6)[..., 0].T, ramp(400, 496, 0.1)[..., 0]], axis=2
    )
    monkeypatch.setattr("span_sparse.wsi.thumbnail.MAX_BLOCK_PX", 64)
    with open_slide(make_slide([picture])) as slide:
        thumbnail = read_thumbnail(slide, 8)
    means = picture.reshape(50, 8, 62, 8, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(thumbnail, means, atol=1.5)


def test_thumbnail_shows_background_beyond_the_last_row(make_slide):
    with open_slide(make_slide([np.zeros((100, 100, 3), np.uint8)])) as slide:
        thumbnail = read_thumbnail(slide, 40)
    assert thumbnail.shape == (3, 3, 3)
    assert thumbnail[:2, :2].max() < 10  # LANCZOS rings a little
    assert 100 < thumbnail[2, 0].min() < thumbnail[2, 2].max()


def test_transparent_pixels_take_the_slides_background_colour():
    slide = with_properties(openslide__background_color="FFEEDD")
    slide._handle.read_region = lambda *_: Image.new("RGBA", (2, 2), (0, 0, 0, 0))  # type: ignore[union-attr]
    np.testing.assert_array_equal(slide.read_region(BoxPx0(0, 0, 2, 2), 2)[0, 0], [255, 238, 221])


def test_bounds_and_mpp_of_properties():
    slide = with_properties(
        openslide__vendor="mirax", openslide__bounds_x="1000", openslide__bounds_y="2000",
        openslide__bounds_width="300", openslide__bounds_height="400",
        openslide__mpp_x="0.25", openslide__mpp_y="0.252",
    )  # fmt: skip
    assert slide.bounds == BoxPx0(1000, 2000, 1300, 2400)
    assert slide.mpp_tag == pytest.approx(0.251)
    assert slide.mpp_tiff is None
    assert slide.objective_power is None
    assert with_properties().bounds is None


def test_oblong_pixels_are_refused():
    slide = with_properties(openslide__vendor="aperio", openslide__mpp_x="0.25", openslide__mpp_y="0.26")
    with pytest.raises(MppError, match=r"fake\.svs.*0\.25 µm/px along x and 0\.26 along y.*column `mpp`"):
        _ = slide.mpp_tag


@pytest.mark.parametrize("value", ["0", "nan", "", "abc", "-1", "inf"])
def test_a_tag_that_says_nothing_is_none(value):
    assert with_properties(openslide__mpp_x=value, openslide__mpp_y=value).mpp_tag is None


@pytest.mark.parametrize(("box", "size"), [((0, 0, 0, 10), 4), ((0, 0, 10, 10), 0), ((5, 5, 1, 9), 4)])
def test_empty_requests_are_programming_errors(make_slide, box, size):
    with open_slide(make_slide([random_picture(64, 64)])) as slide, pytest.raises(ValueError, match="positive size"):
        slide.read_region(BoxPx0(*box), size)


def test_after_an_unreadable_tile_the_others_can_be_read(make_slide, break_tile):
    """Tiles are 64 px, four in a row; the sixth is column 64 to 128, row 64 to 128."""
    picture = random_picture(256, 256)
    with open_slide(break_tile(make_slide([picture]), 5)) as slide:
        for _ in range(3):
            np.testing.assert_array_equal(slide.read_region(BoxPx0(0, 0, 64, 64), 64), picture[:64, :64])
            with pytest.raises(SlideError, match=r"slide\.tiff: opens, .* level-0 pixel \(70, 70\)"):
                slide.read_region(BoxPx0(70, 70, 80, 80), 10)
        np.testing.assert_array_equal(slide.read_region(BoxPx0(128, 64, 256, 256), (128, 192)), picture[64:, 128:])


def test_a_file_that_became_another_one_is_not_gone_on_with(make_slide, break_tile):
    path = break_tile(make_slide([random_picture(256, 256)]), 5)
    with open_slide(path) as slide:
        with pytest.raises(SlideError, match="cannot be read"):
            slide.read_region(BoxPx0(70, 70, 80, 80), 10)
        make_slide([random_picture(300, 256)])
        with pytest.raises(SlideError, match=r"slide\.tiff: has changed"):
            slide.read_region(BoxPx0(0, 0, 64, 64), 64)
        path.unlink()
        with pytest.raises(SlideError):
            slide.read_region(BoxPx0(0, 0, 64, 64), 64)


def test_a_header_that_claims_too_much_costs_nothing(make_slide, monkeypatch):
    path = make_slide([random_picture(70, 90)])
    with open_slide(path) as slide:
        monkeypatch.setattr("span_sparse.wsi.thumbnail.MAX_SOURCE_PX", 6000)
        with pytest.raises(SlideError, match=r"slide\.tiff: an overview would be made from 90 × 70 px"):
            read_thumbnail(slide, 8)
    monkeypatch.setattr("span_sparse.wsi.openslide_reader.MAX_EDGE_PX0", 89)
    with pytest.raises(SlideError, match=r"slide\.tiff: claims 90 × 70 px, expected at most 89"):
        open_slide(path)


def area_means(picture: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Exact means of a picture over `rows × cols` equal boxes, whose edges need not meet pixels."""
    down = np.stack([overlap_any(picture.shape[0], rows, row) for row in range(rows)])
    right = np.stack([overlap_any(picture.shape[1], cols, col) for col in range(cols)])
    means = down @ picture[..., 0].astype(float) @ right.T * (rows * cols / picture[..., 0].size)
    return np.rint(means).astype(np.uint8)[..., None].repeat(3, axis=2)


def overlap_any(num_pixels: int, boxes: int, box: int) -> np.ndarray:
    edge = num_pixels / boxes
    left = np.arange(num_pixels)
    return np.clip(np.minimum(left + 1, (box + 1) * edge) - np.maximum(left, box * edge), 0, None)


@pytest.mark.parametrize(("height", "width", "rows", "cols"), [(1004, 2008, 250, 500), (203, 4001, 50, 996)])
def test_boxes_of_a_level_lie_within_a_tenth_of_its_pixel(make_slide, height, width, rows, cols):
    """Downsamples of 4.016 along both sides, and of 4.017 and 4.06 on a strip (OpenSlide has 4.0385 for both).

    A bright band in the middle of a box must be in the middle of what is read, from the left edge to the right.
    """
    picture = np.zeros((height, width, 3), np.uint8)
    lefts = np.arange(5, width - 160, 97)[::3]
    for left in lefts:
        picture[20:100, left + 40 : left + 100] = 200
    with open_slide(make_slide([picture, area_means(picture, rows, cols)])) as slide:
        for left in lefts.tolist():
            region = slide.read_region(BoxPx0(left, 0, left + 140, 120), (34, 29))[..., 0].astype(float)
            across, down = region.sum(axis=0), region.sum(axis=1)
            centre = ((np.arange(34) + 0.5) @ across / across.sum(), (np.arange(29) + 0.5) @ down / down.sum())
            assert centre == pytest.approx((17.0, 14.5), abs=0.1)


def test_every_start_on_a_strip_can_be_read(make_slide):
    """Where OpenSlide's position of a level pixel is rounded up past the box, the pixel before is needed too."""
    ramp_px0 = np.linspace(0, 255, 4001).astype(np.uint8)[None, :, None].repeat(203, axis=0).repeat(3, axis=2)
    with open_slide(make_slide([ramp_px0, area_means(ramp_px0, 50, 996)])) as slide:
        for left in range(0, 3900, 7):
            region = slide.read_region(BoxPx0(left, 4, left + 41, 45), 10)
            assert region.mean() == pytest.approx((left + 20.5) / 4001 * 255, abs=1.0)


def test_not_a_slide(tmp_path):
    with pytest.raises(SlideError, match="no such file"):
        open_slide(tmp_path / "absent.svs")
    with pytest.raises(SlideError, match="is a folder"):
        open_slide(tmp_path)
    (tmp_path / "note.svs").write_text("not a slide")
    with pytest.raises(SlideError, match=r"note\.svs: not a slide"):
        open_slide(tmp_path / "note.svs")
    (tmp_path / "empty.tiff").touch()
    with pytest.raises(SlideError, match=r"empty\.tiff: not a slide"):
        open_slide(tmp_path / "empty.tiff")


def test_closed_slide_says_so(make_slide):
    slide = open_slide(make_slide([random_picture(64, 64)]))
    slide.close()
    slide.close()
    with pytest.raises(SlideError, match="closed"):
        slide.read_region(BoxPx0(0, 0, 9, 9), 9)


@pytest.mark.realdata
def test_damaged_fixtures_give_one_line_and_harm_nobody(real_slides):
    fixtures = real_slides / "openslide-fixtures"
    with pytest.raises(SlideError, match=r"unopenable\.tiff: cannot be opened") as unopenable:
        open_slide(fixtures / "unopenable.tiff")
    with open_slide(fixtures / "unreadable.svs") as slide:
        with pytest.raises(SlideError, match=r"unreadable\.svs: opens, but its pixels cannot be read") as unreadable:
            slide.read_region(BoxPx0(0, 0, 16, 16), 16)
        with pytest.raises(SlideError, match=r"cannot be read"):  # again by itself, not an echo of the first
            slide.read_region(BoxPx0(0, 0, 1, 1), 1)
    assert all("\n" not in str(error.value) for error in (unopenable, unreadable))
    with open_slide(fixtures / "😐.svs") as slide:
        assert slide.read_region(BoxPx0(0, 0, 16, 16), 16).shape == (16, 16, 3)


@pytest.mark.realdata
def test_unicode_and_shell_characters_in_names(real_slides, tmp_path):
    path = tmp_path / "Fäll 7 [a] ${x} 😐.svs"
    shutil.copy(real_slides / "openslide-fixtures" / "small.svs", path)
    with open_slide(path) as slide:
        assert slide.path == path


@pytest.mark.realdata
def test_aperio_pixels_equal_openslides_own(real_slides):
    path = real_slides / "CMU-1-Small-Region.svs"
    with open_slide(path) as slide, openslide.OpenSlide(path) as oracle:
        assert (slide.width_px0, slide.height_px0, slide.mpp_tag) == (2220, 2967, 0.499)
        assert slide.objective_power == 20
        region = slide.read_region(BoxPx0(701, 1303, 701 + 224, 1303 + 224), 224)
        np.testing.assert_array_equal(region, np.asarray(oracle.read_region((701, 1303), 0, (224, 224)))[..., :3])


def detailed(rows: int, cols: int) -> np.ndarray:
    """Noise over blobs, as in tissue."""
    random = np.random.default_rng(3)
    coarse = random.normal(0, 30, (-(-rows // 8), -(-cols // 8))).repeat(8, axis=0).repeat(8, axis=1)[:rows, :cols]
    return (150 + coarse[..., None] + random.normal(0, 12, (rows, cols, 3))).clip(0, 255).astype(np.uint8)


def test_a_reduction_by_a_whole_number_is_the_mean_of_whole_pixels(make_slide):
    picture = detailed(420, 420)
    means = picture.reshape(210, 2, 210, 2, 3).mean(axis=(1, 3))
    with open_slide(make_slide([picture])) as slide:
        for x, y in ((0, 0), (3, 7), (40, 200)):  # also from an odd pixel on
            found = slide.read_region(BoxPx0(x, y, x + 60, y + 60), 30)
            expected = picture[y : y + 60, x : x + 60].reshape(30, 2, 30, 2, 3).mean(axis=(1, 3))
            assert np.abs(found - expected).max() <= 0.5
        np.testing.assert_allclose(slide.read_region(BoxPx0(0, 0, 420, 420), 210), means, atol=0.5)
        small = slide.read_region(BoxPx0(0, 0, 60, 60), 20)  # three times
        np.testing.assert_allclose(
            small, picture[:60, :60].reshape(20, 3, 20, 3, 3).mean(axis=(1, 3)), atol=0.6
        )  # Pillow rounds coarsely there


@pytest.mark.parametrize(("edge", "filters"), [(59, "lanczos"), (70, "box, lanczos"), (119, "box, lanczos")])
def test_other_reductions_are_close_to_one_filter(make_slide, edge, filters):
    """Factors 1.97, 2.33 and 3.97 against Pillow's LANCZOS in one step; without the second step they are far off."""
    picture = detailed(260, 260)
    with open_slide(make_slide([picture])) as slide:
        assert resampling(slide, edge / 30) == filters
        found = slide.read_region(BoxPx0(41, 52, 41 + edge, 52 + edge), 30).astype(float)
    crop = Image.fromarray(picture[52 : 52 + edge, 41 : 41 + edge])
    one_step = np.asarray(crop.resize((30, 30), Image.Resampling.LANCZOS)).astype(float)
    nearest = np.asarray(crop.resize((30, 30), Image.Resampling.NEAREST)).astype(float)
    difference, spread = np.sqrt(((found - one_step) ** 2).mean()), one_step.std()
    assert difference < (0.2 * spread if "box" in filters else 1e-9)
    assert difference < 0.4 * np.sqrt(((nearest - one_step) ** 2).mean())
