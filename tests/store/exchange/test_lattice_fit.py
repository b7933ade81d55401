from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from span_sparse.errors import LatticeError
from span_sparse.store.exchange.lattice_fit import Choices, fit_lattice
from span_sparse.store.exchange.lattice_step import StepKnowledge, neighbour_distances

UNKNOWN = StepKnowledge()


@st.composite
def lattices(draw):
    """A step, an origin and cells in any order, a block of 3 × 3 among them."""
    step = draw(st.integers(1, 5000))
    origin = draw(st.tuples(st.integers(0, step - 1), st.integers(0, step - 1)))
    cells = draw(st.sets(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=0, max_size=40))
    corner = draw(st.tuples(st.integers(0, 10**5), st.integers(0, 10**5)))
    cells = [(col + corner[0], row + corner[1]) for col, row in cells | set(itertools.product(range(3), repeat=2))]
    return step, origin, np.array(draw(st.permutations(cells)), np.int64)


@settings(deadline=None, max_examples=60)
@given(lattices(), st.booleans())
def test_a_random_lattice_is_recovered_exactly(lattice, stated):
    step, origin, cells = lattice
    coords = cells * step + origin
    # a block of neighbours among many scattered patches may be too few to measure the step: then it must be stated
    near = neighbour_distances(coords)
    knowledge = StepKnowledge(stated_px0=step) if stated or (near == step).mean() < 0.1 else UNKNOWN
    fit = fit_lattice(coords, knowledge)
    assert (fit.step_px0, fit.origin_px0) == (step, origin)
    np.testing.assert_array_equal(fit.grid, cells[:, ::-1].astype(np.int32), strict=True)
    np.testing.assert_array_equal(fit.rows, np.arange(len(cells)))
    assert (fit.report["exact"], fit.report["max_residual_px0"], fit.report["dropped"]) == (True, 0, 0)


@settings(deadline=None, max_examples=60)
@given(lattices(), st.data())
def test_a_moved_patch_is_refused_or_what_was_chosen(lattice, data):
    step, origin, cells = lattice
    if step < 8:
        return
    coords = cells * step + origin
    victim = data.draw(st.integers(0, len(cells) - 1))
    move = data.draw(st.integers(1, step // 2 - 1)) * data.draw(st.sampled_from([-1, 1]))
    axis = data.draw(st.integers(0, 1))
    coords[victim, axis] += move
    knowledge = StepKnowledge(stated_px0=step)
    if coords.min() < 0:
        return
    with pytest.raises(LatticeError, match=f"1 of {len(cells)} patches lie off the lattice of step {step} px"):
        fit_lattice(coords, knowledge)
    dropped = fit_lattice(coords, knowledge, Choices(drop=True))
    assert dropped.rows.tolist() == [row for row in range(len(cells)) if row != victim]
    assert (dropped.report["dropped"], dropped.report["exact"]) == (1, True)
    snapped = fit_lattice(coords, knowledge, Choices(snap=True))
    np.testing.assert_array_equal(snapped.grid, cells[:, ::-1])
    assert snapped.report["max_residual_px0"] == abs(move)
    assert not snapped.report["exact"]


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5000), st.integers(0, 10**6))
def test_per_contour_moves_groups_as_one_without_collisions(step, seed):
    """Contours side by side, each from an origin of its own: shapes survive, whatever the origins are."""
    random = np.random.default_rng(seed)
    square = np.stack(np.divmod(np.arange(9), 3), axis=1)
    parts = [
        (square + np.array([5 * number, 0])) * step + random.integers(0, step, 2)
        for number in range(random.integers(1, 5))
    ]
    fit = fit_lattice(np.concatenate(parts), StepKnowledge(stated_px0=step), Choices(per_contour=True))
    assert len(np.unique(fit.grid, axis=0)) == 9 * len(parts)
    for number in range(len(parts)):
        shape = fit.grid[9 * number : 9 * number + 9]
        np.testing.assert_array_equal(shape - shape[0], square[:, ::-1])
    contours = fit.report["contours"]
    assert sum(contour["patches"] for contour in contours) == (9 * len(parts) if contours else 0)
    assert all(abs(shift) < step for contour in fit.report["contours"] for shift in contour["shift_px0"])


def test_two_contours_that_snapping_would_merge_stay_apart():
    """Both round to column 1; moved as groups, one goes there and the other beside it."""
    coords = np.array([[0, 0], [100, 0], [149, 0]])
    with pytest.raises(LatticeError, match="share a cell"):
        fit_lattice(coords, StepKnowledge(stated_px0=100), Choices(snap=True))
    fit = fit_lattice(coords, StepKnowledge(stated_px0=100), Choices(per_contour=True))
    assert fit.grid.tolist() == [[0, 0], [0, 1], [0, 2]]
    assert fit.report["contours"][1] == {"origin_px0": [49, 0], "shift_px0": [51, 0], "patches": 1}


def test_repeated_patches():
    coords = np.array([[0, 0], [100, 0], [0, 0], [200, 0], [200, 0]])
    with pytest.raises(LatticeError, match=r"2 patches share a cell with another one, for example rows 0 and 2"):
        fit_lattice(coords, UNKNOWN)
    fit = fit_lattice(coords, UNKNOWN, Choices(drop=True))
    assert fit.rows.tolist() == [0, 1, 3]
    assert (fit.report["doubled"], fit.report["dropped"]) == (2, 2)


@pytest.mark.parametrize(
    ("coords", "knowledge", "message"),
    [
        (np.zeros((0, 2), np.int64), UNKNOWN, "no patches"),
        (np.zeros((3, 3), np.int64), UNKNOWN, r"expected? ?|must be numbers \[patches, 2\], found int64 \[3, 3\]"),
        (np.array([[0.0, np.nan], [1.0, 2.0]]), UNKNOWN, r"1 of 2 coordinates are NaN or infinite, first in row 0"),
        (np.array([[0.0, 0.5], [1.0, 2.0]]), UNKNOWN, r"fractions of pixels, first \(0.0, 0.5\) in row 0"),
        (np.array([[0, 2**50], [1, 2]]), UNKNOWN, "not pixels of a slide"),
        (np.array([[0, 0], [-100, 0], [100, 0]]), UNKNOWN, r"1 of 3 coordinates are negative, first \(-100, 0\)"),
        (np.array([[5, 7]]), UNKNOWN, "pass --step"),
        (np.array([[0, 0], [0, 0]]), UNKNOWN, "pass --step"),
        (np.array([["a", "b"]]), UNKNOWN, "must be numbers"),
        (
            np.array([[0, 0], [300, 0], [600, 0], [0, 300]]),
            StepKnowledge(stated_px0=256),
            r"a step of 256 px is stated, but neighbours lie 300 px apart.*pass --step 300",
        ),
        (np.array([[0, 0], [1, 0]]) * 2**35, StepKnowledge(stated_px0=1), "not pixels of a slide"),
    ],
)
def test_what_is_refused(coords, knowledge, message):
    with pytest.raises(LatticeError, match=message):
        fit_lattice(coords, knowledge)


@pytest.mark.parametrize(
    ("coords", "knowledge", "step", "origin"),
    [
        # one patch: what is likely, and it says so
        (np.array([[700, 300]]), StepKnowledge(likely_px0=256), 256, (188, 44)),
        (np.array([[700, 300]]), StepKnowledge(stated_px0=512), 512, (188, 300)),
        # one row, one column
        (np.array([[10, 5], [110, 5], [310, 5]]), UNKNOWN, 100, (10, 5)),
        (np.array([[5, 10], [5, 110], [5, 310]]), UNKNOWN, 100, (5, 10)),
        # sparse: two patches two tiles apart are still of the likely step
        (np.array([[0, 0], [512, 0]]), StepKnowledge(likely_px0=256), 256, (0, 0)),
        # overlapping: half a patch
        (np.stack(np.divmod(np.arange(100), 10), 1) * 128, StepKnowledge(likely_px0=256), 128, (0, 0)),
        # with gaps: many patches twice as far apart as they are wide
        (np.stack(np.divmod(np.arange(100), 10), 1) * 512, StepKnowledge(likely_px0=256), 512, (0, 0)),
        # the statement was rounded by a pixel
        (np.array([[0, 0], [443, 0], [886, 0]]), StepKnowledge(stated_px0=442, slack_px0=1), 443, (0, 0)),
        # floating-point whole numbers
        (np.array([[0.0, 0.0], [100.0, 0.0], [200.0, 0.0]]), UNKNOWN, 100, (0, 0)),
        (np.array([[0, 0], [100, 0], [200, 0]], np.uint16), UNKNOWN, 100, (0, 0)),
    ],
)
def test_steps_that_are_found(coords, knowledge, step, origin):
    fit = fit_lattice(coords, knowledge)
    assert (fit.step_px0, fit.origin_px0) == (step, origin)
    np.testing.assert_array_equal(fit.grid[:, ::-1].astype(np.int64) * step + origin, coords)
    assert "step_source" in fit.report


def test_one_stray_patch_among_many_does_not_change_the_step():
    coords = np.concatenate([np.stack(np.divmod(np.arange(400), 20), 1) * 256, [[1000, 777]]])
    with pytest.raises(LatticeError, match=re.escape("1 of 401 patches lie off the lattice of step 256 px")):
        fit_lattice(coords, StepKnowledge(likely_px0=256))
    fit = fit_lattice(coords, StepKnowledge(likely_px0=256), Choices(drop=True))
    assert len(fit.rows) == 400


def test_negative_patches_are_dropped_on_request():
    coords = np.array([[-100, 0], [0, 0], [100, 0], [200, 0]])
    fit = fit_lattice(coords, UNKNOWN, Choices(drop=True))
    assert (fit.rows.tolist(), fit.report["negative"], fit.report["dropped"]) == ([1, 2, 3], 1, 1)


def test_many_origins_are_no_contours():
    random = np.random.default_rng(0)
    coords = np.unique(random.integers(0, 10**7, (2000, 2)), axis=0)
    with pytest.raises(LatticeError, match="these are not contours; pass --snap"):
        fit_lattice(coords, StepKnowledge(stated_px0=512), Choices(per_contour=True))


def stamp_coords(cells: np.ndarray, mpp: float) -> np.ndarray:
    """Tiles of ceil(256 / mpp) px in super-tiles of 4,096 µm, as float32 micrometres, then pixels."""
    tile_um = np.ceil(256 / mpp) * mpp
    block, inside = np.divmod(cells, 16)
    return (block * 4096 + inside * tile_um).astype(np.float32).astype(np.float64) / mpp


@pytest.mark.parametrize("mpp", [0.2527, 0.2456, 0.499, 0.1725, 1.0])
@pytest.mark.parametrize("far", [0, 300])
def test_a_pitch_that_drifts_and_starts_again_gives_every_patch_its_cell(mpp, far):
    random = np.random.default_rng(int(mpp * 1e4))
    cells = np.unique(random.integers(0, 60, (700, 2)), axis=0) + far
    cells = random.permutation(cells)
    tile_px = 256 / mpp
    knowledge = StepKnowledge(tile_px, 2.0, None, tile_px / 8)
    fit = fit_lattice(stamp_coords(cells, mpp), knowledge)
    np.testing.assert_array_equal(fit.grid, cells[:, ::-1])
    assert fit.report["max_residual_px0"] < 16 * 1.0  # a pixel a tile within a super-tile
    assert fit.rows.tolist() == list(range(len(cells)))


def test_rounded_coordinates_off_their_lattice_are_refused():
    cells = np.stack(np.divmod(np.arange(100), 10), 1)
    coords = cells * 100.4
    coords[17] += 30
    knowledge = StepKnowledge(100.0, 2.0, None, 2.0)
    with pytest.raises(LatticeError, match=r"1 of 100 coordinates lie more than 2 px from a lattice.*--snap"):
        fit_lattice(coords, knowledge)
    assert len(fit_lattice(coords, knowledge, Choices(drop=True)).rows) == 99
    snapped = fit_lattice(coords, knowledge, Choices(snap=True))
    np.testing.assert_array_equal(snapped.grid, cells[:, ::-1])
    with pytest.raises(LatticeError, match="--per-contour needs whole-pixel"):
        fit_lattice(coords, knowledge, Choices(per_contour=True))
    with pytest.raises(LatticeError, match=r"a step of 100 px is stated, but the coordinates have a pitch of 105.4"):
        fit_lattice(cells * 105.4, knowledge)
