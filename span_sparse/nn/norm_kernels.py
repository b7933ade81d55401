"""Triton kernels of the residual sum with LayerNorm: one pass over the rows each way, statistics in float32."""

# pyright: reportUnknownParameterType=none, reportMissingParameterType=none

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from span_sparse.sparse.launching import launch

_MAX_GROUPS = 264
"""Groups of rows whose gradients of the norm's weights are summed apart, at most."""


@triton.jit(do_not_specialize=["num_rows"])
def _forward(
    rows, branch, weight, bias, total, normed, statistics, num_rows, eps,
    width: tl.constexpr, HAS_BRANCH: tl.constexpr, KEEP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    valid = (row < num_rows)[:, None] & (channel < width)[None, :]
    places = row.to(tl.int64)[:, None] * width + channel[None, :]
    values = tl.load(rows + places, mask=valid, other=0.0).to(tl.float32)
    if HAS_BRANCH:
        values += tl.load(branch + places, mask=valid, other=0.0).to(tl.float32)
        stored = values.to(total.dtype.element_ty)
        tl.store(total + places, stored, mask=valid)
        values = stored.to(tl.float32)  # what is normalised is what is kept
    mean = tl.sum(values, 1) / width
    centred = tl.where(valid, values - mean[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / width + eps)
    scale = tl.load(weight + channel, mask=channel < width, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=channel < width, other=0.0).to(tl.float32)
    result = centred * inverse[:, None] * scale[None, :] + shift[None, :]
    tl.store(normed + places, result.to(normed.dtype.element_ty), mask=valid)
    if KEEP:
        tl.store(statistics + 2 * row, mean, mask=row < num_rows)
        tl.store(statistics + 2 * row + 1, inverse, mask=row < num_rows)


@triton.jit(do_not_specialize=["num_rows", "group"])
def _backward(
    grad_total, grad_normed, total, weight, statistics, grad_rows, parts, num_rows, group,
    width: tl.constexpr, HAS_TOTAL: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    channel = tl.arange(0, WIDTH)
    scale = tl.load(weight + channel, mask=channel < width, other=0.0).to(tl.float32)
    by_scale = tl.zeros([WIDTH], tl.float32)
    by_shift = tl.zeros([WIDTH], tl.float32)
    first = tl.program_id(0) * group
    end = min(first + group, num_rows)
    for start in range(first, end, ROWS):
        row = start + tl.arange(0, ROWS)
        valid = (row < end)[:, None] & (channel < width)[None, :]
        places = row.to(tl.int64)[:, None] * width + channel[None, :]
        values = tl.load(total + places, mask=valid, other=0.0).to(tl.float32)
        grad = tl.load(grad_normed + places, mask=valid, other=0.0).to(tl.float32)
        mean = tl.load(statistics + 2 * row, mask=row < end, other=0.0)
        inverse = tl.load(statistics + 2 * row + 1, mask=row < end, other=0.0)
        unit = tl.where(valid, (values - mean[:, None]) * inverse[:, None], 0.0)
        by_scale += tl.sum(grad * unit, 0)
        by_shift += tl.sum(grad, 0)
        scaled = grad * scale[None, :]
        centre = tl.sum(scaled, 1) / width
        slope = tl.sum(scaled * unit, 1) / width
        result = (scaled - centre[:, None] - unit * slope[:, None]) * inverse[:, None]
        if HAS_TOTAL:
            result += tl.load(grad_total + places, mask=valid, other=0.0).to(tl.float32)
        tl.store(grad_rows + places, result.to(grad_rows.dtype.element_ty), mask=valid)
    place = 2 * tl.program_id(0) * width + channel
    tl.store(parts + place, by_scale, mask=channel < width)
    tl.store(parts + place + width, by_shift, mask=channel < width)


def launch_forward(
    rows: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """`add_norm` of contiguous tensors; the sum (empty without a branch), the normed rows, mean and 1/σ of each."""
    num_rows, width = rows.shape
    total = rows.new_empty(0) if branch is None else torch.empty_like(rows)
    normed = torch.empty(num_rows, width, dtype=dtype, device=rows.device)
    statistics = torch.empty(num_rows, 2, dtype=torch.float32, device=rows.device)
    block = triton.next_power_of_2(width)
    height = max(1, 2048 // block)
    arguments = rows, rows if branch is None else branch, weight, bias, total, normed, statistics, num_rows, eps
    constants = {"width": width, "HAS_BRANCH": branch is not None, "KEEP": True, "ROWS": height, "WIDTH": block}
    launch(_forward, (triton.cdiv(num_rows, height),), arguments, constants)
    return total, normed, statistics


def launch_in_place(rows: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
    """The sum over `rows`, its norm over `branch`: a program has read its rows before it writes them."""
    num_rows, width = rows.shape
    block = triton.next_power_of_2(width)
    height = max(1, 2048 // block)
    constants = {"width": width, "HAS_BRANCH": True, "KEEP": False, "ROWS": height, "WIDTH": block}
    arguments = rows, branch, weight, bias, rows, branch, rows, num_rows, eps
    launch(_forward, (triton.cdiv(num_rows, height),), arguments, constants)


def launch_backward(
    grad_total: Tensor | None, grad_normed: Tensor, total: Tensor, weight: Tensor, statistics: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the rows, and of weight and bias `[2, width]`."""
    num_rows, width = total.shape
    block = triton.next_power_of_2(width)
    height = max(1, 2048 // block)
    group = height * triton.cdiv(num_rows, height * _MAX_GROUPS)
    num_groups = triton.cdiv(num_rows, group)
    grad_rows = torch.empty_like(total)
    parts = torch.empty(num_groups, 2, width, dtype=torch.float32, device=total.device)
    arguments = (
        grad_normed if grad_total is None else grad_total, grad_normed, total, weight, statistics, grad_rows, parts,
        num_rows, group,
    )  # fmt: skip
    constants = {"width": width, "HAS_TOTAL": grad_total is not None, "ROWS": height, "WIDTH": block}
    launch(_backward, (num_groups,), arguments, constants)
    return grad_rows, parts.sum(dim=0)
