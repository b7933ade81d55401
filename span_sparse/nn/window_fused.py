"""Window attention as one kernel: the operator `span_sparse::window_attention` and its gradient.

Reads q, k, v as one tensor, the product of one matrix multiplication. Kept for the backward pass are q, k, v, the
output and one log-sum-exp a token and head. Runs on CUDA, and on a CPU under Triton's interpreter
(`TRITON_INTERPRET=1`); elsewhere on a CPU the operator is computed plainly, for shapes, exports and counts.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from span_sparse.float32 import product_precision
from span_sparse.nn.execution import current_execution
from span_sparse.nn.positions import expanded_bias, slot_displacements
from span_sparse.nn.window_merged import merged_gradients
from span_sparse.sparse import KernelMap, SparseSites, WindowMaps
from span_sparse.sparse.operators import has_kernels, operator
from span_sparse.sparse.windows import SEEN_CELLS

MAX_WINDOW_SIZE = 4
MAX_HEAD_CHANNELS = 128
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_MIN_GROUP, _MAX_GROUPS = 8, 256
"""Cells whose bias gradients are summed by one program, at least, and groups of cells at most."""


def supports(dtype: torch.dtype, head_channels: int, window_size: int) -> bool:
    """Whether the kernels are written for such tokens."""
    return dtype in DTYPES and head_channels <= MAX_HEAD_CHANNELS and window_size <= MAX_WINDOW_SIZE


def _forward_fake(qkv: Tensor, bias: Tensor | None, tokens: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(qkv[:, 0]), qkv.new_empty(qkv.shape[0], qkv.shape[2], dtype=torch.float32)


def _backward_fake(grad: Tensor, qkv: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(qkv), grad.new_empty(0) if bias is None or not rest[-1] else torch.empty_like(bias)


@operator(
    "window_attention_backward",
    "(Tensor grad, Tensor qkv, Tensor? bias, Tensor tokens, Tensor seen, Tensor cells, Tensor output, "
    "Tensor log_sums, int window_size, str reach, bool train_bias) -> (Tensor, Tensor)",
    fake=_backward_fake,
    launches=4,
)
def _backward(
    grad: Tensor, qkv: Tensor, bias: Tensor | None, tokens: Tensor, seen: Tensor, cells: Tensor, output: Tensor,
    log_sums: Tensor, window_size: int, reach: str, train_bias: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of `qkv` and of the bias (empty unless `train_bias`)."""
    if not has_kernels(qkv):
        return _plain_backward(grad, qkv, bias, tokens, cells, output, log_sums, window_size, reach)
    from span_sparse.nn.window_kernels import key_gradient_kernel, query_gradient_kernel
    from span_sparse.sparse.launching import launch

    num_cells, num_heads, scale = len(cells), qkv.shape[2], qkv.shape[3] ** -0.5
    group = max(_MIN_GROUP, -(-num_cells // _MAX_GROUPS)) if train_bias else 1
    num_groups = -(-num_cells // group)
    dqkv, mean_grads = torch.empty_like(qkv), torch.empty_like(log_sums)
    slots = window_size**2
    parts = log_sums.new_empty((num_groups if train_bias else 0), 4, num_heads, slots * 7 * slots)
    shape, num_warps = _tile(qkv, bias, window_size, reach)
    pointer = _pointer(bias, qkv)
    launch(
        query_gradient_kernel, (num_groups, num_heads * (4 if train_bias else 1)),
        (grad, qkv, pointer, tokens, seen, cells, output, log_sums, dqkv, mean_grads, parts, scale, num_cells, group),
        shape | {"TRAIN_BIAS": train_bias}, num_warps=num_warps,
    )  # fmt: skip
    launch(
        key_gradient_kernel, (num_cells * num_heads,),
        (grad, qkv, pointer, tokens, seen, cells, log_sums, mean_grads, dqkv, scale, num_cells),
        shape, num_warps=num_warps,
    )  # fmt: skip
    return dqkv, _bias_gradient(parts, bias, window_size) if train_bias and bias is not None else grad.new_empty(0)


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, bias, tokens, seen, cells, ctx.window_size, ctx.reach = inputs
    ctx.save_for_backward(qkv, bias, tokens, seen, cells, *output)
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    qkv, bias, tokens, seen, cells, output, log_sums = ctx.saved_tensors
    train_bias = bias is not None and ctx.needs_input_grad[1]
    dqkv, dbias = _backward(
        grad.to(qkv.dtype).contiguous(), qkv, bias, tokens, seen, cells, output, log_sums, ctx.window_size, ctx.reach,
        train_bias,
    )  # fmt: skip
    return (dqkv, dbias if train_bias else None, None, None, None, None, None)


@operator(
    "window_attention",
    "(Tensor qkv, Tensor? bias, Tensor tokens, Tensor seen, Tensor cells, int window_size, str reach)"
    " -> (Tensor, Tensor)",
    fake=_forward_fake,
    launches=1,
    gradient=_gradient,
    context=_context,
)
def _forward(
    qkv: Tensor, bias: Tensor | None, tokens: Tensor, seen: Tensor, cells: Tensor, window_size: int, reach: str
) -> tuple[Tensor, Tensor]:
    """What every token reads, and the log-sum-exp of its scores `[tokens, heads]`."""
    if not has_kernels(qkv):
        return _plain_forward(qkv, bias, tokens, cells, window_size, reach)
    from span_sparse.nn.window_kernels import forward_kernel
    from span_sparse.sparse.launching import launch

    output = torch.empty_like(qkv[:, 0])
    log_sums = qkv.new_empty(qkv.shape[0], qkv.shape[2], dtype=torch.float32)
    shape, num_warps = _tile(qkv, bias, window_size, reach)
    grid = (len(cells) * qkv.shape[2],)
    arguments = (
        qkv, _pointer(bias, qkv), tokens, seen, cells, output, log_sums, qkv.shape[3] ** -0.5, len(cells)
    )  # fmt: skip
    launch(forward_kernel, grid, arguments, shape, num_warps=num_warps)
    return output, log_sums


def fused_attention(
    qkv: Float[Tensor, "tokens 3 heads head_channels"],
    bias: Float[Tensor, "heads side side"] | None,
    windows: WindowMaps,
    reach: str = "union",
) -> Float[Tensor, "tokens heads head_channels"]:
    """`window_attention` of queries, keys and values that lie side by side.

    Args:
        qkv: queries, not scaled, keys and values.
        bias: as in `window_attention`.
        windows: which tokens see each other.
        reach: which windows.
    """
    arguments = windows.tokens.table, windows.seen, windows.cells.coords, windows.window_size, reach
    return _forward(qkv.contiguous(), bias, *arguments)[0]


def _pointer(bias: Tensor | None, like: Tensor) -> Tensor:
    return like if bias is None else bias


def _tile(qkv: Tensor, bias: Tensor | None, window_size: int, reach: str) -> tuple[dict[str, Any], int]:
    """Compile-time sizes, and how the tile is spread: small ones run best in one warp (measured on an H200)."""
    import triton

    from span_sparse.nn.window_kernels import REACHES

    slots, (heads, channels) = window_size**2, qkv.shape[2:]
    keys, depth = (max(16, triton.next_power_of_2(size)) for size in (7 * slots, channels))
    shape = {
        "HEADS": heads, "CHANNELS": channels, "SIDE": window_size, "REACH": REACHES[reach],
        "HAS_BIAS": bias is not None, "BLOCK_Q": 16, "BLOCK_K": keys, "BLOCK_D": depth,
        "PRECISION": product_precision(),
    }  # fmt: skip
    elements = keys * depth * qkv.element_size()
    return shape, 1 if elements <= 2**13 else 2 if elements <= 2**14 else 4


def _bias_gradient(parts: Float[Tensor, "groups parities heads pairs"], bias: Tensor, window_size: int) -> Tensor:
    """Sums the parts of every displacement: a product with a matrix of zeros and ones, in a fixed order."""
    by_parity = parts.sum(dim=0).transpose(0, 1).flatten(1)  # (heads, parities · pairs)
    with torch.autocast(parts.device.type, enabled=False):
        return (by_parity @ _pair_displacements(window_size, parts.device)).view(bias.shape).to(bias.dtype)


@functools.cache
def _pair_displacements(window_size: int, device: torch.device) -> Float[Tensor, "pairs displacements"]:
    """Which displacement every (parity, own slot, seen column) has, one-hot."""
    axis = torch.arange(window_size)
    slots = torch.cartesian_prod(axis, axis)
    side = 4 * window_size - 1
    entries = []
    for parity in range(4):
        sign = torch.tensor([1 - 2 * (parity // 2), 1 - 2 * (parity % 2)])
        columns = (sign * torch.tensor(SEEN_CELLS) * window_size)[:, None] + slots  # (7, slots, 2)
        delta = columns.flatten(0, 1)[None] - slots[:, None] + 2 * window_size - 1
        entries.append(delta[..., 0] * side + delta[..., 1])
    return torch.nn.functional.one_hot(torch.stack(entries).flatten(), side**2).float().to(device)


def _plain_forward(
    qkv: Tensor, bias: Tensor | None, tokens: Tensor, cells: Tensor, window_size: int, reach: str
) -> tuple[Tensor, Tensor]:
    from span_sparse.nn.window_gathered import gathered_scores

    maps = WindowMaps(window_size, _sites(cells), KernelMap(tokens, len(qkv)))
    q, k, v = qkv.unbind(1)
    wide = None if bias is None else expanded_bias(bias.to(torch.promote_types(q.dtype, torch.float32)), window_size)
    scores, values = gathered_scores(q, k, v, wide, maps, reach)
    output = (scores.softmax(dim=-1).unsqueeze(-2).to(values.dtype) @ values).squeeze(-2)
    return output, scores.logsumexp(dim=-1).float()


def _plain_backward(
    grad: Tensor, qkv: Tensor, bias: Tensor | None, tokens: Tensor, cells: Tensor, output: Tensor, log_sums: Tensor,
    window_size: int, reach: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Written out, since inside an operator nothing is differentiated."""
    maps = WindowMaps(window_size, _sites(cells), KernelMap(tokens, len(qkv)))
    side = 4 * window_size - 1
    table = qkv.new_zeros(qkv.shape[2], side, side) if bias is None else bias
    by_slots = expanded_bias(table.to(torch.promote_types(table.dtype, torch.float32)), window_size)
    log_sum = torch.cat([log_sums.reshape(-1, 1), log_sums.new_full((1, 1), torch.inf)])
    settings = current_execution(qkv.device)
    q, k, v = qkv.unbind(1)
    *by_rows, by_pairs = merged_gradients(grad, q, k, v, by_slots, output, log_sum, maps, reach, settings)
    if bias is None:
        return torch.stack(by_rows, dim=1), grad.new_empty(0)
    entries = slot_displacements(window_size, bias.device).flatten()
    dbias = by_pairs.new_zeros(len(bias), side**2).index_add_(1, entries, by_pairs.flatten(1))
    return torch.stack(by_rows, dim=1), dbias.view_as(bias).to(bias.dtype)


def _sites(cells: Int32[Tensor, "cells 3"]) -> SparseSites:
    from span_sparse.sparse.sites import slide_offsets

    top = cells.amax(dim=0).tolist()
    return SparseSites(cells, top[0] + 1, (top[1] + 1, top[2] + 1), slide_offsets(cells, top[0] + 1))
