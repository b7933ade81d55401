"""Gradients of the exchange with the global tokens, in both forms."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from span_sparse.nn.global_attention import Projections, global_attention, projected_attention

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
import random_slides

COUNTS, WIDTH, HEADS = (3, 1), 8, 2
SITES = random_slides.sites_of(COUNTS)
PLACES = torch.tensor([[0, 0], [2, 1], [5, 3], [4, 4]])


def projections_of(flat: tuple[Tensor, ...]) -> Projections:
    """Linears whose weights and biases are the given tensors, so that gradients flow to them."""
    linears = []
    for weight, bias in zip(flat[0::2], flat[1::2], strict=True):
        linear = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        del linear.weight, linear.bias
        linear.weight, linear.bias = weight, bias  # pyright: ignore[reportAttributeAccessIssue]
        linears.append(linear)
    return Projections(*linears)


@pytest.mark.parametrize("num_globals", [1, 2])
@pytest.mark.parametrize("form", ["absorbed", "locals_unread", "projected", "rotary"])
def test_gradcheck(form: str, num_globals: int) -> None:
    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    local, glob = leaf(4, WIDTH), leaf(2, num_globals, WIDTH)
    flat = [leaf(*shape) for _ in range(3) for shape in ((WIDTH, WIDTH), (WIDTH,))]

    def outputs(local: Tensor, glob: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        projections = projections_of(flat)
        if form in ("absorbed", "locals_unread"):
            read = form == "absorbed"
            result = global_attention(local, glob, projections, HEADS, SITES, read_by_locals=read)
        else:
            places = PLACES if form == "rotary" else None
            result = projected_attention(local, glob, projections, HEADS, SITES, places)
        return tuple(part for part in result if part is not None)

    assert torch.autograd.gradcheck(outputs, (local, glob, *flat), fast_mode=True)


def test_extreme_scores_stay_finite_and_normalised() -> None:
    projections = Projections(*(nn.Linear(WIDTH, WIDTH).double() for _ in range(3)))
    local = (torch.randn(4, WIDTH).double() * 1e3).requires_grad_()
    glob = (torch.randn(2, 2, WIDTH).double() * 1e3).requires_grad_()
    exchange = global_attention(local, glob, projections, HEADS, SITES)
    assert exchange.for_locals is not None
    (exchange.for_locals.sum() + exchange.for_globals.sum()).backward()
    assert all(rows.grad is not None and rows.grad.isfinite().all() for rows in (local, glob))
    assert (exchange.weights.sum(dim=-1) <= 2 + 1e-9).all()  # at most one a slide
    assert (exchange.weights >= 0).all()
