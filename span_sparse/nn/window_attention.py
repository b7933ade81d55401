"""Window attention over sparse lattice cells: the regular window, the shifted one, or both under one softmax.

    A_i = Σ_{j ∈ N(i)} softmax_j(q_i·k_j/√d + B(p_j − p_i)) v_j,   N(i) = regular(i) ∪ shifted(i)

(SPAN's context-aware refinement, mode `long`; arXiv 2406.09333 v3, section on CAR.) Each key counts once: the two
windows share exactly the token's own `w × w` cell. Three implementations compute the same:

    fused      one kernel per cell and head, for GPUs (`window_fused`, `window_kernels`)
    merged     two passes over padded windows, merged by their log-sum-exp, for CPUs (`window_merged`)
    gathered   the keys of both windows side by side, plain autograd: the reference (`window_gathered`)
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from span_sparse.nn.execution import AttentionImplementation, current_execution
from span_sparse.nn.positions import expanded_bias
from span_sparse.nn.window_fused import fused_attention, supports
from span_sparse.nn.window_gathered import gathered_attention
from span_sparse.nn.window_merged import merged_attention
from span_sparse.sparse import WindowMaps
from span_sparse.sparse.operators import is_device

GATHERED_ROWS = 32
"""Up to so many tokens · heads on CPU the plain implementation is faster (0.8 against 1.2 ms, forward and backward)."""

Reach = Literal["union", "regular", "shifted"]
"""Which windows a token attends to: both, or one of them (each contains the token itself)."""


def window_attention(
    q: Float[Tensor, "tokens heads head_channels"],
    k: Float[Tensor, "tokens heads head_channels"],
    v: Float[Tensor, "tokens heads head_channels"],
    bias: Float[Tensor, "heads side side"] | None,
    windows: WindowMaps,
    reach: Reach = "union",
    implementation: AttentionImplementation | None = None,
) -> Float[Tensor, "tokens heads head_channels"]:
    """Attention inside windows, one softmax over all keys.

    Args:
        q: queries, not scaled.
        k: keys.
        v: values.
        bias: added to the scaled scores, by head and displacement `p_key − p_query + 2w − 1` (`side = 4w − 1`).
        windows: which tokens see each other.
        reach: which windows.
        implementation: None chooses by device and size.
    """
    chosen = implementation or choose(q.device, q.dtype, q.shape, windows.window_size)
    if chosen == "fused":
        return fused_attention(torch.stack([q, k, v], dim=1), bias, windows, reach)
    if bias is None:
        bias = q.new_zeros(q.shape[1], 4 * windows.window_size - 1, 4 * windows.window_size - 1)
    by_slots = expanded_bias(bias, windows.window_size)
    if chosen == "gathered":
        return gathered_attention(q, k, v, by_slots, windows, reach)
    return merged_attention(q, k, v, by_slots, windows, reach)


def packed_attention(
    qkv: Float[Tensor, "tokens 3 heads head_channels"],
    bias: Float[Tensor, "heads side side"] | None,
    windows: WindowMaps,
    reach: Reach = "union",
) -> Float[Tensor, "tokens heads head_channels"]:
    """`window_attention` of queries, keys and values that are one tensor."""
    num_tokens, _, *shape = qkv.shape
    if choose(qkv.device, qkv.dtype, (num_tokens, *shape), windows.window_size) == "fused":
        return fused_attention(qkv, bias, windows, reach)
    q, k, v = qkv.unbind(1)
    return window_attention(q, k, v, bias, windows, reach)


def choose(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, ...], window_size: int
) -> AttentionImplementation:
    """The implementation for `[tokens, heads, head_channels]` of this dtype and device.

    What the execution settings name, if it can take them; else the kernel on CUDA, and on a CPU what is faster.
    """
    tokens, heads, channels = shape
    asked = current_execution(device).attention
    fits = supports(dtype, channels, window_size)
    if asked is not None and (asked != "fused" or fits):
        return asked
    if is_device(device) and fits:
        return "fused"
    return "gathered" if device.type == "cpu" and tokens * heads <= GATHERED_ROWS else "merged"
