from __future__ import annotations

import numpy as np
import pytest

from span_sparse.grid import LatticeSpec
from span_sparse.wsi import TissueMask, tissue_cells
from span_sparse.wsi.tiling import tissue_area_px0


def mask_of(pixels: np.ndarray, scale_px0: int) -> TissueMask:
    return TissueMask(pixels, scale_px0, slide_mpp=1.0, threshold=0.1)


def brute_force(tissue: TissueMask, step_px0: int, width_px0: int, height_px0: int) -> np.ndarray:
    """Blow the mask up to level-0 pixels and count."""
    full = np.kron(tissue.mask, np.ones((tissue.scale_px0, tissue.scale_px0), dtype=np.int64))
    rows, cols = height_px0 // step_px0, width_px0 // step_px0
    full = full[: rows * step_px0, : cols * step_px0]
    return full.reshape(rows, step_px0, cols, step_px0).sum(axis=(1, 3))


@pytest.mark.parametrize(
    ("step_px0", "scale_px0", "width_px0", "height_px0"),
    [
        (7, 3, 101, 89),
        (16, 16, 160, 96),
        (5, 11, 121, 77),
        (13, 5, 64, 64),
        (1, 3, 17, 11),
        (64, 4, 130, 250),
        (9, 4, 36, 37),
    ],
)
def test_areas_equal_counting_pixels(step_px0, scale_px0, width_px0, height_px0):
    rng = np.random.default_rng(step_px0 * 100 + scale_px0)
    pixels = rng.random((-(-height_px0 // scale_px0), -(-width_px0 // scale_px0))) < 0.6
    tissue, lattice = mask_of(pixels, scale_px0), LatticeSpec(step_px0, 1.0).on_slide(1.0)
    area = tissue_area_px0(tissue, lattice, width_px0, height_px0)
    expected = brute_force(tissue, step_px0, width_px0, height_px0)
    np.testing.assert_array_equal(area, expected)
    for min_fraction in (0.01, 0.5, 1.0):
        cells = tissue_cells(tissue, lattice, width_px0, height_px0, min_fraction)
        np.testing.assert_array_equal(cells, np.argwhere(expected >= min_fraction * step_px0**2))


def test_exactly_half_counts_and_less_does_not():
    """Step 4 over mask pixels of 2: the first cell has 2 of 4 mask pixels, the second 1."""
    tissue = mask_of(np.array([[1, 1, 1, 0], [0, 0, 0, 0]], dtype=bool), 2)
    lattice = LatticeSpec(4, 1.0).on_slide(1.0)
    assert tissue_cells(tissue, lattice, 8, 4).tolist() == [[0, 0]]
    assert tissue_cells(tissue, lattice, 8, 4, 0.25).tolist() == [[0, 0], [0, 1]]


def test_only_whole_cells_in_row_major_order():
    tissue, lattice = mask_of(np.ones((10, 10), bool), 3), LatticeSpec(7, 1.0).on_slide(1.0)
    cells = tissue_cells(tissue, lattice, 29, 27)
    assert cells.dtype == np.int32
    assert cells.tolist() == [[row, col] for row in range(3) for col in range(4)]
    assert tissue_cells(tissue, lattice, 6, 30).shape == (0, 2)


def test_a_far_piece_does_not_move_the_others():
    pixels = np.zeros((50, 50), bool)
    pixels[3:9, 3:9] = True
    lattice = LatticeSpec(5, 1.0).on_slide(1.0)
    before = tissue_cells(mask_of(pixels, 2), lattice, 100, 100).tolist()
    pixels[45:49, 44:49] = True
    after = tissue_cells(mask_of(pixels, 2), lattice, 100, 100).tolist()
    assert len(after) > len(before) > 0
    assert [cell for cell in after if cell in before] == before


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01])
def test_fraction_must_make_sense(fraction):
    with pytest.raises(ValueError, match="min_fraction"):
        tissue_cells(mask_of(np.ones((2, 2), bool), 1), LatticeSpec(1, 1.0).on_slide(1.0), 2, 2, fraction)
