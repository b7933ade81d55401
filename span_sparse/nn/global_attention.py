"""Exchange between the local tokens and the few global tokens of a slide.

    locals:   A_i = Σ_g softmax_g(q_i·k_g/√d) v_g
    globals:  A_g = Σ_u softmax_u(q_g·k_u/√d) v_u,   u over all locals of the slide and its globals

(SPAN's second attention, with its own projections q2, k2, v2.) A slide has 10⁴ locals and one or a few globals, so the
projections are absorbed into the globals, head by head: with `c_g = W_kᵀ q_g`,

    q_g·k_u = c_g·u + const,     Σ_u a_u v_u = W_v (Σ_u a_u u) + b_v     where Σ_u a_u = 1

That is the same arithmetic re-associated: the cost falls from `6·N·D²` to `6·N·T·H·D` operations for N locals and T
globals. The constant, `q_g·b_k`, is common to all keys and cancels in the softmax. With T = 1 a local's softmax over one
global is 1, and no product with the locals is needed at all.

Rotary positions stand between projection and product, so with them nothing can be absorbed (`projected_attention`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from span_sparse.nn.positions import rotate
from span_sparse.nn.slides import slide_matmul, slide_outer, slide_scores, slide_softmax, to_rows
from span_sparse.sparse import SparseSites


class Projections(NamedTuple):
    """The linear maps of an attention: queries, keys, values, each `channels → channels` with bias."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear


class GlobalExchange(NamedTuple):
    """What both sides read, heads concatenated, before the output projection.

    Attributes:
        for_locals: what the locals read from the globals; None where nothing reads it.
        for_globals: what the globals read from everything.
        weights: the weight every local has for each global token and head; with those of the globals among themselves
            they sum to one over a slide.
    """

    for_locals: Float[Tensor, "tokens channels"] | None
    for_globals: Float[Tensor, "slides globals channels"]
    weights: Float[Tensor, "globals heads tokens"]


def _heads(rows: Tensor, num_heads: int) -> Tensor:
    return rows.unflatten(-1, (num_heads, -1))


def _head_rows(values: Float[Tensor, "slides globals heads head_channels"]) -> Float[Tensor, "slides rows channels"]:
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
    num_globals = global_tokens.shape[1]
    scale = (local_tokens.shape[1] // num_heads) ** -0.5
    queries = _heads(query(global_tokens), num_heads) * scale
    absorbed = torch.einsum("sghd,hdc->sghc", queries, _by_head(key.weight, num_heads)).flatten(1, 2)
    weights, among = slide_softmax(
        slide_scores(local_tokens, absorbed, sites), _scores_among(global_tokens, absorbed), sites
    )
    pooled = slide_outer(weights, local_tokens, sites) + torch.einsum(
        "sum,suc->smc", among, global_tokens.to(among.dtype)
    )
    pooled = pooled.to(global_tokens.dtype).unflatten(1, (num_globals, num_heads))
    from_all = torch.einsum("sghc,hdc->sghd", pooled, _by_head(value.weight, num_heads)).flatten(2)
    # keys' biases have no influence; they stay in the graph (gradient zero), so that on every device and under DDP the
    # same parameters take part
    from_all = from_all + torch.add(value.bias, key.bias, alpha=0)
    read = None
    if read_by_locals:
        read = _read_globals(local_tokens, query, _heads(key(global_tokens), num_heads), value(global_tokens), sites)
    return GlobalExchange(read, from_all, weights.T.unflatten(0, (num_globals, num_heads)))


def _by_head(weight: Tensor, num_heads: int) -> Tensor:
    return weight.unflatten(0, (num_heads, -1))


def _scores_among(global_tokens: Tensor, absorbed: Tensor) -> Tensor:
    """Scores of the globals as keys, `[slides, globals, rows]`, at least float32 as those of the locals."""
    scores = torch.einsum("suc,smc->sum", global_tokens, absorbed)
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _read_globals(local_tokens: Tensor, query: nn.Linear, keys: Tensor, values: Tensor, sites: SparseSites) -> Tensor:
    """What every local token reads from the globals of its slide."""
    num_globals, num_heads, channels = keys.shape[1:]
    if num_globals == 1:
        return to_rows(values[:, 0], sites)
    scale = channels**-0.5
    absorbed = torch.einsum("sghd,hdc->sghc", keys, _by_head(query.weight, num_heads)).flatten(1, 2) * scale
    offset = torch.einsum("sghd,hd->sgh", keys, _heads(query.bias, num_heads)).flatten(1) * scale
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
    weights, among = slide_softmax(
        slide_scores(local_k, asking, sites), _scores_among(global_k.flatten(2), asking), sites
    )
    pooled = slide_outer(weights, local_v, sites) + torch.einsum(
        "sum,suc->smc", among, global_v.flatten(2).to(among.dtype)
    )
    # of each row the channels of its own head
    for_globals = torch.einsum("sghhd->sghd", _heads(pooled.unflatten(1, global_q.shape[1:3]), num_heads)).flatten(2)
    weights = weights.T.unflatten(0, global_q.shape[1:3])
    return GlobalExchange(for_locals, for_globals.to(global_tokens.dtype), weights)
