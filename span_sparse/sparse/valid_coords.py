"""Coordinates of a batch, validated and ordered once, on the CPU, where the batch is collated.

spconv accepts duplicate, negative and out-of-range coordinates silently and then computes something else. Asking a
device whether they are valid makes the host wait for it, in every forward pass; here nothing has to wait, and what the
host needs to know later (extents, rows of each slide) it knows as plain numbers from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int, Int32
from torch import Tensor

from span_sparse.errors import BatchError
from span_sparse.sparse.sites import MAX_EXTENT, MAX_SITES_KEY, site_keys


@dataclass(frozen=True, slots=True, eq=False)
class ValidCoords:
    """Coordinates that need no further look: in range, unique, ordered by (slide, row, col), no slide empty.

    Attributes:
        coords: `(slide, row, col)` of every patch, contiguous.
        offsets: first row of every slide, and the number of rows.
        extents: rows and columns of the lattice: the largest of the batch, plus one. Whoever rounds them up to windows
            or strides compares the rounded ones with spconv's limit again (host numbers, nothing waits).
        counts: rows of every slide; they sum to `tokens`.
    """

    coords: Int32[Tensor, "tokens 3"]
    offsets: Int32[Tensor, " offsets"]
    extents: tuple[int, int]
    counts: tuple[int, ...]

    @property
    def num_slides(self) -> int:
        """Slides in the batch."""
        return len(self.counts)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ValidCoords:
        """A copy on `device`."""
        coords = self.coords.to(device, non_blocking=non_blocking)
        return replace(self, coords=coords, offsets=self.offsets.to(device, non_blocking=non_blocking))


def validated(
    coords: Int[Tensor, "tokens 3"], counts: Sequence[int]
) -> tuple[ValidCoords, Int[Tensor, " tokens"] | None]:
    """Checks the coordinates of slides that lie one after the other, and sorts each slide by (row, col).

    Args:
        coords: `(slide, row, col)` on the CPU; the slides in order, the rows of a slide in any order.
        counts: rows of every slide.

    Returns:
        The valid coordinates, and the permutation with `valid.coords == coords[order]`; None where nothing moved. It
        moves rows within their slide only.

    Raises:
        BatchError: wrong shape or dtype, no slide or a slide without patches, a row that does not belong to the slide
            its place says, a negative or too large coordinate, two patches in one cell.
    """
    _check_form(coords, counts)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    slides = torch.arange(len(counts), dtype=coords.dtype).repeat_interleave(offsets.diff())
    if not torch.equal(coords[:, 0], slides):
        row = int((coords[:, 0] != slides).nonzero()[0])
        raise BatchError(
            f"row {row} of the batch is of slide {int(coords[row, 0])}, expected slide {int(slides[row])}: the rows of "
            "a slide lie together, slide after slide"
        )
    low, high = (bound.tolist() for bound in torch.aminmax(coords, dim=0))
    if min(low) < 0:
        raise BatchError(
            f"coordinates must have slide in [0, {len(counts)}) and row, col >= 0; "
            f"found (slide, row, col) from {low} to {high}"
        )
    extents = high[1] + 1, high[2] + 1
    check_extents(len(counts), extents)
    keys, order = site_keys(coords, extents), None
    if not bool((keys[1:] > keys[:-1]).all()):
        keys, order = torch.sort(keys)
        _check_unique(keys, coords, order)
        coords = coords[order]
    valid = ValidCoords(coords.int().contiguous(), offsets.int(), extents, tuple(map(int, counts)))
    return valid, order


def check_extents(num_slides: int, extents: tuple[int, int]) -> None:
    """Raises `BatchError` when spconv cannot number the cells of so many lattices of this size."""
    rows, cols = extents
    if num_slides * rows * cols > MAX_SITES_KEY or max(rows, cols) > MAX_EXTENT:
        raise BatchError(
            f"{num_slides} slides of {rows} × {cols} lattice cells exceed spconv's 2^31 cells a batch; "
            "use fewer slides a batch or larger patches"
        )


def _check_form(coords: Tensor, counts: Sequence[int]) -> None:
    if coords.ndim != 2 or coords.shape[1] != 3 or coords.dtype not in (torch.int32, torch.int64):
        raise BatchError(
            f"coordinates must be an int32 tensor [tokens, 3] of (slide, row, col), "
            f"found {coords.dtype} {list(coords.shape)}"
        )
    if len(coords) == 0 or len(counts) == 0:
        raise BatchError("the batch holds no patches; a slide without tissue cannot be classified")
    if 0 in counts:
        raise BatchError(f"slide {list(counts).index(0)} of the batch has no patches; remove it from the batch")
    if min(counts) < 0 or sum(counts) != len(coords):
        raise BatchError(f"the batch has {len(coords)} rows, its slides have {sum(counts)} together; counts must agree")


def _check_unique(keys: Tensor, coords: Tensor, order: Tensor) -> None:
    repeated = (keys[1:] == keys[:-1]).nonzero()
    if len(repeated):
        slide, row, col = coords[order[int(repeated[0])]].tolist()
        raise BatchError(
            f"cell (row {row}, col {col}) of slide {slide} of the batch occurs more than once ({len(repeated)} "
            "repeated rows); a lattice cell holds one patch: remove duplicates (`span validate STORE` lists them)"
        )
