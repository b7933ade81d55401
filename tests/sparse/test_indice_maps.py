"""Kernel maps against brute force over sets of cells."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from span_sparse.sparse import SparseSites, StridedConvolution, make_sites, neighbour_map, strided_map, window_maps
from span_sparse.sparse.indice_maps import KernelMap, pairs_to_table
from span_sparse.sparse.windows import window_offsets

cells = st.sets(st.tuples(st.integers(0, 1), st.integers(0, 13), st.integers(0, 10)), min_size=1, max_size=60)


def sites_of(rows: set[tuple[int, int, int]], multiple_of: int = 1) -> SparseSites:
    """Both slides get a corner cell, because a slide without patches is refused."""
    coords = torch.tensor(sorted(rows | {(0, 0, 0), (1, 0, 0)}, key=hash), dtype=torch.int32)
    sites, order = make_sites(coords, 2, multiple_of)
    assert torch.equal(sites.coords, coords[order])
    return sites


@settings(max_examples=60, deadline=None)
@given(cells, st.sampled_from([(2, 2, 1), (3, 3, 1), (3, 2, 1), (2, 1, 1), (2, 2, 2), (3, 2, 2), (3, 1, 2), (3, 3, 2)]))
def test_strided_map_is_sound_and_complete(rows: set[tuple[int, int, int]], shape: tuple[int, int, int]) -> None:
    kernel, stride, dilation = shape
    sites = sites_of(rows)
    outputs, table = strided_map(sites, kernel, stride, dilation)
    row_of = {tuple(site): row for row, site in enumerate(sites.coords.tolist())}
    expected = {}
    for slide, row, col in row_of:
        for tap in range(kernel * kernel):
            y, x = row - dilation * (tap // kernel), col - dilation * (tap % kernel)
            if y >= 0 and x >= 0 and y % stride == 0 and x % stride == 0:
                expected[(slide, y // stride, x // stride), tap] = row_of[slide, row, col]
    found = {
        (tuple(outputs.coords[output].tolist()), tap): row
        for output, taps in enumerate(table.table.tolist())
        for tap, row in enumerate(taps)
        if row >= 0
    }
    assert found == expected
    assert outputs.coords.tolist() == [list(site) for site in sorted({site for site, _ in expected})]
    assert sum(outputs.counts) == len(outputs) == table.num_outputs
    assert table.active_counts.tolist() == [
        sum(site == tuple(output) for site, _ in expected) for output in outputs.coords.tolist()
    ]
    if dilation == 1:  # a dilation that shares a factor with the stride leaves sites out by its definition
        assert set(expected.values()) == set(range(len(sites)))


@settings(max_examples=40, deadline=None)
@given(cells, st.sampled_from([(2, 2, 1), (3, 2, 1), (3, 1, 2), (2, 2, 2)]))
def test_transposed_holds_the_same_pairs(rows: set[tuple[int, int, int]], shape: tuple[int, int, int]) -> None:
    sites = sites_of(rows)
    outputs, table = strided_map(sites, *shape)
    back = table.transposed
    pairs = {(o, tap, i) for o, taps in enumerate(table.table.tolist()) for tap, i in enumerate(taps) if i >= 0}
    assert {(o, tap, i) for i, taps in enumerate(back.table.tolist()) for tap, o in enumerate(taps) if o >= 0} == pairs
    assert (back.num_outputs, back.num_inputs) == (len(sites), len(outputs))
    assert torch.equal(back.transposed.table, table.table)


@settings(max_examples=40, deadline=None)
@given(cells)
def test_neighbour_map_is_sound_and_complete(rows: set[tuple[int, int, int]]) -> None:
    sites = sites_of(rows)
    row_of = {tuple(site): row for row, site in enumerate(sites.coords.tolist())}
    expected = [
        [row_of.get((slide, row + tap // 3 - 1, col + tap % 3 - 1), -1) for tap in range(9)]
        for slide, row, col in sites.coords.tolist()
    ]
    assert neighbour_map(sites).T.tolist() == expected


@settings(max_examples=40, deadline=None)
@given(cells, st.integers(1, 4))
def test_windows_follow_their_definition(rows: set[tuple[int, int, int]], window_size: int) -> None:
    sites = sites_of(rows)
    maps = window_maps(sites, window_size)
    offsets = window_offsets(window_size, torch.device("cpu"))
    for table, shift in ((maps.regular.table, 0), (maps.shifted.table, window_size)):
        members = [[row for row in window if row >= 0] for window in table.tolist()]
        assert sorted(row for window in members for row in window) == list(range(len(sites)))
        for window, slots in zip(members, table, strict=True):
            places = sites.coords[window].long() + torch.tensor([0, shift, shift])
            origin = torch.cat([places[:, :1], places[:, 1:] // (2 * window_size)], dim=1).unique(dim=0)
            assert len(origin) == 1
            present = (slots >= 0).nonzero().squeeze(1)
            assert torch.equal(places[:, 1:], origin[0, 1:] * 2 * window_size + offsets[present])
        windows = {tuple(origin.tolist()) for origin in _origins(sites, shift, window_size)}
        assert len(table) == len(windows)


def _origins(sites: SparseSites, shift: int, window_size: int) -> torch.Tensor:
    places = sites.coords.long() + torch.tensor([0, shift, shift])
    return torch.cat([places[:, :1], places[:, 1:] // (2 * window_size)], dim=1)


def test_pairs_become_a_table() -> None:
    """Pairs as spconv 2.3.6 compacts them per tap, by hand."""
    pairs = torch.tensor([[[0, 2, -1], [1, -1, -1]], [[0, 1, -1], [0, -1, -1]]], dtype=torch.int32)
    assert pairs_to_table(pairs, 2).tolist() == [[0, 2], [1, -1]]
    counted = KernelMap(pairs_to_table(pairs, 2).T.contiguous(), 3)
    assert counted.active_counts.tolist() == [2, 1]


def test_slots_of_inputs_invert_the_table() -> None:
    sites = sites_of({(0, 1, 1), (0, 1, 2), (1, 5, 4), (1, 4, 4)}, multiple_of=2)
    _, table = strided_map(sites, 2, 2)
    assert table.table.flatten()[table.slots_of_inputs].tolist() == list(range(len(sites)))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mode", [True, False])
def test_strided_convolution_equals_a_dense_one(bias: bool, mode: bool) -> None:
    sites = sites_of(
        {(slide, row, col) for slide in (0, 1) for row in range(7) for col in range(5) if (row + col) % 3}, 4
    )
    layer = StridedConvolution(5, 7, kernel_size=2, stride=2, bias=bias).double().train(mode)
    if bias:
        assert layer.bias is not None
        torch.nn.init.normal_(layer.bias)
    features = torch.randn(len(sites), 5, dtype=torch.float64, requires_grad=True)
    outputs, table, result = layer.convolve(features, sites)
    dense = torch.zeros(2, 5, *sites.extents, dtype=torch.float64)
    slide, row, col = sites.coords.long().unbind(1)
    dense[slide, :, row, col] = features.detach()
    dense.requires_grad_()
    expected = torch.nn.functional.conv2d(dense, layer.weight.permute(0, 3, 1, 2), layer.bias, stride=2)
    out_slide, out_row, out_col = outputs.coords.long().unbind(1)
    torch.testing.assert_close(result, expected[out_slide, :, out_row, out_col])
    assert torch.equal(table.table, strided_map(sites, 2, 2)[1].table)
    probe = torch.randn_like(result)
    (result * probe).sum().backward()
    (expected[out_slide, :, out_row, out_col] * probe).sum().backward()
    assert features.grad is not None
    assert dense.grad is not None
    torch.testing.assert_close(features.grad, dense.grad[slide, :, row, col])
