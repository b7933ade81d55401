"""Which changes of the lattice leave a slide the same slide, and how are they drawn during training?

A glass slide has no up or left, and the tissue on it was stretched when it was cut. So cells may be mirrored, sheared
and rotated, if every patch keeps a cell of its own:

1. `square_symmetry` gives the eight symmetries of the square: exact, the default of a data module.
2. `mirror`, `shear` and `rotate` are bijections of the whole lattice. A shear with rounding,
   `row + round(slope · col)`, moves every column as a block and can be undone; a rotation is a quarter turn and three
   shears.
3. `draw_pose` draws which of them a slide gets, `move` applies them, `augment` also drops patches, mixes features
   and adds noise. The probabilities fall over the epochs, so that training ends close to what evaluation sees.

Rotating the coordinates as floats and rounding them is the naive way: cells collide, and moving the losers to free
cells one by one costs seconds a slide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from span_sparse.errors import ConfigError, LatticeError
from span_sparse.grid import MAX_CELL


@dataclass(frozen=True, slots=True)
class AugmentationSettings:
    """How strongly training slides are changed. Every number is that of the first epoch; see `annealing`.

    Attributes:
        probability: that a slide is mirrored; that it is sheared; that it is rotated (three draws), in [0, 1].
        final_factor: by what the strength has been multiplied in the last epoch, in [0, 1]; 1 switches annealing off.
        mirror: mirror, each axis with probability ½.
        max_shear_degrees: shear along one axis by an angle up to this, either way, in [0, 45].
        quarter_turns: rotate by 0, 90, 180 or 270 degrees.
        max_tilt_degrees: rotate further by an angle up to this, either way, in [0, 45].
        token_drop: probability of each patch to be left out, in [0, 0.95]; at least one patch stays.
        feature_noise: standard deviation of Gaussian noise on the features, relative to each channel's standard
            deviation on the slide, in [0, 10].
        feature_mixup: every patch takes up to this share of the features of a random patch of its slide, in [0, 0.5]
            (mixup of Zhang et al., ICLR 2018, within a slide: its label stays true).
    """

    probability: float = 0.75
    final_factor: float = 0.2
    mirror: bool = True
    max_shear_degrees: float = 10.0
    quarter_turns: bool = True
    max_tilt_degrees: float = 30.0
    token_drop: float = 0.0
    feature_noise: float = 0.0
    feature_mixup: float = 0.0

    def check(self) -> None:
        """Refuses values outside their range; `SlideDataset` calls it.

        Not in the constructor: jsonargparse 4.53 hides what a constructor raises behind the alternatives it tries next.

        Raises:
            ConfigError: names the setting and its range.
        """
        for name, high in _HIGHEST.items():
            if not 0 <= getattr(self, name) <= high:
                raise ConfigError(
                    f"augmentation: {name} is {getattr(self, name)}, expected a number from 0 to {high}; correct it "
                    "in the block data.augment of the configuration"
                )


_HIGHEST = {
    "probability": 1,
    "final_factor": 1,
    "max_shear_degrees": 45,
    "max_tilt_degrees": 45,
    "token_drop": 0.95,
    "feature_noise": 10,
    "feature_mixup": 0.5,
}
"""Largest value of every number of `AugmentationSettings`; the smallest is 0."""


def annealing(progress: float, final_factor: float) -> float:
    """Cosine from 1 at the start of training to `final_factor` at its end.

    Args:
        progress: 0 in the first epoch, 1 in the last one.
        final_factor: the factor at progress 1.

    >>> [round(annealing(progress, 0.2), 3) for progress in (0.0, 0.5, 1.0)]
    [1.0, 0.6, 0.2]
    """
    return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * progress)) / 2


def training_progress(epoch: int, num_epochs: int | None) -> float:
    """How far training is in an epoch: 0 in the first one, 1 in the last; 0 if their number is unknown.

    >>> [training_progress(epoch, 5) for epoch in (0, 1, 4, 9)]
    [0.0, 0.25, 1.0, 1.0]
    """
    return min(epoch / (num_epochs - 1), 1.0) if num_epochs is not None and num_epochs > 1 else 0.0


class Pose(NamedTuple):
    """One bijection of the lattice: mirrored first, then sheared, then rotated.

    Attributes:
        mirror_rows: rows change their sign.
        mirror_cols: columns change their sign.
        shear_axis: 0 moves rows, 1 moves columns.
        shear_slope: cells moved for every cell along the other axis.
        quarter_turns: 0 to 3.
        tilt_radians: rotation besides the quarter turns.
    """

    mirror_rows: bool = False
    mirror_cols: bool = False
    shear_axis: int = 0
    shear_slope: float = 0.0
    quarter_turns: int = 0
    tilt_radians: float = 0.0


IDENTITY = Pose()
"""Changes nothing."""


def draw_pose(settings: AugmentationSettings, factor: float, generator: torch.Generator) -> Pose:
    """Draws what happens to the cells of one slide.

    Args:
        settings: ranges and probability.
        factor: multiplies the probability, see `annealing`.
        generator: always ten numbers are taken, so that one setting does not change the draws of another.
    """
    draws: list[float] = torch.rand(10, generator=generator, dtype=torch.float64).tolist()
    mirrored, sheared, rotated = (draw < settings.probability * factor for draw in draws[:3])
    up_down, left_right, axis, shear_angle, turns, tilt_angle = draws[3:9]
    pose = IDENTITY
    if mirrored and settings.mirror:
        pose = pose._replace(mirror_rows=up_down < 0.5, mirror_cols=left_right < 0.5)
    if sheared:
        angle = math.radians(settings.max_shear_degrees * (2 * shear_angle - 1))
        pose = pose._replace(shear_axis=int(axis < 0.5), shear_slope=math.tan(angle))
    if rotated:
        angle = math.radians(settings.max_tilt_degrees * (2 * tilt_angle - 1))
        pose = pose._replace(quarter_turns=int(4 * turns) if settings.quarter_turns else 0, tilt_radians=angle)
    return pose


def move(grid: Int32[Tensor, "patches 2"], pose: Pose) -> Int32[Tensor, "patches 2"]:
    """Applies a pose and shifts the slide so that it starts at row 0 and column 0.

    Rotation and shear are about cell (0, 0), not about the slide's middle: the change of one patch does not depend on
    where the others are (the final shift apart).

    Args:
        grid: `(row, col)`.
        pose: what to do; `IDENTITY` returns `grid` itself.

    Raises:
        LatticeError: the moved slide is longer than int32 can count.

    >>> move(torch.tensor([[0, 0], [2, 5]], dtype=torch.int32), Pose(mirror_rows=True, quarter_turns=1)).tolist()
    [[5, 2], [0, 0]]
    """
    if pose == IDENTITY or not len(grid):
        return grid
    cells = grid.long()
    for axis, mirrored in enumerate((pose.mirror_rows, pose.mirror_cols)):
        if mirrored:
            cells = mirror(cells, axis)
    cells = shear(cells, pose.shear_axis, pose.shear_slope)
    cells = rotate(cells, pose.quarter_turns, pose.tilt_radians)
    cells = cells - cells.amin(0)
    longest = int(cells.max())
    if longest > MAX_CELL:
        raise LatticeError(f"the augmented slide is {longest + 1} cells long, at most {MAX_CELL + 1} can be counted")
    return cells.int()


def mirror(cells: Int64[Tensor, "patches 2"], axis: int) -> Int64[Tensor, "patches 2"]:
    """Changes the sign of rows (axis 0) or columns (axis 1)."""
    return torch.stack([-part if number == axis else part for number, part in enumerate(cells.unbind(1))], dim=1)


def shear(cells: Int64[Tensor, "patches 2"], axis: int, slope: float) -> Int64[Tensor, "patches 2"]:
    """Moves rows (axis 0) by `round(slope · col)`, or columns (axis 1) by `round(slope · row)`.

    A bijection: the other axis stays, so `-slope` undoes it exactly.

    >>> shear(torch.tensor([[7, 0], [7, 3], [7, 5]]), 0, 0.4).tolist()
    [[7, 0], [8, 3], [9, 5]]
    """
    if slope == 0:
        return cells
    parts = list(cells.unbind(1))
    parts[axis] = parts[axis] + (parts[1 - axis].double() * slope).round_().long()
    return torch.stack(parts, dim=1)


def rotate(
    cells: Int64[Tensor, "patches 2"], quarter_turns: int, tilt_radians: float = 0.0
) -> Int64[Tensor, "patches 2"]:
    """Rotates about cell (0, 0) from the row axis towards the column axis.

    `[cos −sin; sin cos]` is a shear of rows by `−tan(tilt/2)`, of columns by `sin(tilt)` and of rows by `−tan(tilt/2)`
    (Paeth 1986). Each rounding moves a cell by at most ½, so after tilts up to 30° every cell lies within 1.31 cells of
    where the exact rotation puts it.

    Args:
        cells: `(row, col)`, of any sign.
        quarter_turns: exact quarter turns, done first.
        tilt_radians: the rest, in [-π/4, π/4].

    >>> rotate(torch.tensor([[3, 1]]), 1).tolist()
    [[-1, 3]]
    """
    row, col = cells.unbind(1)
    turned = ((row, col), (-col, row), (-row, -col), (col, -row))[quarter_turns % 4]
    cells = torch.stack(turned, dim=1)
    for axis, slope in (
        (0, -math.tan(tilt_radians / 2)),
        (1, math.sin(tilt_radians)),
        (0, -math.tan(tilt_radians / 2)),
    ):
        cells = shear(cells, axis, slope)
    return cells


def keep_patches(num_patches: int, drop: float, generator: torch.Generator) -> Int64[Tensor, " kept"]:
    """Rows that stay, ascending, when each of them is dropped with probability `drop`; at least one stays."""
    draws = torch.rand(num_patches, generator=generator)
    kept = (draws >= drop).nonzero().flatten()
    return kept if len(kept) else draws.argmax().reshape(1)


def add_noise(
    features: Float[Tensor, "patches channels"], relative: float, generator: torch.Generator
) -> Float[Tensor, "patches channels"]:
    """Adds Gaussian noise of `relative` times each channel's standard deviation on the slide; keeps the dtype."""
    scale = features.float().std(0, correction=0) * relative
    noise = torch.randn(features.shape, generator=generator)
    return noise.mul_(scale).add_(features).to(features.dtype)


def mix_features(
    features: Float[Tensor, "patches channels"], most: float, generator: torch.Generator
) -> Float[Tensor, "patches channels"]:
    """Gives every patch a share, uniform in [0, `most`], of the features of a random one; keeps the dtype."""
    shares = torch.rand(len(features), 1, generator=generator) * most
    others = features[torch.randint(len(features), (len(features),), generator=generator)]
    return torch.lerp(features.float(), others.float(), shares).to(features.dtype)


class Augmented(NamedTuple):
    """A slide after augmentation.

    Attributes:
        grid: `(row, col)` of every patch that is left.
        features: their features.
        kept: their rows on the slide as stored, ascending; None if all are left. For what else is known of patches.
    """

    grid: Int32[Tensor, "kept 2"]
    features: Float[Tensor, "kept channels"]
    kept: Int64[Tensor, " kept"] | None


def augment(
    grid: Int32[Tensor, "patches 2"],
    features: Float[Tensor, "patches channels"],
    settings: AugmentationSettings,
    progress: float,
    generator: torch.Generator,
) -> Augmented:
    """Changes one slide; the inputs are not written to, and not copied where nothing changes.

    Args:
        grid: `(row, col)`.
        features: patch features.
        settings: what may happen, and how strongly.
        progress: how far training is, in [0, 1].
        generator: the only source of chance.

    Raises:
        LatticeError: see `move`.
    """
    factor = annealing(progress, settings.final_factor)
    pose = draw_pose(settings, factor, generator)
    kept = None
    if settings.token_drop * factor > 0:
        kept = keep_patches(len(grid), settings.token_drop * factor, generator)
        grid, features = grid[kept], features[kept]
    if settings.feature_mixup * factor > 0:
        features = mix_features(features, settings.feature_mixup * factor, generator)
    if settings.feature_noise * factor > 0:
        features = add_noise(features, settings.feature_noise * factor, generator)
    return Augmented(move(grid, pose), features, kept)


def square_symmetry(grid: Int32[Tensor, "patches 2"], symmetry: int) -> Int32[Tensor, "patches 2"]:
    """Applies one of the eight symmetries of the square to lattice cells.

    Args:
        grid: `(row, col)`.
        symmetry: 0 to 7; bit 0 mirrors rows, bit 1 mirrors columns, bit 2 swaps rows and columns.

    >>> square_symmetry(torch.tensor([[0, 0], [2, 5]], dtype=torch.int32), 0b101).tolist()
    [[0, 2], [5, 0]]
    """
    row, col = grid.unbind(1)
    if symmetry & 1:
        row = row.max() - row
    if symmetry & 2:
        col = col.max() - col
    return torch.stack((col, row) if symmetry & 4 else (row, col), dim=1)
