"""Exchange between the local tokens and the few global tokens of a slide.

    locals:   A_i = Σ_g softmax_g(q_i·k_g/√d) v_g
    globals:  A_g = Σ_u softmax_u(q_g·k_u/√d) v_u,   u over all locals of the slide and its globals

(SPAN's second attention, with its own projections q2, k2, v2.) A slide has 10⁴ locals and one or a few globals, so the
projections are absorbed into the globals, head by head: with `c_g = W_kᵀ q_g`,

    q_g·k_u = c_g·u + const,     Σ_u a_u v_u = W_v (Σ_u a_u u) + b_v     where Σ_u a_u = 1

That is the same arithmetic re-associated: the cost falls from `6·N·D²` to `6·N·T·H·D` operations for N locals and T
globals. The constant, `q_g·b_k`, is common to all keys and cancels in the softmax. With T = 1 a local's softmax over
one global is 1, and no product with the locals is needed at all.

Rotary positions stand between projection and product, so with them nothing can be absorbed (`projected_attention`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from span_sparse.nn.positions import rotate
from span_sparse.nn.slides import slide_attention, slide_matmul, slide_outer, slide_scores, slide_softmax, to_rows
from span_sparse.sparse import SparseSites


class Projections(NamedTuple):
    """The linear maps of an attention: queries, keys, values, each `channels → channels` with bias."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear


class GlobalExchange(NamedTuple):
    """What both sides read, heads concatenated, before the output projection.

    Attributes:
        for_locals: what the locals read from the globals: one row a local, or one a slide where all its locals read the
            same (a slide has one global token); None where nothing reads it.
        for_globals: what the globals read from everything.
        weights: the weight every local has for each global token and head; with those of the globals among themselves
            they sum to one over a slide. None where the execution settings do not ask for them.
    """

    for_locals: Float[Tensor, "rows channels"] | None
    for_globals: Float[Tensor, "slides globals channels"]
    weights: Float[Tensor, "globals heads tokens"] | None


def _heads(rows: Tensor, num_heads: int) -> Tensor:
    return rows.unflatten(-1, (num_heads, -1))


def _head_rows(values: Float[Tensor, "slides globals heads head_channels"]) -> Float[Tensor, "slides columns channels"]:
    """One row a global and head that is zero outside the head's channels: its products are those of the head."""
    blocks = torch.einsum(
        "sghd,hk->sghkd", values, torch.eye(values.shape[2], dtype=values.dtype, device=values.device)
    )
    return blocks.flatten(3).flatten(1, 2)


def global_attention(
    local_tokens: Float[Tensor, "tokens channels"],
    global_tokens: Float[Tensor, "slides globals channels"],
    projections: Projections,
    num_heads: int,
    sites: SparseSites,
    *,
    read_by_locals: bool = True,
) -> GlobalExchange:
    """The exchange with the projections of the locals absorbed into the globals.

    Args:
        local_tokens: normalised locals, rows ordered as `sites`.
        global_tokens: normalised globals.
        projections: q2, k2, v2.
        num_heads: heads; the head width is `channels / num_heads`.
        sites: of the level.
        read_by_locals: False where nothing after this reads the locals.
    """
    query, key, value = projections
    scale = (local_tokens.shape[1] // num_heads) ** -0.5
    queries = _per_head(query(global_tokens) * scale, num_heads)
    absorbed = _per_row(torch.bmm(queries, _by_head(key.weight, num_heads)), global_tokens.shape)
    pooled, weights = slide_attention(local_tokens, global_tokens, absorbed, sites)
    means = pooled.to(global_tokens.dtype).unflatten(1, (-1, num_heads)).permute(2, 0, 1, 3).flatten(1, 2)
    from_all = torch.bmm(means, _by_head(value.weight, num_heads).mT)  # (heads, slides · globals, head_channels)
    # the keys' bias has no influence; it stays in the graph, with gradient zero, so that on every device and under DDP
    # the same parameters take part
    from_all = from_all.transpose(0, 1).reshape(global_tokens.shape) + torch.add(value.bias, key.bias, alpha=0)
    read = None
    if read_by_locals:
        read = _read_globals(local_tokens, projections, global_tokens, num_heads, sites)
    return GlobalExchange(read, from_all, None if weights is None else weights.T.unflatten(0, (-1, num_heads)))


def _per_head(rows: Tensor, num_heads: int) -> Float[Tensor, "heads rows head_channels"]:
    """`[slides, globals, channels]` head by head, for batched products with a head's weights."""
    return rows.flatten(0, 1).unflatten(-1, (num_heads, -1)).transpose(0, 1)


def _per_row(
    rows: Float[Tensor, "heads rows channels"], shape: Sequence[int]
) -> Float[Tensor, "slides columns channels"]:
    """One row a slide, global and head of what `_per_head` began; `shape` is that of the globals."""
    num_slides, num_globals, _ = shape
    return rows.unflatten(1, (num_slides, num_globals)).permute(1, 2, 0, 3).flatten(1, 2)


def _by_head(weight: Tensor, num_heads: int) -> Tensor:
    return weight.unflatten(0, (num_heads, -1))


def _read_globals(
    local_tokens: Tensor, projections: Projections, global_tokens: Tensor, num_heads: int, sites: SparseSites
) -> Tensor:
    """What every local token reads from the globals of its slide; one row a slide where that is all."""
    query, key, value = projections
    values = value(global_tokens)
    if global_tokens.shape[1] == 1:
        return values[:, 0]
    scale = (local_tokens.shape[1] // num_heads) ** -0.5
    keys = _per_head(key(global_tokens) * scale, num_heads)
    absorbed = _per_row(torch.bmm(keys, _by_head(query.weight, num_heads)), global_tokens.shape)
    offset = _per_row(torch.bmm(keys, _by_head(query.bias, num_heads).unsqueeze(-1)), global_tokens.shape)[..., 0]
    scores = slide_scores(local_tokens, absorbed, sites) + to_rows(offset, sites)
    return _weighted_values(scores, _heads(values, num_heads), sites)


def _weighted_values(scores: Tensor, values: Tensor, sites: SparseSites) -> Tensor:
    """Softmax over the globals, head by head, and the values it weighs; `scores [tokens, globals · heads]`."""
    weights = scores.unflatten(1, values.shape[1:3]).softmax(dim=1).flatten(1)
    return slide_matmul(weights.to(values.dtype), _head_rows(values).mT, sites)


def projected_attention(
    local_tokens: Float[Tensor, "tokens channels"],
    global_tokens: Float[Tensor, "slides globals channels"],
    projections: Projections,
    num_heads: int,
    sites: SparseSites,
    places: Int[Tensor, "tokens 2"] | None,
) -> GlobalExchange:
    """The exchange with every token projected: plain, and the one that admits rotary positions.

    Args:
        local_tokens: normalised locals, rows ordered as `sites`.
        global_tokens: normalised globals.
        projections: q2, k2, v2.
        num_heads: heads.
        sites: of the level.
        places: `(row, col)` of every local, by which queries and keys are rotated; globals stand at (0, 0), where a
            rotation changes nothing. None rotates nothing.
    """
    scale = (local_tokens.shape[1] // num_heads) ** -0.5
    local_q, local_k, local_v = (linear(local_tokens) for linear in projections)
    global_q, global_k, global_v = (_heads(linear(global_tokens), num_heads) for linear in projections)
    if places is not None:
        local_q, local_k = (rotate(_heads(rows, num_heads), places).flatten(1) for rows in (local_q, local_k))
    for_locals = _weighted_values(slide_scores(local_q, _head_rows(global_k * scale), sites), global_v, sites)
    asking = _head_rows(global_q * scale)
    among = torch.einsum("suc,smc->sum", global_k.flatten(2), asking)
    scores = slide_scores(local_k, asking, sites)
    weights, among = slide_softmax(scores, among.to(scores.dtype), sites)
    pooled = slide_outer(weights, local_v, sites) + torch.einsum(
        "sum,suc->smc", among, global_v.flatten(2).to(among.dtype)
    )
    # of each row the channels of its own head
    for_globals = torch.einsum("sghhd->sghd", _heads(pooled.unflatten(1, global_q.shape[1:3]), num_heads)).flatten(2)
    weights = weights.T.unflatten(0, global_q.shape[1:3])
    return GlobalExchange(for_locals, for_globals.to(global_tokens.dtype), weights)
