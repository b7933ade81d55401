"""Which changes of the lattice leave a slide the same slide? The eight symmetries of the square.

A glass slide has no up or left. Each symmetry maps cells to cells one to one, so nothing collides and nothing is lost;
mirroring also changes which cells form a 2 × 2 block, so the network cannot rely on one pairing.
"""

from __future__ import annotations

import torch
from jaxtyping import Int32
from torch import Tensor


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
