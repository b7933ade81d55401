"""Window and global attention against dense loops, and their gradients."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from span_sparse.nn.execution import execution
from span_sparse.nn.global_attention import Projections, global_attention, projected_attention
from span_sparse.nn.global_tokens import GlobalTokens
from span_sparse.nn.positions import RelativePositionBias
from span_sparse.nn.transformer import LayerSettings, TransformerLayer
from span_sparse.nn.window_attention import Reach, window_attention
from span_sparse.sparse import Level, SparseSites, make_sites, window_maps

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
import dense_span
import random_slides

IMPLEMENTATIONS = [functools.partial(window_attention, implementation=name) for name in ("merged", "gathered")]
gathered_attention = functools.partial(window_attention, implementation="gathered")


def slide_sites(num_patches: int, side: int) -> SparseSites:
    cells = torch.randperm(side * side)[:num_patches]
    coords = torch.stack([torch.zeros_like(cells), cells // side, cells % side], dim=1).int()
    return make_sites(coords, 1)[0]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("window_size", "num_patches", "side"), [(1, 40, 9), (2, 1, 5), (3, 120, 14), (4, 60, 31)])
def test_equals_the_dense_definition(implementation, window_size: int, num_patches: int, side: int) -> None:
    sites = slide_sites(num_patches, side)
    maps = window_maps(sites, window_size)
    positions = RelativePositionBias(2, window_size, std=1.0).double()
    q, k, v = (torch.randn(num_patches, 2, 5, dtype=torch.float64, requires_grad=True) for _ in range(3))
    ours = implementation(q, k, v, positions(torch.float64), maps)
    expected = dense_span.union_attention(q, k, v, sites.coords[:, 1:].long(), positions.table, window_size)
    torch.testing.assert_close(ours, expected)
    probe = torch.randn_like(ours)
    leaves = [q, k, v, positions.table]
    for mine, theirs in zip(
        torch.autograd.grad((ours * probe).sum(), leaves),
        torch.autograd.grad((expected * probe).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradcheck(implementation) -> None:
    sites = slide_sites(11, 7)
    maps = window_maps(sites, 2)
    q, k, v = (torch.randn(11, 1, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    bias = torch.randn(1, 7, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *rows: implementation(*rows, maps), (q, k, v, bias))


def test_chunks_do_not_change_the_result() -> None:
    maps = window_maps(slide_sites(90, 14), 3)
    q, k, v = (torch.randn(90, 2, 4) for _ in range(3))
    whole = window_attention(q, k, v, None, maps)
    with execution(score_elements=1):
        torch.testing.assert_close(window_attention(q, k, v, None, maps), whole)


def test_absent_slots_read_nothing_of_another_slide() -> None:
    coords = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 2, 2], [1, 2, 3], [1, 9, 9]], dtype=torch.int32)
    maps = window_maps(make_sites(coords, 2)[0], 2)
    q, k, v = (torch.randn(5, 1, 4) for _ in range(3))
    alone = window_attention(q, k, v, None, maps)[2:]
    for rows in (q, k, v):
        rows[:2] = torch.nan
    torch.testing.assert_close(window_attention(q, k, v, None, maps)[2:], alone)


@pytest.mark.parametrize("reach", ["union", "regular", "shifted"])
def test_half_precision_keeps_its_statistics_in_float32(reach: Reach) -> None:
    maps = window_maps(slide_sites(90, 14), 3)
    leaves = [torch.randn(90, 2, 8).bfloat16().requires_grad_() for _ in range(3)]
    bias = torch.randn(2, 11, 11)
    ours = window_attention(*leaves, bias, maps, reach)
    exact = gathered_attention(*(rows.double() for rows in leaves), bias.double(), maps, reach)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), exact, rtol=2e-2, atol=2e-2)
    probe = torch.randn(90, 2, 8)
    mine = torch.autograd.grad((ours * probe).sum(), leaves)
    theirs = torch.autograd.grad((exact * probe).sum(), leaves)
    for ours_grad, exact_grad in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours_grad.float(), exact_grad.float(), rtol=5e-2, atol=1e-1)


def test_rows_in_blocks_give_the_same_layer() -> None:
    settings = LayerSettings("long", "rpb", 4, 2, 2.0, nn.ReLU, 0.0, 0.0, 0.02, False)
    layer = TransformerLayer(8, settings)
    sites = slide_sites(30, 9)
    level = Level(sites, window_maps(sites, 2), None)
    rows, tokens = torch.randn(30, 8), torch.randn(1, 2, 8)
    whole = layer(rows, tokens, level)
    with torch.no_grad(), execution(rows_at_once=7):
        blocks = layer(rows, tokens, level)
    for expected, found in zip(whole, blocks, strict=True):
        torch.testing.assert_close(found, expected)


def test_large_scores_do_not_overflow() -> None:
    maps = window_maps(slide_sites(50, 9), 2)
    q, k, v = (torch.randn(50, 1, 4, requires_grad=True) for _ in range(3))
    output = window_attention(q * 1e3, k * 1e3, v, None, maps)
    output.sum().backward()
    torch.testing.assert_close(output, gathered_attention(q * 1e3, k * 1e3, v, None, maps), rtol=1e-4, atol=1e-4)
    assert all(torch.isfinite(rows.grad).all() for rows in (q, k, v) if rows.grad is not None)


@pytest.mark.parametrize("num_globals", [1, 3])
def test_global_exchange_equals_full_attention(num_globals: int) -> None:
    counts, channels, heads = (7, 1, 4), 6, 2
    projections = Projections(*(nn.Linear(channels, channels).double() for _ in range(3)))
    sites = random_slides.sites_of(counts)
    local = torch.randn(sum(counts), channels, dtype=torch.float64)
    glob = torch.randn(3, num_globals, channels, dtype=torch.float64)
    from_globals, for_globals, weights = global_attention(local, glob, projections, heads, sites)
    assert from_globals is not None
    if num_globals == 1:  # the same for all locals of a slide
        from_globals = from_globals.repeat_interleave(torch.tensor(counts), dim=0)
    plain = projected_attention(local, glob, projections, heads, sites, None)
    torch.testing.assert_close(plain.for_locals, from_globals)
    torch.testing.assert_close(plain.for_globals, for_globals)
    torch.testing.assert_close(plain.weights, weights)
    start = 0
    for slide, count in enumerate(counts):
        rows = torch.cat([local[start : start + count], glob[slide]])
        q, k, v = (linear(rows).unflatten(1, (heads, -1)) for linear in projections)
        read = dense_span.full_attention(q[:count], k[count:], v[count:]).flatten(1)
        write = dense_span.full_attention(q[count:], k, v).flatten(1)
        torch.testing.assert_close(from_globals[start : start + count], read)
        torch.testing.assert_close(for_globals[slide], write)
        start += count
    nothing, same, _ = global_attention(local, glob, projections, heads, sites, read_by_locals=False)
    assert nothing is None
    torch.testing.assert_close(same, for_globals)


def test_global_tokens_start_from_what_they_say() -> None:
    features = torch.tensor([[1.0, 5.0], [3.0, 1.0], [7.0, 7.0]])
    tokens = GlobalTokens(2, ["max", "mean", "std", "fix2", "lrn0.5"])
    result = tokens(features, random_slides.sites_of((2, 1)))
    assert result.shape == (2, 5, 2)
    assert result[0, :2].tolist() == [[3, 5], [2, 3]]
    torch.testing.assert_close(result[0, 2], torch.tensor([2**0.5, 8**0.5]))
    assert result[1, :3].tolist() == [[7, 7], [7, 7], [0, 0]]
    assert torch.equal(result[0, 3:], result[1, 3:])
    assert len(list(tokens.parameters())) == 1
    assert torch.equal(result[0, 3], tokens.state_dict()["fixed"][0])


@pytest.mark.parametrize("operators", [False, True])
def test_statistics_equal_those_of_every_slide(operators: bool) -> None:
    """Values and gradients, with columns whose largest entry is there twice: the first one gets the gradient."""
    counts = (5, 1, 7)
    features = torch.randint(-3, 1, (sum(counts), 6)).double().requires_grad_()
    slides = features.split(counts)
    expected = [
        torch.stack([slide.max(dim=0).values for slide in slides]),
        torch.stack([slide.mean(dim=0) for slide in slides]),
        torch.stack([slide.std(dim=0) if len(slide) > 1 else 0 * slide[0] for slide in slides]),
    ]
    assert any((slide == slide.amax(dim=0)).sum(dim=0).max() > 1 for slide in slides)
    with execution(operators=operators):
        result = GlobalTokens(6, ["max", "mean", "std"])(features, random_slides.sites_of(counts))
    weights = torch.randn(result.shape, dtype=torch.float64)
    torch.testing.assert_close(result, torch.stack(expected, dim=1), rtol=1e-12, atol=1e-12)
    ours, theirs = (
        torch.autograd.grad((tokens * weights).sum(), features)[0] for tokens in (result, torch.stack(expected, dim=1))
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_choice_follows_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["span_sparse.nn.window_attention"]
    used: list[int] = []
    plain = module.gathered_attention
    monkeypatch.setattr(module, "gathered_attention", lambda q, *rest: used.append(len(q)) or plain(q, *rest))
    for num_patches in (4, 200):
        q, k, v = (torch.randn(num_patches, 2, 4) for _ in range(3))
        maps = window_maps(slide_sites(num_patches, 20), 3)
        merged = window_attention(q, k, v, None, maps, implementation="merged")
        torch.testing.assert_close(window_attention(q, k, v, None, maps), merged)
    assert used == [4]
