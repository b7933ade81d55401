"""How does every token attend to its windows: the regular one, the shifted one, or both under one softmax?

    A_i = Σ_{j ∈ N(i)} softmax_j(q_i·k_j/√d + B(p_j − p_i)) v_j,   N(i) = regular(i) ∪ shifted(i)

(SPAN's context-aware refinement, mode `long`; arXiv 2406.09333 v3, section on CAR.) Each key counts once: the two
windows share exactly the token's own `w × w` cell, so the shifted pass leaves that cell out. The two passes are dense
attentions over padded windows, computed apart and merged by their log-sum-exp, which is exact:

    A_i = (e^{l1} o1 + e^{l2} o2) / (e^{l1} + e^{l2})

Gathering the up to 7·w² keys of every cell would copy each key seven times; an edge list with a scatter softmax needs
`[tokens · keys]` memory. Here every key is copied once a pass, in chunks of windows, and the backward pass recomputes
the scores, so the extra memory beyond q, k, v and the output is one chunk.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from span_sparse.sparse import KernelMap, WindowMaps

CHUNK_ELEMENTS = 2**21
"""Scores computed at once (windows · heads · slots²): 8 MB in float32, so that a chunk stays in cache."""


Reach = Literal["union", "regular", "shifted"]
"""Which windows a token attends to: both, or one of them (each contains the token itself)."""


def window_attention(
    q: Float[Tensor, "tokens heads head_channels"],
    k: Float[Tensor, "tokens heads head_channels"],
    v: Float[Tensor, "tokens heads head_channels"],
    bias: Float[Tensor, "heads slots slots"] | None,
    windows: WindowMaps,
    reach: Reach = "union",
) -> Float[Tensor, "tokens heads head_channels"]:
    """Attention inside windows, one softmax over all keys.

    Args:
        q: queries, not scaled.
        k: keys.
        v: values.
        bias: added to the scaled scores, `[head, query slot, key slot]`, slots ordered as in `WindowMaps`; the same
            table serves both windows because it depends on the displacement alone.
        windows: tokens of every window.
        reach: which windows.
    """
    if bias is None:
        slots = windows.regular.num_taps
        bias = q.new_zeros(q.shape[1], slots, slots)
    return _WindowAttention.apply(q, k, v, bias, windows, reach)  # pyright: ignore[reportReturnType]


def own_cell_mask(window_size: int, device: torch.device) -> Bool[Tensor, "slots slots"]:
    """Pairs of window slots that lie in the same cell."""
    cell = torch.arange(4 * window_size**2, device=device) // window_size**2
    return cell[:, None] == cell[None, :]


def _passes(bias: Tensor, windows: WindowMaps, reach: Reach) -> list[tuple[KernelMap, Tensor]]:
    """The window sets with their bias; in a union, the shifted one excludes the own cell."""
    if reach == "regular":
        return [(windows.regular, bias)]
    if reach == "shifted":
        return [(windows.shifted, bias)]
    excluded = own_cell_mask(windows.window_size, bias.device)
    return [(windows.regular, bias), (windows.shifted, bias.masked_fill(excluded, -torch.inf))]


def _chunks(table: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    return table.split(max(1, CHUNK_ELEMENTS // (num_heads * table.shape[1] ** 2)))


def _gather(rows: Tensor, table: Tensor) -> Tensor:
    """`[tokens, heads, ...]` → `[windows, heads, slots, ...]`; absent slots read row 0 and are masked by the caller."""
    return rows[table.clamp(min=0)].transpose(1, 2)


class _WindowAttention(torch.autograd.Function):
    """One pass a window set, merged by log-sum-exp; the backward pass uses the merged softmax in both."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, windows: WindowMaps, reach: Reach) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        scale = q.shape[-1] ** -0.5
        outputs, log_sums = [], []
        for kernel_map, pass_bias in _passes(bias, windows, reach):
            output, log_sum = torch.empty_like(q), q.new_empty(q.shape[:2])
            for table in _chunks(kernel_map.table, q.shape[1]):
                present = table >= 0
                scores = _scores(_gather(q, table) * scale, _gather(k, table), pass_bias, present)
                top = scores.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(q.dtype).min)
                weights = (scores - top).exp_()
                total = weights.sum(dim=-1, keepdim=True)
                values = (weights @ _gather(v, table)) / total.clamp(min=torch.finfo(q.dtype).tiny)
                rows = table[present]
                output[rows] = values.transpose(1, 2)[present]
                log_sum[rows] = (top + total.log()).squeeze(-1).transpose(1, 2)[present]
            outputs.append(output)
            log_sums.append(log_sum)
        output, merged = outputs[0], log_sums[0]
        if len(outputs) == 2:
            merged = torch.logaddexp(*log_sums)
            first, second = ((log_sum - merged).exp_().unsqueeze(-1) for log_sum in log_sums)
            output = output.mul_(first).addcmul_(outputs[1], second)
        ctx.save_for_backward(q, k, v, bias, output, merged)
        ctx.windows, ctx.reach = windows, reach
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, bias, output, log_sum = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        mean_grad = (grad * output).sum(dim=-1)  # (tokens, heads): Σ_j P_ij dP_ij
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        dbias = torch.zeros_like(bias)
        for kernel_map, pass_bias in _passes(bias, ctx.windows, ctx.reach):
            for table in _chunks(kernel_map.table, q.shape[1]):
                present = table >= 0
                rows = table[present]
                queries, keys = _gather(q, table) * scale, _gather(k, table)
                weights = _scores(queries, keys, pass_bias, present)
                weights = weights.sub_(_gather(log_sum, table).unsqueeze(-1)).exp_()
                weights.masked_fill_(~present[:, None, :, None], 0)  # queries that are not there
                grads = _gather(grad, table)
                dv[rows] += (weights.transpose(-1, -2) @ grads).transpose(1, 2)[present]
                dscores = grads @ _gather(v, table).transpose(-1, -2)
                dscores = dscores.sub_(_gather(mean_grad, table).unsqueeze(-1)).mul_(weights)
                dbias += dscores.sum(dim=0)
                dq[rows] += (dscores @ keys).transpose(1, 2)[present] * scale
                dk[rows] += (dscores.transpose(-1, -2) @ queries).transpose(1, 2)[present]
        return dq, dk, dv, dbias, None, None


def _scores(queries: Tensor, keys: Tensor, bias: Tensor, present: Tensor) -> Tensor:
    """`[windows, heads, query slots, key slots]`, minus infinity where a key is absent or excluded."""
    absent = torch.zeros(present.shape, dtype=queries.dtype, device=queries.device).masked_fill_(~present, -torch.inf)
    return (queries @ keys.transpose(-1, -2)).add_(bias).add_(absent[:, None, None, :])


def gathered_attention(
    q: Float[Tensor, "tokens heads head_channels"],
    k: Float[Tensor, "tokens heads head_channels"],
    v: Float[Tensor, "tokens heads head_channels"],
    bias: Float[Tensor, "heads slots slots"] | None,
    windows: WindowMaps,
    reach: Reach = "union",
) -> Float[Tensor, "tokens heads head_channels"]:
    """The same attention, plainly: the keys of both windows laid side by side, one softmax, autograd.

    Simple and differentiable any number of times; costs `[tokens, heads, 2 · slots, head_channels]` memory.
    """
    scale = q.shape[-1] ** -0.5
    slots = windows.regular.num_taps
    bias = q.new_zeros(q.shape[1], slots, slots) if bias is None else bias
    scores, values = [], []
    for kernel_map, pass_bias in _passes(bias, windows, reach):
        table, slot = kernel_map.table, kernel_map.slots_of_inputs()
        present = table >= 0
        by_window = _scores(_gather(q, table) * scale, _gather(k, table), pass_bias, present)
        scores.append(by_window.transpose(1, 2).flatten(0, 1)[slot])  # (tokens, heads, slots)
        window = slot // slots
        values.append(_gather(v, table)[window])  # (tokens, heads, slots, head_channels)
    weights = torch.cat(scores, dim=-1).softmax(dim=-1)
    return (weights.unsqueeze(-2) @ torch.cat(values, dim=-2)).squeeze(-2)
