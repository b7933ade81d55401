"""What is done in strips and by tables equals what libraries do on the whole picture."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from scipy.ndimage import median_filter
from skimage.color import rgb2hsv
from skimage.filters import threshold_otsu

from span_sparse.grid import LatticeSpec
from span_sparse.wsi import TissueSettings, strips
from span_sparse.wsi.artefacts import INKS, _is_ink, _may_be_ink
from span_sparse.wsi.tiling import tissue_area_px0
from span_sparse.wsi.tissue_colour import _saturation_table, median_of_9, saturated
from span_sparse.wsi.tissue_settings import TissueMask


@pytest.mark.parametrize(("rows", "num_cores"), [(0, 4), (1, 4), (300, 1), (300, 4)])
def test_strips_are_all_rows_in_order(rows, num_cores, monkeypatch):
    monkeypatch.setattr(strips, "_num_cores", lambda: num_cores)
    threads = set()

    def work(strip):
        threads.add(threading.get_ident())
        return list(range(rows))[strip]

    assert [row for strip in strips.in_strips(work, rows) for row in strip] == list(range(rows))
    assert (threading.get_ident() in threads) == (0 < rows < 129 or num_cores == 1)


def test_an_error_in_a_thread_is_raised(monkeypatch):
    monkeypatch.setattr(strips, "_num_cores", lambda: 4)

    def work(part):
        if part == 1:
            raise ValueError("part 1")

    with pytest.raises(ValueError, match="part 1"):
        strips.in_threads(work, range(5))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("strips")]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)


def test_the_median_is_scipy_s():
    values = noise(40, 50)
    np.testing.assert_array_equal(median_of_9(np.pad(values, 1, mode="symmetric")), median_filter(values, size=3))


def test_saturation_of_every_colour():
    """All pairs of brightest and darkest channel, from the definition."""
    brightest, darkest = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    valid = brightest >= darkest
    table = _saturation_table(0.2)
    found = table[brightest[valid], (brightest - darkest)[valid]]
    expected = (brightest - darkest)[valid] * 255 / np.maximum(brightest[valid], 1)
    expected[brightest[valid] < 51] = 0
    assert (found <= expected + 1e-3).all()
    assert (found > expected - 1 - 1e-3).all()


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 3, 3), (128, 5, 3), (129, 40, 3), (300, 31, 3)])
def test_saturated_is_a_median_and_otsu_s_threshold(shape):
    rgb = noise(*shape) // 4 + 100
    settings = TissueSettings(saturation_floor=0.0, saturation_ceiling=1.0)
    saturation = _saturation_table(settings.value_floor)[rgb.max(axis=2), rgb.max(axis=2) - rgb.min(axis=2)]
    smooth = median_filter(saturation, size=3)
    mask, threshold = saturated(rgb, settings)
    assert threshold == (threshold_otsu(smooth) / 255 if smooth.min() < smooth.max() else 0)
    np.testing.assert_array_equal(mask, smooth > threshold * 255)


def test_ink_is_among_what_may_be_ink():
    """Every second colour there is, by scikit-image's hue."""
    values = np.arange(0, 256, 2, dtype=np.uint8)
    rgb = np.stack(np.meshgrid(values, values, values, indexing="ij"), axis=-1).reshape(128, -1, 3)
    hsv = rgb2hsv(rgb)
    hue, saturation, value = hsv[..., 0] * 360, hsv[..., 1], hsv[..., 2]
    expected = np.zeros(rgb.shape[:2], bool)
    for (first, last), (pale, rich), (dark, bright) in INKS.values():
        in_hue = (hue >= first) & (hue <= last) if first <= last else (hue >= first) | (hue <= last)
        expected |= in_hue & (saturation >= pale) & (saturation <= rich) & (value >= dark) & (value <= bright)
    np.testing.assert_array_equal(_is_ink(rgb.reshape(-1, 3)).reshape(expected.shape), expected)
    may_be = _may_be_ink(rgb)
    assert not (expected & ~may_be).any()
    assert may_be[np.abs(rgb.astype(int) - (220, 130, 190)).max(axis=2) < 20].sum() == 0, "pink tissue is not looked at"


@pytest.mark.parametrize(("slide_mpp", "scale_px0"), [(0.5, 16), (0.252, 31), (0.9, 7)])
def test_tissue_of_cells_pixel_by_pixel(slide_mpp, scale_px0):
    mask = noise(23, 31) > 90
    tissue = TissueMask(mask, scale_px0, slide_mpp, 0.1, "otsu")
    lattice = LatticeSpec(20, 1.0).on_slide(slide_mpp)
    width, height = 31 * scale_px0 - 3, 23 * scale_px0 - scale_px0 + 1
    whole = mask.repeat(scale_px0, axis=0).repeat(scale_px0, axis=1)[:height, :width]
    step = lattice.step_px0
    rows, cols = height // step, width // step
    expected = whole[: rows * step, : cols * step].reshape(rows, step, cols, step).sum(axis=(1, 3))
    np.testing.assert_array_equal(tissue_area_px0(tissue, lattice, width, height), expected)
