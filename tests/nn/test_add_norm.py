"""Residual sum with LayerNorm: plain and by kernels, against torch's own in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from span_sparse.nn.add_norm import add_norm, add_norm_
from span_sparse.sparse import operators
from span_sparse.sparse.operators import simulated_device

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interprets kernels; test_cuda.py runs them")
LIMITS = {torch.float32: 1e-5, torch.float16: 5e-3}


@pytest.fixture(params=["plain", "kernels"])
def _implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "plain":
        monkeypatch.setattr(operators, "_interpreted", lambda: False)


def norm_of(width: int) -> nn.LayerNorm:
    norm = nn.LayerNorm(width)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def with_gradients(rows: Tensor, branch: Tensor | None, norm: nn.LayerNorm, *, exact: bool) -> list[Tensor]:
    leaves = [part.clone().requires_grad_() for part in (rows, branch) if part is not None]
    if exact:
        total = leaves[0] if branch is None else leaves[0] + leaves[1]
        normed = nn.functional.layer_norm(total, total.shape[-1:], norm.weight, norm.bias, norm.eps)
    else:
        total, normed = add_norm(leaves[0], None if branch is None else leaves[1], norm)
    slope = torch.linspace(-1, 2, total.numel()).view(total.shape)
    summed = (normed * slope).sum() + (total * slope.flip(0)).sum()
    grads = torch.autograd.grad(summed, [*leaves, norm.weight, norm.bias])
    return [total.detach(), normed.detach(), *grads]


@pytest.mark.usefixtures("_implementation")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("has_branch", [True, False], ids=["branch", "alone"])
@pytest.mark.parametrize(("num_rows", "width"), [(5, 7), (1, 64), (67, 33)])
def test_equals_torch(num_rows: int, width: int, has_branch: bool, dtype: torch.dtype) -> None:
    rows = (3 * torch.randn(num_rows, width) + 2).to(dtype)
    branch = torch.randn(num_rows, width).to(dtype) if has_branch else None
    norm = norm_of(width)
    with simulated_device():
        ours = with_gradients(rows, branch, norm, exact=False)
    exact = with_gradients(rows.double(), None if branch is None else branch.double(), norm.double(), exact=True)
    assert ours[0].dtype == ours[1].dtype == dtype
    for position, (mine, theirs) in enumerate(zip(ours, exact, strict=True)):
        error = (mine.double() - theirs).abs().max() / theirs.abs().max()
        assert error < LIMITS[dtype], f"number {position} is off by {float(error):.1e}"


@pytest.mark.usefixtures("_implementation")
def test_only_one_of_both_results_is_used() -> None:
    rows, branch, norm = torch.randn(4, 6), torch.randn(4, 6), norm_of(6)
    for used in range(2):
        leaves = [part.clone().requires_grad_() for part in (rows, branch)]
        with simulated_device():
            grads = torch.autograd.grad(add_norm(*leaves, norm)[used].square().sum(), leaves)
        expected = [part.clone().requires_grad_() for part in (rows, branch)]
        total = expected[0] + expected[1]
        result = (total, norm(total))[used].square().sum()
        for mine, theirs in zip(grads, torch.autograd.grad(result, expected), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("_implementation")
def test_overwriting_gives_the_same() -> None:
    rows, branch, norm = torch.randn(5, 6), torch.randn(5, 6), norm_of(6)
    with simulated_device(), torch.no_grad():
        expected = add_norm(rows.clone(), branch.clone(), norm)
        found = add_norm_(rows, branch, norm)
    assert found[0] is rows
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_numbers_by_hand() -> None:
    """(1, 3) + (1, 3) has mean 4 and deviation 2."""
    norm = nn.LayerNorm(2, eps=1e-12)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 3.0]))
        norm.bias.copy_(torch.tensor([0.5, 0.0]))
    rows = torch.tensor([[1.0, 3.0]])
    with simulated_device():
        total, normed = add_norm(rows, rows, norm)
    assert total.tolist() == [[2.0, 6.0]]
    torch.testing.assert_close(normed, torch.tensor([[-1.5, 3.0]]))


def test_large_means_do_not_cancel() -> None:
    rows, norm = 1e4 + torch.randn(3, 64), nn.LayerNorm(64)
    with simulated_device():
        _, normed = add_norm(rows, None, norm)
    exact = nn.functional.layer_norm(rows.double(), (64,))
    assert (normed - exact).abs().max() < 1e-2


@pytest.mark.usefixtures("_implementation")
def test_under_autocast_products_get_its_dtype_and_the_sum_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "_interpreted", lambda: False)  # bfloat16 is wrong in the interpreter
    rows, norm = torch.randn(3, 8), norm_of(8)
    with simulated_device(), torch.autocast("cpu", torch.bfloat16):
        total, normed = add_norm(rows, rows, norm)
    assert (total.dtype, normed.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(normed.float(), norm(2 * rows), rtol=2e-2, atol=2e-2)
