from __future__ import annotations

import pytest
import torch

from span_sparse.datasets.augment import square_symmetry

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
