"""Where is a patch? The one place that converts between lattice cells, level-0 pixels and micrometres.

A slide is cut by a square lattice anchored at the slide's own origin, level-0 pixel (0, 0), never at the tissue's
bounding box: a new patch far away must not move the others, nor re-pair the 2×2 blocks of the pyramid. Cell
`(row, col)` covers the level-0 pixels `x in [col·step, (col+1)·step)`, `y in [row·step, (row+1)·step)`.

What other programs cut may start elsewhere and overlap. Such a lattice keeps its origin, and its patches are `overlap`
pixels larger than the step; nothing we extract ourselves has either.

The step is a whole number of level-0 pixels, chosen once per slide from the patch size and the target resolution, so
that cell ↔ pixel is exact int64 arithmetic both ways. Scaling floating-point coordinates instead drifts: after 400
patches at 0.2527 µm/px a rounding of each one separately is off by more than a pixel.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import LatticeError

MAX_CELL = 2**31 - 1
"""Largest row or column: grids are stored as int32."""

MIN_PLAUSIBLE_MPP = 0.05
"""100× oil immersion gives 0.1 µm/px; half of that leaves room."""

MAX_PLAUSIBLE_MPP = 50.0
"""Overview pictures of slides have about 30 µm/px; 72 and 96 dpi are 353 and 265."""


class BoxPx0(NamedTuple):
    """A half-open rectangle in level-0 pixels: `x0 <= x < x1`, `y0 <= y < y1`."""

    x0: int
    y0: int
    x1: int
    y1: int


@dataclass(frozen=True, slots=True)
class LatticeSpec:
    """What the user asks for, the same for every slide of a cohort.

    Attributes:
        patch_size_px: edge of a patch in pixels at the target resolution (the encoder's input).
        target_mpp: micrometres per pixel at which patches are read.

    Raises:
        LatticeError: a size or resolution that is not positive.
    """

    patch_size_px: int
    target_mpp: float

    def __post_init__(self) -> None:
        if self.patch_size_px < 1 or not 0 < self.target_mpp < float("inf"):
            raise LatticeError(
                f"patch size {self.patch_size_px} px at {self.target_mpp} µm/px: both must be positive, "
                "for example 224 px at 0.5 µm/px"
            )

    @property
    def patch_size_um(self) -> float:
        """Edge of a patch in micrometres, before rounding to level-0 pixels."""
        return self.patch_size_px * self.target_mpp

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for attributes of a store and for checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LatticeSpec:
        """Inverse of `as_dict`."""
        return cls(patch_size_px=int(values["patch_size_px"]), target_mpp=float(values["target_mpp"]))

    def on_slide(self, slide_mpp: float) -> Lattice:
        """The lattice of one slide: step = patch size in µm over the slide's µm per pixel, to the nearest pixel.

        Args:
            slide_mpp: micrometres per pixel of the slide's level 0.

        Raises:
            LatticeError: the slide is so coarse that a patch would be less than one pixel.

        >>> LatticeSpec(patch_size_px=224, target_mpp=0.5).on_slide(0.25).step_px0
        448
        """
        step_px0 = int(np.rint(self.patch_size_um / slide_mpp))
        if step_px0 < 1:
            raise LatticeError(
                f"a patch of {self.patch_size_um:g} µm is smaller than one pixel of {slide_mpp:g} µm; "
                "choose a larger patch size or a coarser target resolution"
            )
        return Lattice(spec=self, slide_mpp=slide_mpp, step_px0=step_px0)


@dataclass(frozen=True, slots=True)
class Lattice:
    """The lattice of one slide.

    Attributes:
        spec: what was asked for.
        slide_mpp: micrometres per pixel of level 0.
        step_px0: distance between neighbouring cells in level-0 pixels.
        origin_px0: top-left corner `(x, y)` of cell (0, 0), each in [0, step); (0, 0) unless imported.
        overlap_px0: a patch is so much larger than the step; 0 unless imported, negative for gaps between patches.

    Raises:
        LatticeError: a step below 1, an origin outside [0, step), or patches without extent.
    """

    spec: LatticeSpec
    slide_mpp: float
    step_px0: int
    origin_px0: tuple[int, int] = (0, 0)
    overlap_px0: int = 0

    def __post_init__(self) -> None:
        if self.step_px0 < 1 or self.patch_px0 < 1 or not all(0 <= start < self.step_px0 for start in self.origin_px0):
            raise LatticeError(
                f"a lattice of step {self.step_px0} px, origin {self.origin_px0} and patches of {self.patch_px0} px: "
                "step and patch must be at least 1 px and the origin in [0, step)"
            )

    @property
    def patch_px0(self) -> int:
        """Edge of a patch in level-0 pixels."""
        return self.step_px0 + self.overlap_px0

    @property
    def step_um(self) -> float:
        """Distance between neighbouring cells in micrometres."""
        return self.step_px0 * self.slide_mpp

    def shape(self, width_px0: int, height_px0: int) -> tuple[int, int]:
        """Number of whole patches `(rows, cols)` that fit into a slide; a partial last row or column has no cell."""
        x0, y0 = self.origin_px0
        rows, cols = (
            max(0, (extent - start - self.overlap_px0) // self.step_px0)
            for extent, start in ((height_px0, y0), (width_px0, x0))
        )
        return rows, cols

    def to_px0(self, grid: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Top-left corners `(x, y)` in level-0 pixels, int64 `[patches, 2]`, of cells `(row, col)`.

        >>> LatticeSpec(256, 0.5).on_slide(0.5).to_px0(np.array([[2, 1]], dtype=np.int32))
        array([[256, 512]])
        """
        return grid[:, ::-1].astype(np.int64) * self.step_px0 + np.array(self.origin_px0, dtype=np.int64)

    def to_cells(self, coords_px0: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
        """Cells `(row, col)`, int32 `[patches, 2]`, whose top-left corners are exactly `coords_px0` `(x, y)`.

        Raises:
            LatticeError: a coordinate is negative, off the lattice, or beyond int32.
        """
        cells, residue = np.divmod(coords_px0.astype(np.int64) - np.array(self.origin_px0), self.step_px0)
        if residue.any():
            first = int(np.flatnonzero(residue.any(axis=1))[0])
            raise LatticeError(
                f"patch {first} at level-0 pixel {tuple(coords_px0[first].tolist())} is not a multiple of the lattice "
                f"step {self.step_px0} px from {self.origin_px0}; the coordinates belong to another lattice"
            )
        return self._as_grid(cells)

    def containing(self, points_px0: NDArray[np.integer[Any] | np.floating[Any]]) -> NDArray[np.int32]:
        """Cells `(row, col)` that contain the points `(x, y)` in level-0 pixels."""
        return self._as_grid(np.floor_divide(points_px0 - np.array(self.origin_px0), self.step_px0).astype(np.int64))

    def box(self, row: int, col: int) -> BoxPx0:
        """The pixels that the patch of a cell covers."""
        x0, y0 = self.origin_px0[0] + col * self.step_px0, self.origin_px0[1] + row * self.step_px0
        return BoxPx0(x0, y0, x0 + self.patch_px0, y0 + self.patch_px0)

    def centres_um(self, grid: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """Centres `(x, y)` of the patches in micrometres from the slide's origin, float64 `[patches, 2]`."""
        return (self.to_px0(grid) + self.patch_px0 / 2) * self.slide_mpp

    @staticmethod
    def _as_grid(cells_xy: NDArray[np.int64]) -> NDArray[np.int32]:
        if cells_xy.size and (cells_xy.min() < 0 or cells_xy.max() > MAX_CELL):
            raise LatticeError(f"lattice cells must lie in [0, {MAX_CELL}], found {cells_xy.min()} to {cells_xy.max()}")
        return cells_xy[:, ::-1].astype(np.int32)
