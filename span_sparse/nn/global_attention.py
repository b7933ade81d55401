"""How do local tokens and the few global tokens of a slide exchange what they know?

    locals:   A_i = Σ_g softmax_g(q_i·k_g/√d) v_g
    globals:  A_g = Σ_u softmax_u(q_g·k_u/√d) v_u,   u over all locals of the slide and its globals

(SPAN's second attention, with its own projections q2, k2, v2.) A slide has 10⁴ locals and one or a few globals, so the
projections are absorbed into the globals: `q_g·k_u = (W_kᵀ q_g)·x_u + q_g·b_k` and
`Σ_u a_u v_u = W_v (Σ_u a_u x_u) + (Σ_u a_u) b_v`, head by head. That is the same arithmetic re-associated: the cost
falls from `6·N·D²` to `6·N·T·H·D` operations for N locals and T globals. With T = 1 a local's softmax over one global
is 1, and no product with the locals is needed at all.

Rotary positions stand between projection and product, so with them nothing can be absorbed (`projected_attention`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from span_sparse.nn.positions import rotate


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


def global_attention(
    local_tokens: Float[Tensor, "tokens channels"],
    global_tokens: Float[Tensor, "slides globals channels"],
    projections: Projections,
    num_heads: int,
    counts: tuple[int, ...],
    *,
    read_by_locals: bool = True,
) -> GlobalExchange:
    """The exchange with the projections of the locals absorbed into the globals.

    Args:
        local_tokens: normalised locals, the rows of each slide contiguous.
        global_tokens: normalised globals.
        projections: q2, k2, v2.
        num_heads: heads; the head width is `channels / num_heads`.
        counts: rows of each slide.
        read_by_locals: False where nothing after this reads the locals.
    """
    query, key, value = projections
    scale = (local_tokens.shape[1] // num_heads) ** -0.5
    queries = _heads(query(global_tokens), num_heads) * scale  # (slides, globals, heads, head_channels)
    keys = _heads(key(global_tokens), num_heads)
    values = _heads(value(global_tokens), num_heads)
    absorbed = torch.einsum("sghd,hdc->sghc", queries, key.weight.unflatten(0, (num_heads, -1)))
    key_bias = torch.einsum("sghd,hd->sgh", queries, _heads(key.bias, num_heads))
    among = torch.einsum("sghd,sthd->sght", queries, keys)  # globals with globals

    pooled, share, on_globals, on_locals = [], [], [], []
    for slide, rows in enumerate(local_tokens.split(counts)):
        scores = torch.einsum("uc,ghc->ghu", rows, absorbed[slide]) + key_bias[slide].unsqueeze(-1)
        weights = torch.cat([scores, among[slide]], dim=-1).softmax(dim=-1)
        local_weights, global_weights = weights.split([len(rows), weights.shape[-1] - len(rows)], dim=-1)
        pooled.append(torch.einsum("ghu,uc->ghc", local_weights, rows))
        share.append(local_weights.sum(dim=-1))
        on_locals.append(local_weights)
        on_globals.append(global_weights)
    from_locals = torch.einsum("sghc,hdc->sghd", torch.stack(pooled), value.weight.unflatten(0, (num_heads, -1)))
    from_locals = from_locals + torch.stack(share).unsqueeze(-1) * _heads(value.bias, num_heads)
    from_globals = torch.einsum("sght,sthd->sghd", torch.stack(on_globals), values)
    read = _read_globals(local_tokens, query, keys, values, scale, counts) if read_by_locals else None
    return GlobalExchange(read, (from_locals + from_globals).flatten(2), torch.cat(on_locals, dim=-1))


def _read_globals(
    local_tokens: Tensor, query: nn.Linear, keys: Tensor, values: Tensor, scale: float, counts: tuple[int, ...]
) -> Tensor:
    """What every local token reads from the globals of its slide."""
    num_globals, num_heads = keys.shape[1:3]
    if num_globals == 1:
        if len(counts) == 1:
            return values.flatten(1).expand(len(local_tokens), -1)
        repeats = torch.tensor(counts, device=local_tokens.device)
        return values.flatten(1).repeat_interleave(repeats, dim=0, output_size=len(local_tokens))
    query_weight = query.weight.unflatten(0, (num_heads, -1))
    absorbed = torch.einsum("sghd,hdc->sghc", keys, query_weight) * scale
    query_bias = torch.einsum("sghd,hd->sgh", keys, _heads(query.bias, num_heads)) * scale
    outputs = []
    for slide, rows in enumerate(local_tokens.split(counts)):
        weights = (torch.einsum("uc,ghc->ugh", rows, absorbed[slide]) + query_bias[slide]).softmax(dim=1)
        outputs.append(torch.einsum("ugh,ghd->uhd", weights, values[slide]).flatten(1))
    return torch.cat(outputs)


def projected_attention(
    local_tokens: Float[Tensor, "tokens channels"],
    global_tokens: Float[Tensor, "slides globals channels"],
    projections: Projections,
    num_heads: int,
    counts: tuple[int, ...],
    places: Int[Tensor, "tokens 2"] | None,
) -> GlobalExchange:
    """The exchange with every token projected: plain, and the one that admits rotary positions.

    Args:
        local_tokens: normalised locals, the rows of each slide contiguous.
        global_tokens: normalised globals.
        projections: q2, k2, v2.
        num_heads: heads.
        counts: rows of each slide.
        places: `(row, col)` of every local, by which queries and keys are rotated; globals stand at (0, 0), where a
            rotation changes nothing. None rotates nothing.
    """
    scale = (local_tokens.shape[1] // num_heads) ** -0.5
    local_q, local_k, local_v = (_heads(linear(local_tokens), num_heads) for linear in projections)
    global_q, global_k, global_v = (_heads(linear(global_tokens), num_heads) for linear in projections)
    if places is not None:
        local_q, local_k = rotate(local_q, places), rotate(local_k, places)
    for_locals, for_globals, on_locals = [], [], []
    slides = zip(local_q.split(counts), local_k.split(counts), local_v.split(counts), strict=True)
    for slide, (q, k, v) in enumerate(slides):
        weights = (torch.einsum("uhd,ghd->uhg", q, global_k[slide]) * scale).softmax(dim=-1)
        for_locals.append(torch.einsum("uhg,ghd->uhd", weights, global_v[slide]).flatten(1))
        keys, values = torch.cat([k, global_k[slide]]), torch.cat([v, global_v[slide]])
        weights = (torch.einsum("ghd,uhd->ghu", global_q[slide], keys) * scale).softmax(dim=-1)
        for_globals.append(torch.einsum("ghu,uhd->ghd", weights, values).flatten(1))
        on_locals.append(weights[..., : len(k)])
    return GlobalExchange(torch.cat(for_locals), torch.stack(for_globals), torch.cat(on_locals, dim=-1))
