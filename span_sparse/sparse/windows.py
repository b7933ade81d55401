"""Which tokens share an attention window?

With `p` a token's lattice coordinate and `w` the window size, a *regular* window holds the tokens of equal
`⌊p / 2w⌋`, a *shifted* one those of equal `⌊(p + w) / 2w⌋`. Both consist of whole `w × w` cells, and the two windows of
a token share exactly its own cell. So the maps are three strided indice maps: tokens → cells (kernel = stride = w),
cells → regular windows and cells → shifted windows (kernel = stride = 2, anchored at 0 and at -1). No mask by
coordinates is needed, and an empty window costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from span_sparse.sparse.indice_maps import KernelMap, strided_map
from span_sparse.sparse.sites import SparseSites


@dataclass(frozen=True, slots=True)
class WindowMaps:
    """Tokens of the regular and of the shifted windows of one level.

    Window slots are ordered (cell of the window, slot in the cell), both row-major: `4 · w²` slots.

    Attributes:
        window_size: `w`; a window spans `2w × 2w` lattice cells.
        regular: token rows of the regular windows, -1 where there is none.
        shifted: the same for the shifted windows.
    """

    window_size: int
    regular: KernelMap
    shifted: KernelMap


def window_maps(sites: SparseSites, window_size: int) -> WindowMaps:
    """Builds the window maps of a level from spconv's indice maps."""
    cells, tokens_of_cells = strided_map(sites, window_size, window_size)
    windows = []
    for offset in (0, 1):
        _, cells_of_windows = strided_map(cells, 2, 2, offset=offset)
        windows.append(_compose(tokens_of_cells, cells_of_windows))
    return WindowMaps(window_size, *windows)


def _compose(inner: KernelMap, outer: KernelMap) -> KernelMap:
    """The map that reads `inner`'s inputs from `outer`'s outputs; taps are (outer, inner)."""
    absent = inner.table.new_full((1, inner.num_taps), -1)
    padded = torch.cat([inner.table, absent])
    return KernelMap(padded[outer.table].flatten(1), inner.num_inputs)


def window_offsets(window_size: int, device: torch.device) -> Int64[Tensor, "slots 2"]:
    """Row and column of every window slot, relative to the window's origin, in the order of `WindowMaps`."""
    axis = torch.arange(2 * window_size, device=device)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)  # (rows, cols, 2)
    by_cell = grid.reshape(2, window_size, 2, window_size, 2).permute(
        0, 2, 1, 3, 4
    )  # (cell row, cell col, row, col, 2)
    return by_cell.reshape(-1, 2)
