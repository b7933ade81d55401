"""How do local tokens and the few global tokens of a slide exchange what they know?

    locals:   A_i = Σ_g softmax_g(q_i·k_g/√d) v_g
    globals:  A_g = Σ_u softmax_u(q_g·k_u/√d) v_u,   u over all locals of the slide and its globals

(SPAN's second attention, with its own projections q2, k2, v2.) A slide has 10⁴ locals and one or a few globals, so the
projections are absorbed into the globals: `q_g·k_u = (W_kᵀ q_g)·x_u + q_g·b_k` and
`Σ_u a_u v_u = W_v (Σ_u a_u x_u) + (Σ_u a_u) b_v`, head by head. That is the same arithmetic re-associated: the cost
falls from `6·N·D²` to `6·N·T·H·D` operations for N locals and T globals. With T = 1 a local's softmax over one global
is 1, and no product with the locals is needed at all.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Projections(NamedTuple):
    """The linear maps of an attention: queries, keys, values, each `channels → channels` with bias."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear


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
) -> tuple[Float[Tensor, "tokens channels"] | None, Float[Tensor, "slides globals channels"]]:
    """What the locals read from the globals, and the globals from everything.

    Args:
        local_tokens: normalised locals, the rows of each slide contiguous.
        global_tokens: normalised globals.
        projections: q2, k2, v2.
        num_heads: heads; the head width is `channels / num_heads`.
        counts: rows of each slide.
        read_by_locals: False where nothing after this reads the locals; then the first result is None.

    Returns:
        `(locals, globals)`, heads concatenated, before the output projection.
    """
    query, key, value = projections
    scale = (local_tokens.shape[1] // num_heads) ** -0.5
    queries = _heads(query(global_tokens), num_heads) * scale  # (slides, globals, heads, head_channels)
    keys = _heads(key(global_tokens), num_heads)
    values = _heads(value(global_tokens), num_heads)
    key_weight = key.weight.unflatten(0, (num_heads, -1))  # (heads, head_channels, channels)
    value_weight = value.weight.unflatten(0, (num_heads, -1))
    absorbed = torch.einsum("sghd,hdc->sghc", queries, key_weight)
    key_bias = torch.einsum("sghd,hd->sgh", queries, _heads(key.bias, num_heads))
    among = torch.einsum("sghd,sthd->sght", queries, keys)  # globals with globals

    pooled, share, on_globals = [], [], []
    for slide, rows in enumerate(local_tokens.split(counts)):
        scores = torch.einsum("uc,ghc->ghu", rows, absorbed[slide]) + key_bias[slide].unsqueeze(-1)
        weights = torch.cat([scores, among[slide]], dim=-1).softmax(dim=-1)
        on_locals, on_global = weights.split([len(rows), weights.shape[-1] - len(rows)], dim=-1)
        pooled.append(torch.einsum("ghu,uc->ghc", on_locals, rows))
        share.append(on_locals.sum(dim=-1))
        on_globals.append(on_global)
    from_locals = torch.einsum("sghc,hdc->sghd", torch.stack(pooled), value_weight)
    from_locals = from_locals + torch.stack(share).unsqueeze(-1) * _heads(value.bias, num_heads)
    from_globals = torch.einsum("sght,sthd->sghd", torch.stack(on_globals), values)
    globals_out = (from_locals + from_globals).flatten(2)
    if not read_by_locals:
        return None, globals_out
    return _read_globals(local_tokens, query, keys, values, scale, counts), globals_out


def _read_globals(
    local_tokens: Tensor, query: nn.Linear, keys: Tensor, values: Tensor, scale: float, counts: tuple[int, ...]
) -> Tensor:
    """What every local token reads from the globals of its slide."""
    num_globals, num_heads = keys.shape[1:3]
    if num_globals == 1:
        repeats = torch.tensor(counts, device=local_tokens.device)
        return values.flatten(1).repeat_interleave(repeats, dim=0, output_size=len(local_tokens))
    query_weight = query.weight.unflatten(0, (num_heads, -1))
    absorbed = torch.einsum("sghd,hdc->sghc", keys, query_weight) * scale
    query_bias = torch.einsum("sghd,hd->sgh", keys, _heads(query.bias, num_heads)) * scale
    outputs = []
    for slide, rows in enumerate(local_tokens.split(counts)):
        weights = F.softmax(torch.einsum("uc,ghc->ugh", rows, absorbed[slide]) + query_bias[slide], dim=1)
        outputs.append(torch.einsum("ugh,ghd->uhd", weights, values[slide]).flatten(1))
    return torch.cat(outputs)
