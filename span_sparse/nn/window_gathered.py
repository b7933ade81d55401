"""Window attention with the keys of both windows side by side: plain, and the reference of the others."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from span_sparse.sparse import KernelMap, WindowMaps


def gathered_attention(
    q: Float[Tensor, "tokens heads head_channels"],
    k: Float[Tensor, "tokens heads head_channels"],
    v: Float[Tensor, "tokens heads head_channels"],
    bias: Float[Tensor, "heads slots slots"],
    windows: WindowMaps,
    reach: str = "union",
) -> Float[Tensor, "tokens heads head_channels"]:
    """`window_attention` with one softmax over keys that are copied for every token.

    Simple and differentiable any number of times; costs `[tokens, heads, 2 · slots, head_channels]` memory.

    Args:
        q: queries, not scaled.
        k: keys.
        v: values.
        bias: of every pair of window slots (`positions.expanded_bias`).
        windows: which tokens see each other.
        reach: which windows.
    """
    scores, values = gathered_scores(q, k, v, bias, windows, reach)
    return (scores.softmax(dim=-1).unsqueeze(-2) @ values).squeeze(-2)


def gathered_scores(
    q: Float[Tensor, "tokens heads head_channels"],
    k: Float[Tensor, "tokens heads head_channels"],
    v: Float[Tensor, "tokens heads head_channels"],
    bias: Float[Tensor, "heads slots slots"] | None,
    windows: WindowMaps,
    reach: str,
) -> tuple[Float[Tensor, "tokens heads keys"], Float[Tensor, "tokens heads keys head_channels"]]:
    """The scores of all keys of every token, minus infinity for what is no key, and their values."""
    scale, slots = q.shape[-1] ** -0.5, windows.regular.num_taps
    bias = q.new_zeros(q.shape[1], slots, slots) if bias is None else bias
    scores, values = [], []
    for kernel_map, pass_bias in passes(bias, windows, reach):
        table, slot = kernel_map.table.long(), kernel_map.slots_of_inputs
        present = table >= 0
        tokens = torch.where(present, table, table.amax(dim=1, keepdim=True))
        absent = torch.zeros(table.shape, dtype=q.dtype, device=q.device).masked_fill(~present, -torch.inf)
        queries, keys = (rows[tokens].transpose(1, 2) for rows in (q * scale, k))
        by_window = queries @ keys.mT + pass_bias + absent[:, None, None, :]  # (windows, heads, slots, slots)
        scores.append(by_window.transpose(1, 2).flatten(0, 1)[slot])  # (tokens, heads, slots)
        in_window = v[tokens].transpose(1, 2)
        values.append(in_window[slot // slots])  # (tokens, heads, slots, head_channels)
    return torch.cat(scores, dim=-1), torch.cat(values, dim=-2)


def passes(bias: Tensor, windows: WindowMaps, reach: str) -> list[tuple[KernelMap, Tensor]]:
    """The window sets with their bias; in a union, the shifted one excludes the own cell."""
    if reach == "regular":
        return [(windows.regular, bias)]
    if reach == "shifted":
        return [(windows.shifted, bias)]
    excluded = own_cell_mask(windows.window_size, bias.device)
    return [(windows.regular, bias), (windows.shifted, bias.masked_fill(excluded, -torch.inf))]


def own_cell_mask(window_size: int, device: torch.device) -> Bool[Tensor, "slots slots"]:
    """Pairs of window slots that lie in the same cell."""
    cell = torch.arange(4 * window_size**2, device=device) // window_size**2
    return cell[:, None] == cell[None, :]
