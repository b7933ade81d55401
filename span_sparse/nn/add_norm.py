"""Residual sum and LayerNorm in one pass: the operators `span_sparse::add_norm`.

    s = x + b,    n = LayerNorm(s) · weight + bias

LayerNorm under torch's autocast reads and writes float32 and its result is rounded again by the product that follows;
here the statistics are float32 and the rows keep the dtype of the products. Kept for the backward pass are `s` and two
numbers a row.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from span_sparse.sparse.operators import has_kernels, operator


def compute_dtype(rows: Tensor) -> torch.dtype:
    """The dtype in which a Linear would give its result: autocast's, else the rows' own."""
    device = rows.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype


def _plain(rows: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = rows if branch is None else (rows + branch).to(rows.dtype)
    wide = total.to(torch.promote_types(total.dtype, torch.float32))
    return total, F.layer_norm(wide, wide.shape[-1:], weight.to(wide.dtype), bias.to(wide.dtype), eps)


def _fake(
    rows: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    total = rows.new_empty(0) if branch is None else torch.empty_like(rows)
    return total, torch.empty_like(rows, dtype=dtype), rows.new_empty(rows.shape[0], 2, dtype=torch.float32)


def _backward_fake(grad_total: Tensor | None, grad: Tensor, total: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(total), total.new_empty(2, total.shape[1], dtype=torch.float32)


@operator(
    "add_norm_backward",
    "(Tensor? grad_total, Tensor grad_normed, Tensor total, Tensor weight, Tensor statistics) -> (Tensor, Tensor)",
    fake=_backward_fake,
    launches=2,
)
def _backward(
    grad_total: Tensor | None, grad_normed: Tensor, total: Tensor, weight: Tensor, statistics: Tensor
) -> tuple[Tensor, Tensor]:
    if has_kernels(total):
        from span_sparse.nn.norm_kernels import launch_backward

        return launch_backward(grad_total, grad_normed, total, weight, statistics)
    mean, inverse = statistics[:, :1], statistics[:, 1:]
    unit, grad = (total.float() - mean) * inverse, grad_normed.float()
    scaled = grad * weight.float()
    rows = (scaled - scaled.mean(1, keepdim=True) - unit * (scaled * unit).mean(1, keepdim=True)) * inverse
    rows = rows if grad_total is None else rows + grad_total.float()
    return rows.to(total.dtype), torch.stack([(grad * unit).sum(0), grad.sum(0)])


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    rows, branch, weight, bias, _, _ = inputs
    total, _, statistics = output
    ctx.has_branch, ctx.bias_dtype = branch is not None, bias.dtype
    ctx.branch_dtype = None if branch is None else branch.dtype
    ctx.save_for_backward(total if ctx.has_branch else rows, weight, statistics)
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad_total: Tensor | None, grad_normed: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    total, weight, statistics = ctx.saved_tensors
    if not ctx.has_branch:
        grad_total = None
    if grad_normed is None:
        rows, parts = grad_total, None
    else:
        grad_total = None if grad_total is None else grad_total.contiguous()
        rows, parts = _backward(grad_total, grad_normed.contiguous(), total, weight, statistics)
    branch = rows.to(ctx.branch_dtype) if ctx.has_branch and rows is not None else None
    by_weight, by_bias = (None, None) if parts is None else (parts[0].to(weight.dtype), parts[1].to(ctx.bias_dtype))
    return rows, branch, by_weight, by_bias, None, None


@operator(
    "add_norm",
    "(Tensor rows, Tensor? branch, Tensor weight, Tensor bias, float eps, ScalarType dtype)"
    " -> (Tensor, Tensor, Tensor)",
    fake=_fake,
    launches=1,
    gradient=_gradient,
    context=_context,
)
def _forward(
    rows: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    if has_kernels(rows):
        from span_sparse.nn.norm_kernels import launch_forward

        branch = None if branch is None else branch.contiguous()
        return launch_forward(rows.contiguous(), branch, weight, bias, eps, dtype)
    total, normed = _plain(rows, branch, weight, bias, eps)
    wide = total.float()
    inverse = (wide.var(dim=1, correction=0, keepdim=True) + eps).rsqrt()
    statistics = torch.cat([wide.mean(dim=1, keepdim=True), inverse], dim=1)
    return rows.new_empty(0) if branch is None else total, normed.to(dtype), statistics


def add_norm(
    rows: Float[Tensor, "tokens channels"], branch: Float[Tensor, "tokens channels"] | None, norm: nn.LayerNorm
) -> tuple[Float[Tensor, "tokens channels"], Float[Tensor, "tokens channels"]]:
    """`rows + branch` in the rows' dtype, and its LayerNorm in the dtype of products.

    Args:
        rows: of the residual stream.
        branch: what is added; None adds nothing.
        norm: the LayerNorm, with weight and bias.
    """
    total, normed, _ = _forward(rows, branch, norm.weight, norm.bias, norm.eps, compute_dtype(rows))
    return (rows if branch is None else total), normed


def _in_place_fake(rows: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
    return None


@operator(
    "add_norm_",
    "(Tensor(a!) rows, Tensor(b!) branch, Tensor weight, Tensor bias, float eps) -> ()",
    fake=_in_place_fake,
    launches=1,
)
def _overwrite(rows: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
    if has_kernels(rows):
        from span_sparse.nn.norm_kernels import launch_in_place

        launch_in_place(rows, branch, weight, bias, eps)
        return
    total, normed = _plain(rows, branch, weight, bias, eps)
    rows.copy_(total)
    branch.copy_(normed)


def add_norm_(
    rows: Float[Tensor, "tokens channels"], branch: Float[Tensor, "tokens channels"], norm: nn.LayerNorm
) -> tuple[Float[Tensor, "tokens channels"], Float[Tensor, "tokens channels"]]:
    """`add_norm` that writes the sum over `rows` and its LayerNorm over `branch`; without gradients."""
    if branch.dtype != compute_dtype(rows) or not (rows.is_contiguous() and branch.is_contiguous()):
        return add_norm(rows, branch, norm)
    _overwrite(rows, branch, norm.weight, norm.bias, norm.eps)
    return rows, branch
