"""How does attention know where a key lies relative to its query?

One learned number for every head and displacement, as in Swin: `B_h[Δrow + 2w − 1, Δcol + 2w − 1]` with
`Δ = p_key − p_query` in lattice cells of the level; two tokens of one `2w × 2w` window are at most `2w − 1` apart.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from span_sparse.sparse.windows import window_offsets


class RelativePositionBias(nn.Module):
    """A learned bias for every displacement inside a window.

    Args:
        num_heads: attention heads.
        window_size: `w`.
        std: standard deviation of the truncated normal initialisation.
    """

    index: Tensor

    def __init__(self, num_heads: int, window_size: int, std: float) -> None:
        super().__init__()
        side = 4 * window_size - 1
        self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(num_heads, side, side), std=std))
        offsets = window_offsets(window_size, torch.device("cpu"))
        delta = offsets[None, :] - offsets[:, None] + 2 * window_size - 1  # (query slot, key slot, 2)
        self.register_buffer("index", delta[..., 0] * side + delta[..., 1], persistent=False)

    def forward(self) -> Float[Tensor, "heads slots slots"]:
        """The bias of every pair of window slots, `[head, query slot, key slot]`."""
        return self.table.flatten(1)[:, self.index]
