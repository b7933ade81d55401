"""Where on a demo slide is tissue, and which of its cells are foci?

1. The tissue is one blob with a wavy outline, a closed curve in polar coordinates.
2. Foci may lie in cells that are tissue together with their eight neighbours, in both classes: a focus at the rim would
   look different and there would be more of them in one class than in the other.
3. `clustered`: a few compact groups. `scattered`: as many foci, no two of them adjacent, not even by a corner.

Number of foci and outline are drawn without looking at the class. Nothing here looks at pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion

CLUSTERED: Final = "clustered"
SCATTERED: Final = "scattered"

MARGIN_CELLS: Final = 2
"""Glass around the tissue, in cells."""

_MAX_ATTEMPTS: Final = 200
_SUBPOINTS: Final = 8


@dataclass(frozen=True, slots=True)
class Outline:
    """A closed curve around the tissue: `radius(angle) = radius·(1 + Σ amplitude·cos(k·angle + phase))`.

    Attributes:
        centre: `(row, col)` in cells, fractional.
        radius: mean radius in cells.
        stretch: the blob is this much longer along rows than along columns.
        amplitudes: of the harmonics k = 2, 3, …, relative to the radius.
        phases: of the harmonics, in radians.
    """

    centre: tuple[float, float]
    radius: float
    stretch: float
    amplitudes: tuple[float, ...]
    phases: tuple[float, ...]

    def contains(self, rows: NDArray[Any], cols: NDArray[Any]) -> NDArray[np.bool_]:
        """Which points, in fractional cells, are tissue; `rows` and `cols` broadcast."""
        down = (np.asarray(rows, np.float32) - np.float32(self.centre[0])) / np.float32(self.stretch)
        right = (np.asarray(cols, np.float32) - np.float32(self.centre[1])) * np.float32(self.stretch)
        # A harmonic of the angle is a rotation of a power of the unit vector: no trigonometry per point.
        distance = np.hypot(down, right) + np.float32(1e-6)
        unit = (right + 1j * down) / distance
        reach = np.ones(distance.shape, np.float32)
        power = unit
        for amplitude, phase in zip(self.amplitudes, self.phases, strict=True):
            power = power * unit
            reach += np.float32(amplitude) * (power * np.complex64(np.exp(1j * phase))).real
        return distance < np.float32(self.radius) * reach


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The plan of one slide in cells of the lattice, before the slide is turned.

    Attributes:
        rows: whole cells of the slide along y.
        cols: whole cells of the slide along x.
        outline: border of the tissue.
        foci: cells `(row, col)`, int32 `[foci, 2]`, in row-major order.
        inside: bool `[rows, cols]`, cells that could have been foci.
    """

    rows: int
    cols: int
    outline: Outline
    foci: NDArray[np.int32]
    inside: NDArray[np.bool_]

    def turned_foci(self, symmetry: int) -> NDArray[np.int32]:
        """Where the foci are after `turn`, int32 `[foci, 2]`, in row-major order."""
        mask = np.zeros((self.rows, self.cols), dtype=np.bool_)
        mask[tuple(self.foci.T)] = True
        return np.argwhere(turn(mask, symmetry)).astype(np.int32)


def lay_out(kind: str, tissue_cells: float, num_foci: int, rng: np.random.Generator) -> Layout:
    """Draw the tissue and the foci of one slide.

    Both arrangements are drawn and both must fit, whichever is used: two slides with the same random numbers differ in
    nothing but the places of their foci, and roomy outlines are not commoner in one class.

    Args:
        kind: `CLUSTERED` or `SCATTERED`.
        tissue_cells: area of the tissue in cells, about.
        num_foci: number of focus cells, exactly.
        rng: source of randomness.
    """
    for _ in range(_MAX_ATTEMPTS):
        outline, rows, cols = _draw_outline(tissue_cells, rng)
        inside = _inside_cells(outline, rows, cols)
        clustered, scattered = _clustered(inside, num_foci, rng), _scattered(inside, num_foci, rng)
        if clustered is not None and scattered is not None:
            return Layout(rows, cols, outline, clustered if kind == CLUSTERED else scattered, inside)
    raise ValueError(f"{num_foci} foci do not fit into {tissue_cells:.0f} cells of tissue in both arrangements")


def turn(array: NDArray[Any], symmetry: int) -> NDArray[Any]:
    """One of the eight symmetries of the square, on the first two axes: quarter turns, mirrored from 4 on."""
    turned = np.rot90(array, symmetry % 4)
    return turned[:, ::-1] if symmetry >= 4 else turned


def num_adjacent_pairs(foci: NDArray[np.integer[Any]]) -> int:
    """Pairs of foci that touch by a side or a corner: 0 for scattered foci, several per focus for clusters.

    >>> num_adjacent_pairs(np.array([[0, 0], [0, 1], [1, 1], [5, 5]]))
    3
    """
    distance = np.abs(foci[:, None] - foci[None]).max(axis=2)
    return int((distance == 1).sum()) // 2


def _draw_outline(tissue_cells: float, rng: np.random.Generator) -> tuple[Outline, int, int]:
    harmonics = np.arange(2, 9)
    amplitudes = rng.uniform(0.1, 0.45, len(harmonics)) / harmonics
    phases = rng.uniform(0, 2 * np.pi, len(harmonics))
    radius = float(np.sqrt(tissue_cells / np.pi / (1 + (amplitudes**2).sum() / 2)))
    outline = Outline((0.0, 0.0), radius, float(rng.uniform(0.8, 1.25)), tuple(amplitudes), tuple(phases))
    # Measure the blob around the origin, then move it into a slide that leaves glass on all sides.
    axis = np.arange(-3 * radius, 3 * radius, 0.25)
    tissue = outline.contains(axis[:, None], axis[None, :])
    down, right = axis[tissue.any(axis=1)], axis[tissue.any(axis=0)]
    before = rng.uniform(MARGIN_CELLS, MARGIN_CELLS + 1.5, 2)
    after = rng.uniform(MARGIN_CELLS, MARGIN_CELLS + 1.5, 2)
    centre = (float(before[0] - down[0]), float(before[1] - right[0]))
    rows = int(np.ceil(before[0] + after[0] + down[-1] - down[0]))
    cols = int(np.ceil(before[1] + after[1] + right[-1] - right[0]))
    return Outline(centre, radius, outline.stretch, outline.amplitudes, outline.phases), rows, cols


def _inside_cells(outline: Outline, rows: int, cols: int) -> NDArray[np.bool_]:
    down = np.linspace(0, rows, rows * _SUBPOINTS + 1)
    right = np.linspace(0, cols, cols * _SUBPOINTS + 1)
    nodes = outline.contains(down[:, None], right[None, :])
    points = nodes[:-1, :-1] & nodes[:-1, 1:] & nodes[1:, :-1] & nodes[1:, 1:]  # all four corners of a sub-square
    full = points.reshape(rows, _SUBPOINTS, cols, _SUBPOINTS).all(axis=(1, 3))
    return np.asarray(binary_erosion(full, np.ones((3, 3))), dtype=np.bool_)


def _clustered(inside: NDArray[np.bool_], num_foci: int, rng: np.random.Generator) -> NDArray[np.int32] | None:
    num_clusters = int(rng.integers(2, 5)) if num_foci >= 24 else 2
    sizes = np.full(num_clusters, num_foci // num_clusters)
    sizes[: num_foci % num_clusters] += 1
    free = inside.copy()
    chosen = np.zeros_like(inside)
    for size in sizes:
        cells = np.argwhere(free)
        if len(cells) < size:
            return None
        centre = cells[rng.integers(len(cells))]
        distance = np.hypot(*(cells - centre).T) + rng.uniform(0, 0.7, len(cells))
        members = cells[np.argsort(distance, kind="stable")[:size]]
        if np.abs(members - centre).max() > np.sqrt(size):  # squeezed into a corner of the tissue: not compact
            return None
        chosen[tuple(members.T)] = True
        for row, col in members:
            free[max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2] = False
    return np.argwhere(chosen).astype(np.int32)


def _scattered(inside: NDArray[np.bool_], num_foci: int, rng: np.random.Generator) -> NDArray[np.int32] | None:
    free = inside.copy()
    chosen = np.zeros_like(inside)
    for row, col in rng.permutation(np.argwhere(inside)):
        if free[row, col]:
            chosen[row, col] = True
            free[max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2] = False
            if chosen.sum() == num_foci:
                return np.argwhere(chosen).astype(np.int32)
    return None
