"""Positions in the attention: how a key's place relative to its query enters the scores.

    rpb     B_h[Δrow + 2w − 1, Δcol + 2w − 1], one learned number a head and displacement (Swin, Liu et al. 2021)
    alibi   −m_h ‖Δ‖₂ with the slopes of Press et al. (ICLR 2022), also for head counts that are no power of two
    rope    queries and keys rotated by their own position, the first half of the head by the row, the second by the
            column, interleaved pairs, θ = 10000 (Su et al. 2021); global tokens stand at (0, 0)
    none    nothing

`Δ = p_key − p_query`, in lattice cells of the level; two tokens of one `2w × 2w` window are at most `2w − 1` apart, so
a bias is a table of `(4w − 1)²` displacements a head.
"""

from __future__ import annotations

import functools
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from span_sparse.sparse.windows import window_offsets


class RelativePositionBias(nn.Module):
    """A learned bias for every displacement inside a window.

    Args:
        num_heads: attention heads.
        window_size: `w`.
        std: standard deviation of the truncated normal initialisation.
    """

    def __init__(self, num_heads: int, window_size: int, std: float) -> None:
        super().__init__()
        side = 4 * window_size - 1
        self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(num_heads, side, side), std=std))

    def forward(self, dtype: torch.dtype) -> Float[Tensor, "heads side side"]:
        """The bias of every displacement; `dtype` is the table's anyway."""
        return self.table


class AlibiBias(nn.Module):
    """A bias that falls with distance, one fixed slope a head."""

    squared_distance: Tensor
    slopes: Tensor

    def __init__(self, num_heads: int, window_size: int) -> None:
        super().__init__()
        axis = torch.arange(4 * window_size - 1) - (2 * window_size - 1)
        self.register_buffer("squared_distance", axis[:, None].square() + axis.square(), persistent=False)
        slopes = torch.tensor(alibi_slopes(num_heads), dtype=torch.float64)
        self.register_buffer("slopes", slopes[:, None, None], persistent=False)

    def forward(self, dtype: torch.dtype) -> Float[Tensor, "heads side side"]:
        """The bias of every displacement in `dtype`; distances are float32, as in the authors' code."""
        distance = self.squared_distance.float().sqrt().to(dtype)
        return -self.slopes.to(dtype) * distance


def alibi_slopes(num_heads: int) -> list[float]:
    """Slopes of Press et al.: `2^(−8 i / n)` for n a power of two; else those of the next lower one, interleaved.

    >>> alibi_slopes(4)
    [0.25, 0.0625, 0.015625, 0.00390625]
    >>> alibi_slopes(3)
    [0.0625, 0.00390625, 0.25]
    """
    lower = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8 * (head + 1) / lower) for head in range(lower)]
    if lower < num_heads:
        slopes += alibi_slopes(2 * lower)[0::2][: num_heads - lower]
    return slopes


def rotate(
    rows: Float[Tensor, "tokens heads head_channels"], places: Int[Tensor, "tokens 2"], theta: float = 10000.0
) -> Float[Tensor, "tokens heads head_channels"]:
    """Rotary embedding over (row, col); channels beyond the largest multiple of four are left as they are.

    Angles are computed in float32, as in the authors' code, whatever the dtype of `rows`.
    """
    width = rows.shape[-1] // 4 * 4
    half = width // 2
    frequency = 1.0 / theta ** (torch.arange(0, half, 2, device=rows.device, dtype=torch.float32) / half)
    angles = (places.float().unsqueeze(-1) * frequency).repeat_interleave(2, dim=-1).flatten(1)  # (tokens, width)
    cos, sin = angles.cos().to(rows.dtype).unsqueeze(1), angles.sin().to(rows.dtype).unsqueeze(1)
    turned = rows[..., :width]
    pairs = turned.unflatten(-1, (-1, 2))
    quarter = torch.stack((-pairs[..., 1], pairs[..., 0]), dim=-1).flatten(-2)
    return torch.cat([turned * cos + quarter * sin, rows[..., width:]], dim=-1)


def expanded_bias(table: Float[Tensor, "heads side side"], window_size: int) -> Float[Tensor, "heads slots slots"]:
    """The bias of every pair of window slots, `[head, query slot, key slot]`, slots ordered as in `WindowMaps`."""
    return table.flatten(1)[:, slot_displacements(window_size, table.device)]


@functools.cache
def slot_displacements(window_size: int, device: torch.device) -> Int[Tensor, "slots slots"]:
    """Entry of a flattened table of displacements, for every (query slot, key slot) of a window."""
    offsets = window_offsets(window_size, device)
    delta = offsets[None, :] - offsets[:, None] + 2 * window_size - 1
    return delta[..., 0] * (4 * window_size - 1) + delta[..., 1]
