"""Position terms against their formulas, written down pair by pair."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from span_sparse.nn.positions import AlibiBias, RelativePositionBias, alibi_slopes, expanded_bias, rotate
from span_sparse.sparse.windows import window_offsets

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
import dense_layers


@pytest.mark.parametrize("heads", [*range(1, 18), 31])
def test_slopes_follow_the_paper(heads: int) -> None:
    assert alibi_slopes(heads) == pytest.approx(dense_layers.alibi_slopes(heads), rel=1e-12)


def test_slopes_as_published() -> None:
    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(12)[8:] == pytest.approx([2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5], rel=1e-15)


@pytest.mark.parametrize("window_size", [1, 2, 3])
def test_biases_of_every_pair_of_slots(window_size: int) -> None:
    places = window_offsets(window_size, torch.device("cpu")).tolist()
    side = 2 * window_size
    assert sorted(places) == [[row, col] for row in range(side) for col in range(side)]
    cells = [(row // window_size, col // window_size) for row, col in places]
    assert cells == sorted(cells)  # slots of a cell lie together
    learned, alibi = RelativePositionBias(3, window_size, std=1.0), AlibiBias(3, window_size)
    table, falls = (expanded_bias(each, window_size) for each in (learned(torch.float32), alibi(torch.float64)))
    for query, (row, col) in enumerate(places):
        for key, (other_row, other_col) in enumerate(places):
            entry = learned.table[:, other_row - row + side - 1, other_col - col + side - 1]
            assert torch.equal(table[:, query, key], entry)
            distance = math.hypot(other_row - row, other_col - col)
            expected = [-slope * distance for slope in alibi_slopes(3)]
            assert falls[:, query, key].tolist() == pytest.approx(expected, rel=1e-6)
    assert learned.table.shape == (3, 2 * side - 1, 2 * side - 1)


@pytest.mark.parametrize("width", [4, 8, 12])
def test_rotation_is_a_product_of_complex_numbers(width: int) -> None:
    rows, places = torch.randn(7, 2, width).double(), torch.randint(0, 20, (7, 2))
    torch.testing.assert_close(rotate(rows, places), dense_layers.rotated(rows, places), rtol=1e-5, atol=1e-5)


def test_rotation_leaves_the_origin_the_length_and_the_rest_alone() -> None:
    rows, places = torch.randn(9, 2, 11).double(), torch.randint(0, 300, (9, 2))
    turned = rotate(rows, places)
    torch.testing.assert_close(turned.norm(dim=-1), rows.norm(dim=-1), rtol=1e-6, atol=0)
    assert torch.equal(turned[..., 8:], rows[..., 8:])
    assert not torch.allclose(turned[..., :4], rows[..., :4])
    assert not torch.allclose(turned[..., 4:8], rows[..., 4:8])
    assert torch.equal(rotate(rows, torch.zeros_like(places)), rows)


def test_products_of_rotated_rows_depend_on_the_displacement_alone() -> None:
    q, k = torch.randn(1, 2, 8).double(), torch.randn(1, 2, 8).double()
    products = [
        (rotate(q, torch.tensor([[a, b]])) * rotate(k, torch.tensor([[a + 3, b - 2]]))).sum(dim=-1)
        for a, b in ((0, 2), (5, 9), (40, 31))
    ]
    torch.testing.assert_close(products[1], products[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(products[2], products[0], rtol=1e-5, atol=1e-5)


def test_rotate_gradcheck() -> None:
    places = torch.tensor([[0, 0], [3, 1], [2, 9]])
    rows = torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotate(x, places), (rows,))
