"""Window attention in two passes over padded windows, merged by their log-sum-exp.

    A_i = (e^{l1} o1 + e^{l2} o2) / (e^{l1} + e^{l2})

is exact where the shifted pass leaves out the token's own cell. Gathering the up to 7·w² keys of every cell would copy
each key seven times; an edge list with a scatter softmax needs `[tokens · keys]` memory. Here every key is copied once
a pass, in chunks of windows that stay in a CPU's cache, and the backward pass recomputes the scores, so the memory
beyond q, k, v and the outputs of the passes is one chunk.

Tokens are read and written as rows `[tokens · heads, head_channels]`: one `index_select` then brings a chunk into the
layout of batched matrix products, without a transposition. Absent slots read another token of their window (never of
another slide), are excluded as keys by a bias of minus infinity, and write to a spare row after the last one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from span_sparse.nn.execution import Execution, current_execution
from span_sparse.nn.window_gathered import passes
from span_sparse.sparse import KernelMap, WindowMaps


def merged_attention(
    q: Float[Tensor, "tokens heads head_channels"],
    k: Float[Tensor, "tokens heads head_channels"],
    v: Float[Tensor, "tokens heads head_channels"],
    bias: Float[Tensor, "heads slots slots"],
    windows: WindowMaps,
    reach: str = "union",
) -> Float[Tensor, "tokens heads head_channels"]:
    """`window_attention` with a backward pass of its own; arguments as in `gathered_attention`."""
    return _WindowAttention.apply(q, k, v, bias, windows, reach, current_execution(q.device))  # pyright: ignore[reportReturnType]


class _Chunk(NamedTuple):
    """Some windows of a pass.

    Attributes:
        present: which slots hold a token.
        reads: row of every window, head and slot; absent slots name a token of their window.
        writes: the same, but absent slots name the spare row.
    """

    present: Bool[Tensor, "windows slots"]
    reads: Int64[Tensor, " rows"]
    writes: Int64[Tensor, " rows"]


def _chunks(kernel_map: KernelMap, num_heads: int, score_elements: int) -> Iterator[_Chunk]:
    table, spare = kernel_map.table.long(), kernel_map.num_inputs * num_heads
    heads = torch.arange(num_heads, device=table.device).unsqueeze(1)
    for part in table.split(max(1, score_elements // (num_heads * table.shape[1] ** 2))):
        present = part >= 0
        tokens = torch.where(present, part, part.amax(dim=1, keepdim=True))
        reads = tokens.unsqueeze(1) * num_heads + heads  # (windows, heads, slots)
        writes = torch.where(present.unsqueeze(1), reads, spare)
        yield _Chunk(present, reads.flatten(), writes.flatten())


def _rows(tokens: Tensor) -> Tensor:
    return tokens.contiguous().flatten(0, 1)  # (tokens · heads, head_channels)


def _gather(rows: Tensor, index: Tensor, slots: int) -> Tensor:
    return rows.index_select(0, index).unflatten(0, (-1, slots))  # (windows · heads, slots, ...)


def _with_spare(rows: Tensor) -> Tensor:
    """Uninitialised rows like `rows`, and the spare one."""
    return rows.new_empty(len(rows) + 1, *rows.shape[1:])


def _scores(queries: Tensor, keys: Tensor, bias: Tensor, present: Tensor) -> Tensor:
    """`[windows · heads, query slots, key slots]`, of `bias`'s dtype, minus infinity for absent or excluded keys."""
    absent = bias.new_zeros(present.shape).masked_fill_(~present, -torch.inf)
    scores = (bias + absent[:, None, None, :]).flatten(0, 1)
    scale = queries.shape[-1] ** -0.5
    if scores.dtype == queries.dtype:
        return scores.baddbmm_(queries, keys.mT, alpha=scale)
    return scores.add_(queries @ keys.mT, alpha=scale)


def _attend(
    rows: tuple[Tensor, Tensor, Tensor], window_sets: list[tuple[KernelMap, Tensor]], score_elements: int
) -> tuple[Tensor, Tensor]:
    """What every row reads in all passes, and the log-sum-exp of its scores, both with a spare row."""
    q, k, v = rows
    bias = window_sets[0][1]
    num_heads, slots = bias.shape[:2]
    limits = torch.finfo(bias.dtype)
    output, log_sums = _with_spare(q), _with_spare(q[:, :1].to(bias.dtype))
    for number, (kernel_map, pass_bias) in enumerate(window_sets):
        for present, reads, writes in _chunks(kernel_map, num_heads, score_elements):
            weights = _scores(_gather(q, reads, slots), _gather(k, reads, slots), pass_bias, present)
            top = weights.amax(dim=-1, keepdim=True).clamp_(min=limits.min)
            weights = weights.sub_(top).exp_()
            total = weights.sum(dim=-1, keepdim=True)
            read = (weights.to(v.dtype) @ _gather(v, reads, slots)).div_(total.clamp(min=limits.tiny))
            log_sum = top.add_(total.log_())
            if number:  # merge with the passes before
                before = _gather(log_sums, writes, slots)
                merged = torch.logaddexp(before, log_sum)
                earlier = _gather(output, writes, slots).mul_((before - merged).exp_())
                read = earlier.addcmul_(read, (log_sum - merged).exp_().to(read.dtype))
                log_sum = merged
            output.index_copy_(0, writes, read.flatten(0, 1))
            log_sums.index_copy_(0, writes, log_sum.flatten(0, 1))
    return output, log_sums


class _WindowAttention(torch.autograd.Function):
    """One pass a window set, merged by log-sum-exp; the backward pass uses the merged softmax in both."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, windows: WindowMaps, reach: str,
        execution: Execution,
    ) -> Tensor:  # fmt: skip
        rows = _rows(q), _rows(k), _rows(v)
        output, log_sum = _attend(rows, passes(_wide(bias, q), windows, reach), execution.score_elements)
        log_sum[-1] = torch.inf  # absent queries: no weights in the backward pass
        output = output[:-1].view_as(q)
        ctx.save_for_backward(q, k, v, bias, output, log_sum)
        ctx.windows, ctx.reach, ctx.execution = windows, reach, execution
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, bias, output, log_sum = ctx.saved_tensors
        gradients = merged_gradients(grad, q, k, v, bias, output, log_sum, ctx.windows, ctx.reach, ctx.execution)
        return (*gradients, None, None, None)


def merged_gradients(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, output: Tensor, log_sum: Tensor,
    windows: WindowMaps, reach: str, execution: Execution,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of queries, keys, values and the bias of slots.

    Args:
        grad: of the output.
        query: as they were given, like `key`, `value` and `bias`.
        key: see there.
        value: see there.
        bias: see there.
        output: of the attention.
        log_sum: of the scores of every token and head, `[tokens · heads + 1, 1]`, infinite in the spare last row.
        windows: which tokens see each other.
        reach: which windows.
        execution: sizes of chunks.
    """
    num_heads, slots = bias.shape[:2]
    score_elements = execution.score_elements
    q, k, v, grad_rows = _rows(query), _rows(key), _rows(value), _rows(grad)
    parts = zip(grad.split(execution.gradient_rows), output.split(execution.gradient_rows), strict=True)
    mean_grad = torch.cat([(dy * y).sum(dim=-1) for dy, y in parts]).view(-1, 1).to(log_sum.dtype)  # Σ_j P_ij dP_ij
    dq, dk, dv = _with_spare(q), _with_spare(k), _with_spare(v)
    dbias = torch.zeros_like(bias, dtype=log_sum.dtype)
    for number, (kernel_map, pass_bias) in enumerate(passes(_wide(bias, q), windows, reach)):
        store = Tensor.index_add_ if number else Tensor.index_copy_  # every pass reaches every token once
        for present, reads, writes in _chunks(kernel_map, num_heads, score_elements):
            queries, keys = _gather(q, reads, slots), _gather(k, reads, slots)
            weights = _scores(queries, keys, pass_bias, present).sub_(_gather(log_sum, writes, slots)).exp_()
            grads = _gather(grad_rows, reads, slots)
            store(dv, 0, writes, (weights.to(v.dtype).mT @ grads).flatten(0, 1))
            dscores = (grads @ _gather(v, reads, slots).mT).to(weights.dtype)
            dscores = dscores.sub_(_gather(mean_grad, reads, slots)).mul_(weights)
            dbias += dscores.unflatten(0, (-1, num_heads)).sum(dim=0)
            dscores = dscores.mul_(q.shape[-1] ** -0.5).to(q.dtype)
            store(dq, 0, writes, (dscores @ keys).flatten(0, 1))
            store(dk, 0, writes, (dscores.mT @ queries).flatten(0, 1))
    grads = (rows[:-1].view_as(query) for rows in (dq, dk, dv))
    dq, dk, dv = grads
    return dq, dk, dv, dbias.to(bias.dtype)


def _wide(bias: Tensor, like: Tensor) -> Tensor:
    """The statistics of the softmax are at least float32, whatever the tokens are."""
    return bias.to(torch.promote_types(like.dtype, torch.float32))
