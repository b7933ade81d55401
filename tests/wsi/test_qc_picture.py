from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from span_sparse.grid import LatticeSpec
from span_sparse.wsi import TissueMask, open_slide, tissue_cells
from span_sparse.wsi.qc_picture import write_qc_picture


@pytest.mark.parametrize("patch_px", [64, 2])
@pytest.mark.parametrize("name", ["plain.tiff", "$x_{1}$ 漢字 [b].tiff"])
def test_picture_shows_tissue_cells_and_nothing_else(make_slide, tmp_path, patch_px, name):
    picture = np.full((600, 800, 3), 255, np.uint8)
    pixels = np.zeros((75, 100), bool)
    pixels[20:50, 10:40] = True
    output = tmp_path / "picture.png"
    with open_slide(make_slide([picture], name=name)) as slide:
        tissue, lattice = TissueMask(pixels, 8, 0.5, 0.1), LatticeSpec(patch_px, 0.5).on_slide(0.5)
        grid = tissue_cells(tissue, lattice, 800, 600)
        write_qc_picture(output, slide, tissue, lattice, grid, "openslide")
        empty = TissueMask(np.zeros_like(pixels), 8, 0.5, 0.1)
        write_qc_picture(tmp_path / "empty.png", slide, empty, lattice, grid[:0], "openslide")
    drawn = np.asarray(Image.open(output).convert("RGB")).astype(int)
    is_green = (drawn[..., 1] > drawn[..., 0] + 60) & (drawn[..., 1] > drawn[..., 2] + 30)
    is_blue = drawn[..., 2] > drawn[..., 0] + 50
    scale, top = drawn.shape[1] / 800, 90  # 0.6 inch of title at 150 dpi
    for found, slack in ((is_green, 8), (is_blue, 64)):
        rows, cols = np.nonzero(found)
        assert ((rows.min() - top) / scale, (rows.max() - top) / scale) == pytest.approx((160, 400), abs=slack)
        assert (cols.min() / scale, cols.max() / scale) == pytest.approx((80, 320), abs=slack)
    blank = np.asarray(Image.open(tmp_path / "empty.png").convert("RGB")).astype(int)
    assert np.ptp(blank, axis=2).max() < 10
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".png", ".png", ".tiff"]


def test_scale_bar_has_the_length_it_states(make_slide, tmp_path):
    """800 px of 0.5 µm: a quarter is 100 µm, which is 200 of 800 px."""
    with open_slide(make_slide([np.full((600, 800, 3), 255, np.uint8)])) as slide:
        tissue, lattice = TissueMask(np.zeros((75, 100), bool), 8, 0.5, 0.1), LatticeSpec(64, 0.5).on_slide(0.5)
        write_qc_picture(tmp_path / "a.png", slide, tissue, lattice, np.zeros((0, 2), np.int32), "cohort")
    below = np.asarray(Image.open(tmp_path / "a.png").convert("L"))[-45:]
    longest_run = max(int((row < 60).sum()) for row in below)
    assert longest_run / below.shape[1] == pytest.approx(200 / 800, abs=0.02)


def test_what_was_taken_out_is_tinted_where_it_lay(make_slide, tmp_path):
    """Columns 40 to 60 of the mask of 100, rows 20 to 50 of 75; the title has one more line."""
    removed = np.zeros((75, 100), bool)
    removed[20:50, 40:60] = True
    tissue = TissueMask(np.zeros_like(removed), 8, 0.5, 0.1, removed={"pen": removed, "blur": removed & False})
    with open_slide(make_slide([np.full((600, 800, 3), 255, np.uint8)])) as slide:
        lattice = LatticeSpec(64, 0.5).on_slide(0.5)
        write_qc_picture(tmp_path / "a.png", slide, tissue, lattice, np.zeros((0, 2), np.int32), "openslide")
    drawn = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    rows, cols = np.nonzero(drawn[..., 0] > drawn[..., 2] + 40)
    scale, top = drawn.shape[1] / 800, 0.75 * 150
    assert ((rows.min() - top) / scale, (rows.max() - top) / scale) == pytest.approx((160, 400), abs=8)
    assert (cols.min() / scale, cols.max() / scale) == pytest.approx((320, 480), abs=8)
