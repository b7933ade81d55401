"""Active lattice cells of a batch of slides, validated and ordered.

spconv accepts duplicate, negative and out-of-range coordinates silently and then computes something else, so a batch is
validated once, here, and everything after relies on it: int32, contiguous, unique, in range, ordered by
(slide, row, col). The one order makes results independent of the order in which patches arrive, makes each slide one
contiguous run of rows, and hides that spconv's own output order differs between devices and runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int, Int32
from torch import Tensor

from span_sparse.errors import BatchError

MAX_SITES_KEY = 2**31 - 1
"""spconv hashes `(slide · rows + row) · cols + col` as int32."""


MAX_EXTENT = 2**30
"""Extents are rounded up to windows and strides afterwards and must stay int32."""


@dataclass(frozen=True)
class SparseSites:
    """Active cells of one pyramid level of a batch, ordered by (slide, row, col).

    Attributes:
        coords: `(slide, row, col)`.
        num_slides: slides in the batch.
        extents: rows and columns of the lattice at this level, the same for all slides of the batch.
        offsets: first row of every slide, and the number of rows at the end.
    """

    coords: Int32[Tensor, "tokens 3"]
    num_slides: int
    extents: tuple[int, int]
    offsets: Int32[Tensor, " bounds"]

    def __len__(self) -> int:
        return len(self.coords)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Rows of each slide, on the host: waits for the device, so nothing that runs on a GPU asks for it."""
        return tuple(self.offsets.diff().tolist())

    def tensors(self) -> Iterator[Tensor]:
        """Everything that lies on the device."""
        yield self.coords
        yield self.offsets


def site_keys(coords: Int[Tensor, "tokens 3"], extents: tuple[int, int]) -> Int[Tensor, " tokens"]:
    """One int64 number a cell, increasing in (slide, row, col)."""
    wide = coords.long()
    return (wide[:, 0] * extents[0] + wide[:, 1]) * extents[1] + wide[:, 2]


def ordered_sites(
    coords: Int[Tensor, "tokens 3"], num_slides: int, extents: tuple[int, int]
) -> tuple[SparseSites, Int[Tensor, " tokens"]]:
    """Sorts valid coordinates; returns the sites and the permutation with `sites.coords == coords[order]`."""
    order = torch.sort(site_keys(coords, extents)).indices
    ordered = coords[order].int().contiguous()
    return SparseSites(ordered, num_slides, extents, slide_offsets(ordered, num_slides)), order


def slide_offsets(coords: Int[Tensor, "tokens 3"], num_slides: int) -> Int32[Tensor, " bounds"]:
    """First row of every slide in ordered coordinates, and the number of rows at the end."""
    bounds = torch.arange(num_slides + 1, dtype=coords.dtype, device=coords.device)
    return torch.searchsorted(coords[:, 0].contiguous(), bounds, out_int32=True)


def make_sites(
    coords: Int[Tensor, "tokens 3"], num_slides: int, multiple_of: int = 1
) -> tuple[SparseSites, Int[Tensor, " tokens"]]:
    """Validates the coordinates of a batch and sorts them.

    Args:
        coords: `(slide, row, col)`, any order.
        num_slides: slides in the batch; each must own at least one row.
        multiple_of: the extents are rounded up to this, so that no later stride drops a last row or column.

    Returns:
        The sites and the permutation with `sites.coords == coords[order]`.

    Raises:
        BatchError: wrong shape or dtype, a slide without tokens, a negative or too large coordinate, duplicates.
    """
    if coords.ndim != 2 or coords.shape[1] != 3 or coords.dtype not in (torch.int32, torch.int64):
        raise BatchError(
            f"coordinates must be an int32 tensor [tokens, 3] of (slide, row, col), "
            f"found {coords.dtype} {list(coords.shape)}"
        )
    if len(coords) == 0 or num_slides < 1:
        raise BatchError("the batch holds no patches; a slide without tissue cannot be classified")
    low, high = torch.stack(tuple(torch.aminmax(coords, dim=0))).tolist()
    if min(low) < 0 or high[0] >= num_slides:
        raise BatchError(
            f"coordinates must have slide in [0, {num_slides}) and row, col >= 0; "
            f"found (slide, row, col) from {low} to {high}"
        )
    rows, cols = (-(-(bound + 1) // multiple_of) * multiple_of for bound in high[1:])
    if num_slides * rows * cols > MAX_SITES_KEY or max(rows, cols) > MAX_EXTENT:
        raise BatchError(
            f"{num_slides} slides of {rows} × {cols} lattice cells exceed spconv's 2^31 cells a batch; "
            "use fewer slides a batch or larger patches"
        )
    sites, order = ordered_sites(coords, num_slides, (rows, cols))
    repeated = (sites.coords[1:] == sites.coords[:-1]).all(dim=1)
    num_repeated, fewest = torch.stack([repeated.sum(), sites.offsets.diff().min()]).tolist()
    if num_repeated:
        slide, row, col = sites.coords[int(repeated.nonzero()[0])].tolist()
        raise BatchError(
            f"cell (row {row}, col {col}) of slide {slide} of the batch occurs more than once ({num_repeated} "
            "repeated rows); a lattice cell holds one patch: remove duplicates (`span validate STORE` lists them)"
        )
    if fewest == 0:
        raise BatchError(f"slide {sites.counts.index(0)} of the batch has no patches; remove it from the batch")
    return sites, order
