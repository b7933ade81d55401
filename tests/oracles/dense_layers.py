"""One transformer layer of every mode, one slide, over all pairs of tokens: slow, obvious, no map.

Weights are taken by name from a layer's state dict. Neighbourhoods, position terms and the exchange with the global
tokens follow the specification, each written down once more and differently from the package.
"""

from __future__ import annotations

import cmath
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """What the oracle needs to know besides weights; names as in the configuration."""

    mode: str
    positions: str
    heads: int
    window_size: int
    share_qkv: bool = False


def neighbours(places: Tensor, i: int, window_size: int, reach: str) -> list[int]:
    """Keys of token `i`: those of its regular window, of its shifted window, or of either."""

    def window(place: Tensor, shift: int) -> tuple[int, ...]:
        return tuple((int(value) + shift) // (2 * window_size) for value in place)

    shifts = {"regular": [0], "shifted": [window_size], "union": [0, window_size]}[reach]
    return [
        j for j in range(len(places)) if any(window(places[j], shift) == window(places[i], shift) for shift in shifts)
    ]


def alibi_slopes(heads: int) -> list[float]:
    """Press et al.: a geometric sequence from `2^(-8/n)` for a power of two, else filled up from the next one."""
    power = 1
    while 2 * power <= heads:
        power *= 2
    slopes = [(2 ** (-8 / power)) ** (head + 1) for head in range(power)]
    finer = [(2 ** (-8 / (2 * power))) ** (head + 1) for head in range(2 * power)]
    return slopes + finer[0 : 2 * (heads - power) : 2]


def turned(row: Tensor, place: Tensor) -> Tensor:
    """Rotary embedding of one head of one token as a multiplication of complex numbers."""
    half = len(row) // 2
    numbers = torch.view_as_complex(row.reshape(-1, 2).contiguous())
    factors = []
    for pair in range(half):
        axis, number = divmod(pair, half // 2)
        factors.append(cmath.exp(1j * int(place[axis]) * 10000 ** (-2 * number / half)))
    return torch.view_as_real(numbers * torch.tensor(factors, dtype=numbers.dtype)).flatten()


def rotated(rows: Tensor, places: Tensor) -> Tensor:
    """`turned`, for `[tokens, heads, head_channels]`."""
    return torch.stack(
        [torch.stack([turned(head, place) for head in row]) for row, place in zip(rows, places, strict=True)]
    )


def bias_of(recipe: Recipe, table: Tensor | None, delta: Tensor) -> Tensor:
    """The position term of one pair, `[heads]`; `delta` is key minus query."""
    if recipe.positions == "rpb":
        assert table is not None
        row, col = (int(value) + 2 * recipe.window_size - 1 for value in delta)
        return table[:, row, col]
    if recipe.positions == "alibi":
        return -torch.tensor(alibi_slopes(recipe.heads), dtype=torch.float64) * float(delta.double().norm())
    return torch.zeros(recipe.heads, dtype=torch.float64)


def window_part(
    recipe: Recipe, weights: Weights, names: str, table: Tensor | None, normed: Tensor, places: Tensor, reach: str
) -> Tensor:
    """Attention of every local token to its windows, heads concatenated."""
    q, k, v = _projected(recipe, weights, names, normed)
    if recipe.positions == "rope":
        q, k = rotated(q, places), rotated(k, places)
    outputs = []
    for i in range(len(places)):
        keys = neighbours(places, i, recipe.window_size, reach)
        scores = torch.stack(
            [
                (q[i] * k[j]).sum(dim=-1) / q.shape[-1] ** 0.5 + bias_of(recipe, table, places[j] - places[i])
                for j in keys
            ]
        )
        outputs.append((scores.softmax(dim=0).unsqueeze(-1) * v[keys]).sum(dim=0).flatten())
    return torch.stack(outputs)


def exchange_part(
    recipe: Recipe, weights: Weights, names: str, normed: Tensor, normed_global: Tensor, places: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What locals read from globals, what globals read from everything, and the weights of the latter's locals."""
    q, k, v = _projected(recipe, weights, names, torch.cat([normed, normed_global]))
    count = len(normed)
    if recipe.positions == "rope":
        everywhere = torch.cat([places, places.new_zeros(len(normed_global), 2)])
        q, k = rotated(q, everywhere), rotated(k, everywhere)

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        shares = (torch.einsum("ihd,jhd->hij", queries, keys) / q.shape[-1] ** 0.5).softmax(dim=-1)
        return torch.einsum("hij,jhd->ihd", shares, values).flatten(1), shares

    read, _ = attend(q[:count], k[count:], v[count:])
    write, shares = attend(q[count:], k, v)
    return read, write, shares[:, :, :count].transpose(0, 1)


def layer(
    recipe: Recipe, weights: Weights, tokens: Tensor, global_tokens: Tensor, places: Tensor, activation: Callable
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Locals, globals and attention weights after one layer, `tradswin` included."""
    if recipe.mode == "tradswin":
        table = weights.get("shifted.positions.table")
        for reach in ("shifted", "regular"):
            part = {name.removeprefix(f"{reach}."): value for name, value in weights.items() if name.startswith(reach)}
            nothing = torch.zeros_like(global_tokens)
            normed = _norm(part, "attention_norm", tokens)
            attended = window_part(recipe, part, "window_qkv", table, normed, places, reach)
            tokens, global_tokens = (
                _residual(part, rows, added, activation)
                for rows, added in ((tokens, attended), (global_tokens, nothing))
            )
        return tokens, global_tokens, None
    second = "window_qkv" if recipe.share_qkv else "global_qkv"
    table = weights.get("positions.table")
    normed, normed_global = (_norm(weights, "attention_norm", rows) for rows in (tokens, global_tokens))

    def windows(names: str, reach: str) -> Tensor:
        return window_part(recipe, weights, names, table, normed, places, reach)

    if recipe.mode in ("long", "long_noshift"):
        attended = windows("window_qkv", "union" if recipe.mode == "long" else "regular")
    else:
        attended = windows("window_qkv", "shifted") + windows(second, "regular")
    written, shares = torch.zeros_like(global_tokens), None
    if recipe.mode != "swin":
        read, written, shares = exchange_part(recipe, weights, second, normed, normed_global, places)
        attended = attended + read
    return (
        _residual(weights, tokens, attended, activation),
        _residual(weights, global_tokens, written, activation),
        shares,
    )


def _projected(recipe: Recipe, weights: Weights, names: str, rows: Tensor) -> list[Tensor]:
    return [_linear(weights, f"{names}.{i}", rows).unflatten(1, (recipe.heads, -1)) for i in range(3)]


def _residual(weights: Weights, rows: Tensor, attended: Tensor, activation: Callable) -> Tensor:
    rows = rows + _linear(weights, "output", attended)
    hidden = activation(_linear(weights, "feed_forward.0", _norm(weights, "feed_forward_norm", rows)))
    return rows + _linear(weights, "feed_forward.3", hidden)


def _linear(weights: Weights, name: str, rows: Tensor) -> Tensor:
    return rows @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _norm(weights: Weights, name: str, rows: Tensor) -> Tensor:
    return layer_norm(rows, rows.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])
