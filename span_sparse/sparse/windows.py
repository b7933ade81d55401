"""Attention windows of a pyramid level, from spconv's indice maps.

With `p` a token's lattice coordinate and `w` the window size, a *regular* window holds the tokens of equal
`⌊p / 2w⌋`, a *shifted* one those of equal `⌊(p + w) / 2w⌋`. Both consist of whole `w × w` cells, and the two windows of
a token share exactly its own cell. So everything follows from the strided map tokens → cells (kernel = stride = w), in
one of two forms:

    seen       what the tokens of a cell see: of the 3 × 3 cells around it (a submanifold map over the cells) seven, all
               but two opposite corners, which two depends on the cell's parity
    windows    the tokens of every window: cells → windows (kernel = stride = 2, anchored at 0 and at -1)

No mask by coordinates is needed, and an empty window costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from span_sparse.sparse.device_tables import seen_tokens
from span_sparse.sparse.indice_maps import KernelMap, neighbour_map, strided_map
from span_sparse.sparse.sites import SparseSites

SEEN_CELLS = ((0, 0), (1, 0), (0, 1), (1, 1), (-1, 0), (0, -1), (-1, -1))
"""Places of the seven cells relative to a cell in an even row and column: itself, the others of its regular window,
those of its shifted one. In an odd row the rows change their sign, in an odd column the columns."""


@dataclass(frozen=True)
class WindowMaps:
    """Which tokens share a window; the forms are built when they are first asked for.

    Window slots are ordered (cell of the window, slot in the cell), both row-major: `4 · w²` slots.

    Attributes:
        window_size: `w`; a window spans `2w × 2w` lattice cells.
        cells: non-empty `w × w` cells.
        tokens: token rows of every cell, slots row-major, -1 where there is none.
    """

    window_size: int
    cells: SparseSites
    tokens: KernelMap

    @cached_property
    def seen(self) -> Int32[Tensor, "cells seen"]:
        """The tokens that the tokens of a cell may see, `w²` a cell of `SEEN_CELLS`, -1 where there is none."""
        return seen_tokens(self.cells.coords, self.tokens.table, neighbour_map(self.cells))

    @cached_property
    def regular(self) -> KernelMap:
        """Token rows of the regular windows, -1 where there is none."""
        return self._windows(offset=0)

    @cached_property
    def shifted(self) -> KernelMap:
        """The same for the shifted windows."""
        return self._windows(offset=1)

    def tensors(self) -> Iterator[Tensor]:
        """Everything that lies on the device so far."""
        yield from self.cells.tensors()
        yield from self.tokens.tensors()
        for value in self.__dict__.values():
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, KernelMap) and value is not self.tokens:
                yield from value.tensors()

    def _windows(self, offset: int) -> KernelMap:
        """The map that reads tokens from windows; taps are (cell of the window, slot in the cell)."""
        _, cells_of_windows = strided_map(self.cells, 2, 2, offset=offset)
        absent = self.tokens.table.new_full((1, self.tokens.num_taps), -1)
        padded = torch.cat([self.tokens.table, absent])
        return KernelMap(padded[cells_of_windows.table.long()].flatten(1), self.tokens.num_inputs)


def window_maps(sites: SparseSites, window_size: int) -> WindowMaps:
    """The windows of a level."""
    cells, tokens = strided_map(sites, window_size, window_size)
    return WindowMaps(window_size, cells, tokens)


def plain_seen_tokens(
    cells: Int32[Tensor, "cells 3"], tokens: Int32[Tensor, "cells slots"], neighbours: Int32[Tensor, "taps cells"]
) -> Int32[Tensor, "cells seen"]:
    """`WindowMaps.seen` in plain torch."""
    sign = 1 - 2 * (cells[:, 1:] % 2)  # (cells, 2)
    rows, cols = (sign.unsqueeze(1) * sign.new_tensor(SEEN_CELLS)).unbind(-1)  # (cells, 7)
    others = neighbours.T.gather(1, (4 + 3 * rows + cols).long())
    absent = tokens.new_full((1, tokens.shape[1]), -1)
    return torch.cat([tokens, absent])[others.long()].flatten(1)


def window_offsets(window_size: int, device: torch.device) -> Int64[Tensor, "slots 2"]:
    """Row and column of every window slot, relative to the window's origin, in the order of `WindowMaps`."""
    axis = torch.arange(2 * window_size, device=device)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)  # (rows, cols, 2)
    by_cell = grid.reshape(2, window_size, 2, window_size, 2).permute(
        0, 2, 1, 3, 4
    )  # (cell row, cell col, row, col, 2)
    return by_cell.reshape(-1, 2)
