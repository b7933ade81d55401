"""SPAN written down densely: loops over tokens, no index map, no sparse library. Slow and obvious.

Follows the specification term by term and takes its weights from a `SpanMil` by name; used as an oracle in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import layer_norm


def union_attention(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, table: Tensor | None, window_size: int
) -> Tensor:
    """One softmax over the tokens that share the regular or the shifted window; `[tokens, heads, head_channels]`."""
    w = window_size
    outputs = []
    for i, place in enumerate(positions):
        regular = (positions // (2 * w) == place // (2 * w)).all(dim=1)
        shifted = ((positions + w) // (2 * w) == (place + w) // (2 * w)).all(dim=1)
        keys = (regular | shifted).nonzero().squeeze(1)
        scores = torch.einsum("hd,jhd->hj", q[i], k[keys]) / q.shape[-1] ** 0.5
        if table is not None:
            delta = positions[keys] - place + 2 * w - 1
            scores = scores + table[:, delta[:, 0], delta[:, 1]]
        outputs.append(torch.einsum("hj,jhd->hd", scores.softmax(dim=1), v[keys]))
    return torch.stack(outputs)


def full_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`[queries, heads, head_channels]` over all keys."""
    scores = torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hij,jhd->ihd", scores.softmax(dim=-1), v)


def span_mil_logits(
    weights: Mapping[str, Tensor], features: Tensor, positions: Tensor, *, stages: str, heads: int, window_size: int
) -> Tensor:
    """Logits of one slide: depthwise pre-norm down-sampling with `count`, one learned token, head `multi_addition`."""
    tokens = features @ weights["encoder.input_projection.linear.weight"].T
    glob = weights["encoder.tokens.learned.0"][None]
    glob = _linear(weights, "encoder.token_transition.projection", glob)
    summed = torch.zeros_like(glob[0])
    for stage, depth in enumerate(stages):
        if stage:
            tokens, positions = _down(weights, f"encoder.stages.{stage}.down", tokens, positions)
            glob = _norm(weights, f"encoder.stages.{stage}.down.tokens.norm", glob)
        for layer in range(int(depth)):
            tokens, glob = _layer(
                weights, f"encoder.stages.{stage}.layers.{layer}", tokens, glob, positions, heads, window_size
            )
        summed = summed + glob[0]
    return _linear(weights, "head.readout.linear", _norm(weights, "head.readout.norm", summed))


def _linear(weights: Mapping[str, Tensor], name: str, rows: Tensor) -> Tensor:
    return rows @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _norm(weights: Mapping[str, Tensor], name: str, rows: Tensor) -> Tensor:
    return layer_norm(rows, rows.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def _down(weights: Mapping[str, Tensor], name: str, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    normed = _norm(weights, f"{name}.operator.input_norm", tokens)
    parents = sorted({(int(row) // 2, int(col) // 2) for row, col in positions})
    outputs = []
    for parent in parents:
        children = [i for i, place in enumerate(positions.tolist()) if (place[0] // 2, place[1] // 2) == parent]
        taps = [2 * (int(positions[i, 0]) % 2) + int(positions[i, 1]) % 2 for i in children]
        summed = sum(
            weights[f"{name}.operator.convolution.weight"][tap] * normed[i]
            for i, tap in zip(children, taps, strict=True)
        )
        outputs.append(summed / len(children))
    return torch.stack(outputs), torch.tensor(parents)


def _layer(
    weights: Mapping[str, Tensor],
    name: str,
    tokens: Tensor,
    glob: Tensor,
    positions: Tensor,
    heads: int,
    window_size: int,
) -> tuple[Tensor, Tensor]:
    together = torch.cat([tokens, glob])
    normed = _norm(weights, f"{name}.attention_norm", together)
    num_locals = len(tokens)

    def project(which: str, rows: Tensor) -> list[Tensor]:
        return [_linear(weights, f"{name}.{which}.{i}", rows).unflatten(1, (heads, -1)) for i in range(3)]

    q1, k1, v1 = project("window_qkv", normed[:num_locals])
    q2, k2, v2 = project("global_qkv", normed)
    local = union_attention(q1, k1, v1, positions, weights[f"{name}.positions.table"], window_size)
    read = full_attention(q2[:num_locals], k2[num_locals:], v2[num_locals:])
    write = full_attention(q2[num_locals:], k2, v2)
    attended = torch.cat([local + read, write]).flatten(1)
    together = together + _linear(weights, f"{name}.output", attended)
    hidden = _linear(weights, f"{name}.feed_forward.0", _norm(weights, f"{name}.feed_forward_norm", together))
    together = together + _linear(weights, f"{name}.feed_forward.3", hidden.clamp(min=0))
    return together[:num_locals], together[num_locals:]
