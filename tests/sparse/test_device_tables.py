"""Tables of the geometry and depthwise convolution as a GPU makes them, against the plain ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from span_sparse.sparse import KernelMap, depthwise_convolution, make_sites, neighbour_map, strided_map, window_maps
from span_sparse.sparse.device_tables import pair_table, seen_tokens
from span_sparse.sparse.indice_maps import _strided_pairs, padded_extents, pairs_to_table
from span_sparse.sparse.operators import has_kernels, simulated_device
from span_sparse.sparse.sites import slide_offsets
from span_sparse.sparse.windows import plain_seen_tokens

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
import random_slides

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interprets kernels; test_cuda.py runs them")
batches = st.lists(random_slides.cell_sets, min_size=1, max_size=3)


def sites_of(batch: list[set[tuple[int, int]]]):
    return make_sites(random_slides.batch_of(*(random_slides.grid_of(cells) for cells in batch)), len(batch))[0]


@given(batch=batches, kernel_size=st.integers(2, 3))
@settings(max_examples=15, deadline=None)
def test_pairs_become_the_plain_table(batch: list[set[tuple[int, int]]], kernel_size: int) -> None:
    sites = sites_of(batch)
    extents = padded_extents(sites, kernel_size, 2)
    coords, pairs = _strided_pairs(sites.coords, len(batch), extents, kernel_size, 2, 1)
    with simulated_device():
        assert has_kernels(pairs)
        table, offsets = pair_table(coords, pairs, len(batch))
    assert torch.equal(table, pairs_to_table(pairs, len(coords)).T)
    assert torch.equal(offsets, slide_offsets(coords, len(batch)))
    for output, inputs in enumerate(table.tolist()):  # by definition
        for tap, row in enumerate(inputs):
            place = coords[output] * torch.tensor([1, 2, 2]) + torch.tensor([0, *divmod(tap, kernel_size)])
            assert torch.equal(sites.coords[row], place) if row >= 0 else not (sites.coords == place).all(1).any()


@given(batch=batches, window_size=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_seen_tokens_are_the_plain_ones(batch: list[set[tuple[int, int]]], window_size: int) -> None:
    maps = window_maps(sites_of(batch), window_size)
    arguments = maps.cells.coords, maps.tokens.table, neighbour_map(maps.cells)
    with simulated_device():
        seen = seen_tokens(*arguments)
    assert torch.equal(seen, plain_seen_tokens(*arguments))


@given(batch=batches, window_size=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_seen_tokens_are_those_of_both_windows(batch: list[set[tuple[int, int]]], window_size: int) -> None:
    """By definition: equal `⌊p / 2w⌋` or equal `⌊(p + w) / 2w⌋`, in one slide."""
    sites, span = sites_of(batch), 2 * window_size
    maps = window_maps(sites, window_size)
    with simulated_device():
        seen = seen_tokens(maps.cells.coords, maps.tokens.table, neighbour_map(maps.cells))
    coords = sites.coords.long()
    for own, keys in zip(maps.tokens.table.tolist(), seen.tolist(), strict=True):
        found = [key for key in keys if key >= 0]
        for token in (row for row in own if row >= 0):
            same = [
                (((coords + shift) // span) == (coords[token] + shift) // span)[:, 1:].all(dim=1)
                for shift in (0, window_size)
            ]
            expected = (same[0] | same[1]) & (coords[:, 0] == coords[token, 0])
            assert sorted(found) == expected.nonzero().flatten().tolist()


def convolved(features: Tensor, weight: Tensor, children: KernelMap) -> list[Tensor]:
    """Output and gradients."""
    leaves = [features.clone().requires_grad_(), weight.clone().requires_grad_()]
    output = depthwise_convolution(*leaves, children)
    grad = torch.linspace(-1, 2, output.numel()).view(output.shape)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(output.dtype))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize(("kernel_size", "channels"), [(2, 7), (3, 5), (2, 130)])
@pytest.mark.parametrize("transposed", [False, True], ids=["down", "up"])
def test_depthwise_kernels_equal_the_cpu(kernel_size: int, channels: int, transposed: bool, dtype: torch.dtype) -> None:
    batch = random_slides.batch_of(random_slides.random_slide(30, 8, 0), random_slides.random_slide(1, 8, 1))
    _, children = strided_map(make_sites(batch, 2, 4)[0], kernel_size, 2)
    children = children.transposed if transposed else children
    features = torch.randn(children.num_inputs, channels).to(dtype)
    weight = torch.randn(kernel_size**2, channels)
    exact = convolved(features.double(), weight.double(), children)
    with simulated_device():
        ours = convolved(features, weight, children)
        again = convolved(features, weight, children)
    assert [one.dtype for one in ours] == [dtype, dtype, torch.float32]
    for mine, repeated, theirs in zip(ours, again, exact, strict=True):
        assert torch.equal(mine, repeated)
        limit = 1e-5 if dtype == torch.float32 else 3e-3
        assert (mine.double() - theirs).abs().max() < limit * theirs.abs().max()


def test_depthwise_by_hand() -> None:
    """Four children of one cell, weights 1, 10, 100, 1000; a fifth patch alone in another cell."""
    sites, _ = make_sites(torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [0, 2, 3]]), 1, 4)
    _, children = strided_map(sites, 2, 2)
    weight = torch.tensor([[1.0], [10.0], [100.0], [1000.0]])
    with simulated_device():
        output = depthwise_convolution(torch.arange(1.0, 6.0).unsqueeze(1), weight, children)
    assert output.flatten().tolist() == [4321.0, 50.0]
