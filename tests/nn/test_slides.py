"""Operations on the rows of each slide, in three implementations, against loops over slides and rows in float64.

loops      what a CPU takes
plain      the operators in torch
kernels    the operators' kernels, run by Triton's interpreter
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from span_sparse.nn import slides
from span_sparse.sparse import SparseSites, operators
from span_sparse.sparse.operators import simulated_device

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
import random_slides

COUNTS = (1, 70, 2, 9)
"""Rows of the slides: one alone, and more than the 64 of a kernel's block."""

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interprets kernels; test_cuda.py runs them")


@pytest.fixture(params=["loops", "plain", "kernels"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "plain":
        monkeypatch.setattr(operators, "_interpreted", lambda: False)
    with contextlib.nullcontext() if request.param == "loops" else simulated_device():
        yield request.param


def softmax_loop(scores: Tensor, others: Tensor, sites: SparseSites) -> tuple[Tensor, Tensor]:
    ours, theirs = [], []
    start = 0
    for slide, count in enumerate(sites.counts):
        powers = [scores[row].exp() for row in range(start, start + count)]
        further = [entry.exp() for entry in others[slide]]
        total = torch.stack(powers + further).sum(dim=0)
        ours += [power / total for power in powers]
        theirs.append(torch.stack(further) / total if further else others[slide])
        start += count
    return torch.stack(ours), torch.stack(theirs)


def attention_loop(rows: Tensor, others: Tensor, queries: Tensor, sites: SparseSites) -> tuple[Tensor, Tensor]:
    read, weights = [], []
    for slide, part in enumerate(rows.split(list(sites.counts))):
        keys = torch.cat([part, others[slide]])
        shares = torch.stack([(keys * query).sum(dim=1).softmax(dim=0) for query in queries[slide]])
        read.append(shares @ keys)
        weights.append(shares[:, : len(part)].T)
    return torch.stack(read), torch.cat(weights)


def per_row(rows: Tensor, sites: SparseSites, of_row: Callable[[Tensor, int], Tensor]) -> Tensor:
    return torch.stack([of_row(row, int(slide)) for row, slide in zip(rows, sites.coords[:, 0], strict=True)])


def per_slide(sites: SparseSites, of_rows: Callable[[slice], Tensor]) -> Tensor:
    bounds = [0, *torch.tensor(sites.counts).cumsum(0).tolist()]
    return torch.stack([of_rows(slice(*bounds[i : i + 2])) for i in range(sites.num_slides)])


LOOPS: dict[str, Callable[..., Tensor | tuple[Tensor, Tensor]]] = {
    "slide_matmul": lambda x, m, s: per_row(x, s, lambda row, slide: m[slide] @ row),
    "slide_scores": lambda x, m, s: per_row(x, s, lambda row, slide: m[slide] @ row),
    "slide_outer": lambda a, x, s: per_slide(s, lambda part: sum(map(torch.outer, a[part], x[part]))),
    "slide_softmax": softmax_loop,
    "slide_attention": attention_loop,
    "slide_mean": lambda x, s: per_slide(s, lambda part: x[part].sum(dim=0) / len(x[part])),
    "slide_max": lambda x, s: per_slide(s, lambda part: torch.stack([column.max() for column in x[part].T])),
    "to_rows": lambda v, s: per_row(s.coords, s, lambda row, slide: v[slide]),
}  # fmt: skip


def arguments_of(name: str, counts: tuple[int, ...], width: int = 5, columns: int = 3) -> list[Tensor]:
    """Random arguments of an operation."""
    num_rows, num_slides = sum(counts), len(counts)
    rows, of_slides = torch.randn(num_rows, width), torch.randn(num_slides, columns, width)
    return {
        "slide_matmul": [rows, of_slides],
        "slide_scores": [rows, of_slides],
        "slide_outer": [torch.randn(num_rows, columns), rows],
        "slide_softmax": [torch.randn(num_rows, columns), torch.randn(num_slides, 2, columns)],
        "slide_attention": [rows, torch.randn(num_slides, 2, width), of_slides],
        "slide_mean": [rows],
        "slide_max": [rows],
        "to_rows": [torch.randn(num_slides, width)],
    }[name]


def with_gradients(function: Callable[..., Tensor | tuple[Tensor, Tensor]], leaves: list[Tensor]) -> list[Tensor]:
    """Results, and the gradients of one sum of those that have any; of the attention only what is read has one."""
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    results = function(*leaves)
    results = [results] if isinstance(results, Tensor) else list(results)
    differentiable = results[:1] if len(results) == 2 and len(leaves) == 3 else results
    weighted = sum((one * torch.linspace(-1, 1, one.numel()).view(one.shape)).sum() for one in differentiable)
    assert isinstance(weighted, Tensor)
    return [one.detach() for one in results] + list(torch.autograd.grad(weighted, leaves))


def check(name: str, counts: tuple[int, ...], limit: float, leaves: list[Tensor]) -> None:
    sites = random_slides.sites_of(counts)
    ours = with_gradients(lambda *rows: getattr(slides, name)(*rows, sites), leaves)
    exact = with_gradients(lambda *rows: LOOPS[name](*rows, sites), [leaf.double() for leaf in leaves])
    for position, (mine, theirs) in enumerate(zip(ours, exact, strict=True)):
        assert mine.shape == theirs.shape
        error = (mine.double() - theirs).abs().max() / theirs.abs().max().clamp(min=1)
        assert error < limit, f"{name}, number {position}: off by {float(error):.1e}"


@pytest.mark.parametrize("name", LOOPS)
def test_equals_the_loop(name: str, implementation: str) -> None:
    check(name, COUNTS, 1e-5, arguments_of(name, COUNTS))


@pytest.mark.parametrize("name", LOOPS)
def test_one_slide_of_one_row(name: str, implementation: str) -> None:
    check(name, (1,), 1e-5, arguments_of(name, (1,)))


@pytest.mark.parametrize("name", ["slide_matmul", "slide_outer", "slide_attention"])
def test_wider_than_a_block_of_the_kernels(name: str, implementation: str) -> None:
    counts = (3, 2)
    leaves = arguments_of(name, counts, width=70, columns=66)
    check(name, counts, 1e-5, [leaf * 0.3 for leaf in leaves])


@pytest.mark.parametrize("name", ["slide_matmul", "slide_outer", "slide_attention"])
def test_half_precision_sums_in_float32(name: str, implementation: str) -> None:
    leaves = [leaf.half() for leaf in arguments_of(name, (5, 1))]
    check(name, (5, 1), 5e-3, leaves)
    sites = random_slides.sites_of((5, 1))
    result = getattr(slides, name)(*leaves, sites)
    dtype = (result if isinstance(result, Tensor) else result[0]).dtype
    assert dtype == (torch.float16 if name == "slide_matmul" else torch.float32)


def test_a_softmax_over_nothing_else(implementation: str) -> None:
    sites, scores = random_slides.sites_of((4, 1)), torch.randn(5, 2)
    weights, further = slides.slide_softmax(scores, scores.new_empty(2, 0, 2), sites)
    torch.testing.assert_close(weights, torch.cat([scores[:4].softmax(dim=0), torch.ones(1, 2)]))
    assert further.shape == (2, 0, 2)


def test_large_scores_do_not_overflow(implementation: str) -> None:
    sites = random_slides.sites_of((3, 2))
    scores = torch.tensor([[900.0], [899.0], [-900.0], [-2000.0], [-2000.0]])
    weights, _ = slides.slide_softmax(scores, scores.new_empty(2, 0, 1), sites)
    high = torch.sigmoid(torch.tensor(1.0))
    torch.testing.assert_close(weights.flatten(), torch.tensor([high, 1 - high, 0, 0.5, 0.5]))
    ones = torch.ones(2, 1, 1)
    read, shares = slides.slide_attention(scores, -scores.new_ones(2, 1, 1), ones, sites)
    expected = 900 * high + 899 * (1 - high)
    # a weight is exp(score − log-sum-exp), and float32 knows 900 up to 6e-5
    torch.testing.assert_close(read.flatten(), torch.tensor([expected, -1.0]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shares.flatten(), torch.tensor([high, 1 - high, 0, 0, 0]), rtol=1e-4, atol=1e-5)


def test_a_row_of_another_slide_is_noticed(implementation: str) -> None:
    """The comparison above fails where one row is counted for its neighbour's slide."""
    leaves = arguments_of("slide_outer", (3, 4))
    sites, wrong = random_slides.sites_of((3, 4)), random_slides.sites_of((4, 3))
    ours = slides.slide_outer(*leaves, wrong)
    expected = LOOPS["slide_outer"](*leaves, sites)
    assert isinstance(expected, Tensor)
    assert (ours - expected).abs().max() > 0.05


@pytest.mark.parametrize("name", ["slide_matmul", "slide_outer", "slide_softmax", "slide_mean", "slide_max", "to_rows"])
def test_gradcheck(name: str) -> None:
    sites = random_slides.sites_of((1, 3))
    leaves = [leaf.double().requires_grad_() for leaf in arguments_of(name, (1, 3), width=2, columns=2)]
    with simulated_device():  # no kernel takes float64
        assert torch.autograd.gradcheck(lambda *rows: getattr(slides, name)(*rows, sites), leaves)


def test_two_runs_give_the_same_bits(implementation: str) -> None:
    leaves = arguments_of("slide_attention", COUNTS)
    sites = random_slides.sites_of(COUNTS)
    first, second = (with_gradients(lambda *rows: slides.slide_attention(*rows, sites), leaves) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
