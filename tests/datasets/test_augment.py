from __future__ import annotations

import dataclasses
import math
import statistics
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from span_sparse.datasets.augment import (
    IDENTITY,
    AugmentationSettings,
    Pose,
    annealing,
    augment,
    draw_pose,
    mirror,
    move,
    rotate,
    shear,
    square_symmetry,
    training_progress,
)
from span_sparse.errors import ConfigError, LatticeError

GRID = torch.tensor([[0, 0], [0, 3], [2, 1], [4, 1], [3, 3]], dtype=torch.int32)


def picture(grid: torch.Tensor) -> torch.Tensor:
    """Patch numbers (from 1) drawn on a 5 × 5 board."""
    board = torch.zeros(5, 5, dtype=torch.int64)
    board[grid[:, 0].long(), grid[:, 1].long()] = torch.arange(1, len(grid) + 1)
    return board


@pytest.mark.parametrize("symmetry", range(8))
def test_each_symmetry_is_that_of_the_picture(symmetry: int) -> None:
    square = torch.cat([GRID, torch.tensor([[4, 4]], dtype=torch.int32)])  # fills the board's corners
    expected = picture(square)
    if symmetry & 1:
        expected = expected.flip(0)
    if symmetry & 2:
        expected = expected.flip(1)
    if symmetry & 4:
        expected = expected.T
    assert torch.equal(picture(square_symmetry(square, symmetry)), expected)


@pytest.mark.parametrize("symmetry", range(8))
def test_no_two_cells_collide_and_none_is_negative(symmetry: int) -> None:
    moved = square_symmetry(GRID, symmetry)
    assert moved.dtype == torch.int32
    assert len(moved.unique(dim=0)) == len(GRID)
    assert moved.min() >= 0


def test_the_eight_are_different() -> None:
    assert len({tuple(square_symmetry(GRID, symmetry).flatten().tolist()) for symmetry in range(8)}) == 8


CELLS = st.lists(
    st.tuples(st.integers(-3_000, 3_000), st.integers(-3_000, 3_000)), min_size=1, max_size=60, unique=True
).map(torch.tensor)
SLIDES = CELLS.map(lambda cells: (cells - cells.amin(0)).int())
SLOPES = st.floats(-1.0, 1.0)
TILTS = st.floats(-math.pi / 4, math.pi / 4)
POSES = st.builds(
    Pose,
    mirror_rows=st.booleans(),
    mirror_cols=st.booleans(),
    shear_axis=st.integers(0, 1),
    shear_slope=SLOPES,
    quarter_turns=st.integers(0, 3),
    tilt_radians=TILTS,
)
FULL = AugmentationSettings(probability=1.0, token_drop=0.3, feature_noise=0.2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def square(side: int) -> torch.Tensor:
    return torch.cartesian_prod(torch.arange(side), torch.arange(side))


def rotation(radians: float) -> torch.Tensor:
    return torch.tensor(
        [[math.cos(radians), -math.sin(radians)], [math.sin(radians), math.cos(radians)]], dtype=torch.float64
    )


class TestBijections:
    @given(CELLS, st.integers(0, 1), SLOPES)
    def test_a_shear_keeps_cells_apart_and_its_inverse_restores_them(
        self, cells: torch.Tensor, axis: int, slope: float
    ) -> None:
        moved = shear(cells, axis, slope)
        assert len(moved.unique(dim=0)) == len(cells)
        assert torch.equal(moved[:, 1 - axis], cells[:, 1 - axis])
        assert (moved - cells)[:, axis].sub(slope * cells[:, 1 - axis].double()).abs().max() <= 0.5
        assert torch.equal(shear(moved, axis, -slope), cells)

    @given(CELLS, st.integers(0, 1))
    def test_a_mirror_undoes_itself(self, cells: torch.Tensor, axis: int) -> None:
        moved = mirror(cells, axis)
        assert torch.equal(moved[:, axis], -cells[:, axis])
        assert torch.equal(moved[:, 1 - axis], cells[:, 1 - axis])
        assert torch.equal(mirror(moved, axis), cells)

    @given(CELLS, st.integers(0, 3), TILTS)
    def test_a_rotation_keeps_cells_apart(self, cells: torch.Tensor, turns: int, tilt: float) -> None:
        moved = rotate(cells, turns, tilt)
        assert len(moved.unique(dim=0)) == len(cells)
        tangent, sine = math.tan(tilt / 2), math.sin(tilt)  # the three shears backwards, then the other quarter turns
        for axis, slope in ((0, tangent), (1, -sine), (0, tangent)):
            moved = shear(moved, axis, slope)
        assert torch.equal(rotate(moved, -turns), cells)

    @given(SLIDES, POSES)
    @settings(max_examples=200)
    def test_a_pose_loses_no_patch_and_starts_at_zero(self, grid: torch.Tensor, pose: Pose) -> None:
        before = grid.clone()
        moved = move(grid, pose)
        assert moved.dtype == torch.int32
        assert moved.shape == grid.shape
        assert len(moved.unique(dim=0)) == len(grid)
        assert moved.amin(0).tolist() == [0, 0]
        assert torch.equal(grid, before)

    def test_neighbours_stay_close(self) -> None:
        # a column moves by 0 or 1 against the next one in each of the shears
        for tilt in (0.1, 0.3, math.pi / 6):
            for direction in ([0, 1], [1, 0]):
                cells = square(60)
                apart = (rotate(cells + torch.tensor(direction), 0, tilt) - rotate(cells, 0, tilt)).abs().amax()
                assert apart <= 2


class TestPlaces:
    @pytest.mark.parametrize("turns", range(4))
    @pytest.mark.parametrize("degrees", [-30.0, -7.0, 0.0, 1.0, 13.0, 30.0])
    def test_every_cell_lies_close_to_the_exact_rotation(self, turns: int, degrees: float) -> None:
        cells = square(150) - 75
        exact = cells.double() @ rotation(math.radians(90 * turns + degrees)).T
        error = (rotate(cells, turns, math.radians(degrees)) - exact).norm(dim=1)
        # Rounding by at most ½ each: rows (1 − t·s)/2 + t/2 + 1/2, columns 1/2 + s/2 with t = tan 15°, s = sin 30°
        assert error.max() <= 1.31
        if degrees == 0:
            assert error.max() < 1e-9

    @pytest.mark.parametrize("degrees", [-30.0, -11.0, 3.0, 22.5, 30.0])
    def test_far_points_turn_by_the_angle_asked_for(self, degrees: float) -> None:
        far = torch.tensor([[4_000, 0], [0, 4_000], [-3_000, 2_500], [2_800, 2_800]])
        turned = rotate(far, 1, math.radians(degrees)).double()
        before, after = torch.atan2(*far.double().T.flip(0)), torch.atan2(*turned.T.flip(0))
        angle = torch.rad2deg(after - before) % 360
        assert (angle - (90 + degrees) % 360).abs().max() < 0.03  # 1.31 cells at a distance of 3,900

    @pytest.mark.parametrize("degrees", [2.0, 17.0, 30.0])
    def test_distances_hardly_change(self, degrees: float) -> None:
        cells = square(140)
        turned = rotate(cells, 0, math.radians(degrees)).double()
        one, other = torch.randint(len(cells), (2, 300_000), generator=seeded())
        change = (turned[one] - turned[other]).norm(dim=1) - (cells[one] - cells[other]).double().norm(dim=1)
        assert change.abs().quantile(0.95) <= 1.5
        assert change.abs().max() <= 2.62  # twice 1.31
        assert change.abs().mean() <= 0.5

    def test_by_hand(self) -> None:
        slide = torch.tensor([[0, 0], [0, 4], [3, 4]], dtype=torch.int32)
        assert move(slide, Pose(mirror_cols=True)).tolist() == [[0, 4], [0, 0], [3, 0]]
        assert move(slide, Pose(mirror_rows=True, mirror_cols=True)).tolist() == [[3, 4], [3, 0], [0, 0]]
        assert move(slide, Pose(shear_axis=0, shear_slope=-0.4)).tolist() == [[2, 0], [0, 4], [3, 4]]
        assert move(slide, Pose(shear_axis=1, shear_slope=0.5)).tolist() == [[0, 0], [0, 4], [3, 6]]
        assert move(slide, Pose(quarter_turns=1)).tolist() == [[4, 0], [0, 0], [0, 3]]
        assert move(slide, Pose(quarter_turns=2)).tolist() == [[3, 4], [3, 0], [0, 0]]
        # tilt of 30°: (0, 4) → rows −0.268·4 → (−1, 4) → columns +0.5·−1 = −0.5, rounded to even → (−1, 4) → (−2, 4)
        assert rotate(torch.tensor([[0, 4]]), 0, math.pi / 6).tolist() == [[-2, 4]]
        # mirrored first, then sheared: (3, 4) → (3, −4) → (3 − 2, −4)
        both = move(slide, Pose(mirror_cols=True, shear_axis=0, shear_slope=0.5))
        assert both.tolist() == [[2, 4], [0, 0], [3, 0]]

    def test_a_patch_far_away_moves_the_others_as_a_whole(self) -> None:
        pose = Pose(mirror_rows=True, shear_axis=1, shear_slope=0.17, quarter_turns=3, tilt_radians=0.4)
        slide = square(20).int()
        more = torch.cat([slide, torch.tensor([[900, 700]], dtype=torch.int32)])
        offset = move(more, pose)[:-1] - move(slide, pose)
        assert len(offset.unique(dim=0)) == 1

    def test_nothing_to_do_and_too_long_a_slide(self) -> None:
        slide = torch.tensor([[5, 2], [9, 7]], dtype=torch.int32)
        assert move(slide, IDENTITY) is slide
        long = torch.tensor([[0, 0], [2**31 - 1, 2**31 - 1]], dtype=torch.int32)
        with pytest.raises(LatticeError, match=r"3221225472 cells long, at most 2147483648"):
            move(long, Pose(shear_axis=0, shear_slope=0.5))


class TestSchedule:
    def test_cosine_by_hand(self) -> None:
        values = [annealing(progress, 0.2) for progress in (0.0, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.0)]
        assert values == pytest.approx([1.0, 0.2 + 0.4 * (1 + math.sqrt(0.5)), 0.8, 0.6, 0.4, 0.2])
        assert annealing(0.7, 1.0) == 1.0

    def test_progress(self) -> None:
        assert [training_progress(epoch, 20) for epoch in (0, 19, 25)] == [0.0, 1.0, 1.0]
        assert training_progress(3, 13) == 0.25
        assert [training_progress(3, count) for count in (None, 1, 0)] == [0.0, 0.0, 0.0]


class TestDraws:
    @pytest.mark.parametrize(("progress", "probability"), [(0.0, 0.75), (0.5, 0.45), (1.0, 0.15)])
    def test_each_is_drawn_as_often_as_asked_for(self, progress: float, probability: float) -> None:
        generator, count = seeded(), 4_000
        factor = annealing(progress, 0.2)
        poses = [draw_pose(AugmentationSettings(), factor, generator) for _ in range(count)]

        def check(share: float, expected: float) -> None:
            assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / count)

        sheared = [pose for pose in poses if pose.shear_slope]
        rotated = [pose for pose in poses if pose.tilt_radians]
        check(sum(pose.mirror_rows for pose in poses) / count, probability / 2)
        check(sum(pose.mirror_cols for pose in poses) / count, probability / 2)
        check(sum(pose.mirror_rows and pose.mirror_cols for pose in poses) / count, probability / 4)
        check(len(sheared) / count, probability)
        check(sum(pose.shear_axis for pose in sheared) / count, probability / 2)
        check(len(rotated) / count, probability)
        for turns in range(4):
            check(sum(pose.quarter_turns == turns for pose in rotated) / count, probability / 4)
        check(sum(bool(pose.shear_slope and pose.tilt_radians) for pose in poses) / count, probability**2)

    def test_angles_fill_their_range(self) -> None:
        generator = seeded()
        poses = [draw_pose(AugmentationSettings(probability=1.0), 1.0, generator) for _ in range(4_000)]
        slopes = [math.degrees(math.atan(pose.shear_slope)) for pose in poses]
        tilts = [math.degrees(pose.tilt_radians) for pose in poses]
        for angles, limit in ((slopes, 10.0), (tilts, 30.0)):
            assert -limit <= min(angles) < -0.99 * limit
            assert 0.99 * limit < max(angles) <= limit
            assert statistics.stdev(angles) == pytest.approx(limit / math.sqrt(3), rel=0.05)  # uniform

    def test_switched_off(self) -> None:
        off = AugmentationSettings(probability=1.0, mirror=False, max_shear_degrees=0.0, quarter_turns=False)
        poses = [draw_pose(off, 1.0, seeded(seed)) for seed in range(50)]
        assert all(pose == Pose(shear_axis=pose.shear_axis, tilt_radians=pose.tilt_radians) for pose in poses)
        still = dataclasses.replace(off, max_tilt_degrees=0.0)
        slide = square(9).int()
        assert all(torch.equal(move(slide, draw_pose(still, 1.0, seeded(seed))), slide) for seed in range(20))
        never = AugmentationSettings(probability=0.0)
        assert all(draw_pose(never, 1.0, seeded(seed)) == IDENTITY for seed in range(50))

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("probability", 1.5), ("final_factor", -0.1), ("max_shear_degrees", 60.0), ("max_tilt_degrees", 90.0),
            ("token_drop", 1.0), ("feature_noise", math.nan),
        ],
    )  # fmt: skip
    def test_settings_out_of_range(self, name: str, value: float) -> None:
        AugmentationSettings().check()
        with pytest.raises(ConfigError, match=rf"{name} is {value}, expected a number from 0 to"):
            dataclasses.replace(AugmentationSettings(), **{name: value}).check()


class TestAugment:
    @given(SLIDES, st.integers(0, 2**31), st.floats(0.0, 1.0))
    def test_features_stay_with_their_patch(self, grid: torch.Tensor, seed: int, progress: float) -> None:
        only_cells = dataclasses.replace(FULL, feature_noise=0.0)
        features = torch.arange(len(grid), dtype=torch.float32)[:, None]
        changed = augment(grid, features, only_cells, progress, seeded(seed))
        assert changed.kept is not None
        assert torch.equal(changed.features[:, 0].long(), changed.kept)
        pose = draw_pose(only_cells, annealing(progress, only_cells.final_factor), seeded(seed))
        assert torch.equal(changed.grid, move(grid[changed.kept], pose))

    def test_the_same_generator_gives_the_same_slide(self) -> None:
        grid, features = square(30).int(), torch.randn(900, 5)
        for progress in (0.0, 0.8):
            one, two = (augment(grid, features, FULL, progress, seeded(7)) for _ in range(2))
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(one, two, strict=True))
        other = augment(grid, features, FULL, 0.0, seeded(8))
        assert other.grid.tolist() != augment(grid, features, FULL, 0.0, seeded(7)).grid.tolist()

    def test_features_are_not_copied_without_reason(self) -> None:
        grid, features = square(30).int(), torch.randn(900, 5)
        changed = augment(grid, features, AugmentationSettings(), 0.0, seeded())
        assert changed.features is features
        assert changed.kept is None

    def test_drop_and_noise_are_annealed_too(self) -> None:
        grid, features = square(100).int(), torch.randn(10_000, 2, generator=seeded(1))
        strong = AugmentationSettings(probability=0.0, token_drop=0.5)
        assert len(augment(grid, features, strong, 0.0, seeded()).grid) == pytest.approx(5_000, abs=200)
        assert len(augment(grid, features, strong, 1.0, seeded()).grid) == pytest.approx(9_000, abs=120)
        noise = AugmentationSettings(probability=0.0, feature_noise=0.5)
        change = augment(grid, features, noise, 1.0, seeded()).features - features
        assert change.std().item() == pytest.approx(0.1, rel=0.05)

    def test_twenty_thousand_patches_take_at_most_five_milliseconds(self) -> None:
        grid, features = square(142)[:20_000].int(), torch.zeros(20_000, 8)
        everything = AugmentationSettings(probability=1.0)
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a worker of a DataLoader; several would wait for each other on a busy machine
        try:
            seconds = []
            for seed in range(25):
                start = time.thread_time()  # what other processes take does not count
                augment(grid, features, everything, 0.0, seeded(seed))
                seconds.append(time.thread_time() - start)
        finally:
            torch.set_num_threads(num_threads)
        assert statistics.median(seconds) <= 5e-3
