from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from span_sparse.errors import LatticeError
from span_sparse.grid import MAX_CELL, BoxPx0, Lattice, LatticeSpec

MPPS = st.floats(0.05, 4.0)


@pytest.mark.parametrize(
    ("size_px", "target_mpp", "slide_mpp", "step_px0"),
    [
        (224, 0.5, 0.25, 448),
        (224, 0.5, 0.499, 224),  # 112 / 0.499 = 224.449
        (224, 0.5, 0.2527, 443),  # 112 / 0.2527 = 443.21
        (256, 1.0, 0.2528, 1013),  # 256 / 0.2528 = 1012.66
        (1, 0.5, 0.5, 1),
    ],
)
def test_step_is_the_patch_in_whole_pixels(size_px, target_mpp, slide_mpp, step_px0):
    lattice = LatticeSpec(size_px, target_mpp).on_slide(slide_mpp)
    assert lattice.step_px0 == step_px0
    assert lattice.step_um == pytest.approx(step_px0 * slide_mpp)
    assert lattice.slide_mpp == slide_mpp


@given(st.integers(1, 2048), MPPS, MPPS)
def test_step_is_the_nearest_whole_number(size_px, target_mpp, slide_mpp):
    exact = Fraction(size_px * target_mpp) / Fraction(slide_mpp)
    if exact < Fraction(1, 2):
        with pytest.raises(LatticeError, match="smaller than one pixel"):
            LatticeSpec(size_px, target_mpp).on_slide(slide_mpp)
    elif exact > Fraction(51, 100):
        step = LatticeSpec(size_px, target_mpp).on_slide(slide_mpp).step_px0
        assert abs(step - exact) <= Fraction(1, 2) + Fraction(1, 10**9)


@pytest.mark.parametrize(
    ("size", "mpp"), [(0, 0.5), (-1, 0.5), (224, 0.0), (224, -0.5), (224, float("inf")), (224, float("nan"))]
)
def test_impossible_settings_are_refused(size, mpp):
    with pytest.raises(LatticeError, match="must be positive"):
        LatticeSpec(size, mpp)


def test_a_patch_smaller_than_a_pixel_is_refused():
    with pytest.raises(LatticeError, match=r"patch of 2 µm is smaller than one pixel of 8 µm"):
        LatticeSpec(4, 0.5).on_slide(8.0)


def test_spec_is_plain_values_and_back():
    spec = LatticeSpec(224, 0.5)
    assert spec.as_dict() == {"patch_size_px": 224, "target_mpp": 0.5}
    assert LatticeSpec.from_dict(spec.as_dict()) == spec
    assert spec.patch_size_um == 112.0


def test_shape_counts_whole_cells_rows_first():
    lattice = LatticeSpec(10, 1.0).on_slide(1.0)
    assert lattice.shape(width_px0=59, height_px0=30) == (3, 5)
    assert lattice.shape(width_px0=9, height_px0=100) == (10, 0)


GRID = np.array([[0, 0], [2, 1], [3, 7]], np.int32)


def test_cells_to_pixels_by_hand():
    lattice = Lattice(LatticeSpec(224, 0.5), 0.2527, 443)
    corners = lattice.to_px0(GRID)
    assert corners.dtype == np.int64
    assert corners.tolist() == [[0, 0], [443, 886], [3101, 1329]]
    cells = lattice.to_cells(corners)
    assert cells.dtype == np.int32
    assert cells.tolist() == GRID.tolist()
    assert lattice.box(row=2, col=1) == BoxPx0(x0=443, y0=886, x1=886, y1=1329)
    assert lattice.centres_um(GRID)[1].tolist() == pytest.approx([1.5 * 443 * 0.2527, 2.5 * 443 * 0.2527])


@given(st.lists(st.tuples(st.integers(0, MAX_CELL), st.integers(0, MAX_CELL)), max_size=20), st.integers(1, 2**20))
def test_round_trip_is_exact_everywhere(cells, step_px0):
    grid = np.array(cells, np.int32).reshape(-1, 2)
    lattice = Lattice(LatticeSpec(224, 0.5), 0.25, step_px0)
    corners = lattice.to_px0(grid)
    assert corners.tolist() == [[col * step_px0, row * step_px0] for row, col in cells]
    np.testing.assert_array_equal(lattice.to_cells(corners), grid, strict=True)
    np.testing.assert_array_equal(lattice.containing(corners + (step_px0 - 1)), grid, strict=True)


def test_pixels_belong_to_half_open_cells():
    lattice = LatticeSpec(10, 1.0).on_slide(1.0)
    points = np.array([[0, 0], [9, 10], [19.99, 9.99], [20, 0]])
    assert lattice.containing(points).tolist() == [[0, 0], [1, 0], [0, 1], [0, 2]]


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ((5, 0), r"patch 1 at level-0 pixel \(5, 0\) is not a multiple of the lattice step 10"),
        ((0, 19), r"not a multiple"),
        ((-10, 0), r"must lie in \[0, 2147483647\], found -1 to 2"),
        ((10 * 2**31, 0), r"found 0 to 2147483648"),
    ],
)
def test_pixels_off_the_lattice_are_refused(point, message):
    lattice = LatticeSpec(10, 1.0).on_slide(1.0)
    with pytest.raises(LatticeError, match=message):
        lattice.to_cells(np.array([[20, 20], point], np.int64))


def test_no_cells():
    lattice = LatticeSpec(10, 1.0).on_slide(1.0)
    empty = np.empty((0, 2), np.int64)
    assert lattice.to_cells(empty).shape == (0, 2)
    assert lattice.to_px0(lattice.to_cells(empty)).shape == (0, 2)


def test_four_hundred_patches_do_not_drift():
    """Scaling floats patch by patch would: 112 µm / 0.2527 µm is 443.21 px, 85 px off after 400 patches."""
    lattice = LatticeSpec(224, 0.5).on_slide(0.2527)
    assert lattice.to_px0(np.array([[0, 400]], np.int32)).tolist() == [[400 * 443, 0]]


def test_a_lattice_of_others_by_hand():
    """Patches of 12 px every 10 px from (3, 7): cell (row 2, col 1) starts at (3 + 10, 7 + 20)."""
    lattice = Lattice(LatticeSpec(6, 1.0), 0.5, 10, origin_px0=(3, 7), overlap_px0=2)
    grid = np.array([[2, 1]], np.int32)
    assert lattice.patch_px0 == 12
    assert lattice.box(2, 1) == BoxPx0(13, 27, 25, 39)
    assert lattice.to_px0(grid).tolist() == [[13, 27]]
    assert lattice.to_cells(np.array([[13, 27]])).tolist() == [[2, 1]]
    assert lattice.centres_um(grid).tolist() == [[9.5, 16.5]]
    assert lattice.containing(np.array([[22.9, 27.0], [23.0, 36.9]])).tolist() == [[2, 1], [2, 2]]
    # width 25 = 3 + 10 + 12 holds two columns, 24 one; height 19 = 7 + 12 one row, 18 none
    assert [lattice.shape(25, 19), lattice.shape(24, 18), lattice.shape(2, 2)] == [(1, 2), (0, 1), (0, 0)]
    with pytest.raises(LatticeError, match=r"\(13, 26\) is not a multiple of the lattice step 10 px from \(3, 7\)"):
        lattice.to_cells(np.array([[13, 26]]))
    with pytest.raises(LatticeError, match=r"lie in \[0"):
        lattice.to_cells(np.array([[3, -3]]))


@pytest.mark.parametrize(
    ("step", "origin", "overlap"), [(0, (0, 0), 0), (10, (10, 0), 0), (10, (0, -1), 0), (10, (0, 0), -10)]
)
def test_impossible_lattices_are_refused(step, origin, overlap):
    with pytest.raises(LatticeError, match="step and patch must be at least 1 px"):
        Lattice(LatticeSpec(6, 1.0), 0.5, step, origin, overlap)
