"""How do patch features become tokens?

    Dropout(x W)                                          without activation; the authors' default has no bias
    Linear(F → F · mlp_ratio) → act → Dropout → Linear    with one

optionally after a LayerNorm, for features whose channels have unlike scales.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn


class InputProjection(nn.Module):
    """Features to the width of stage 0.

    Args:
        num_features: width of the patch features.
        width: width of stage 0.
        norm: LayerNorm first.
        bias: whether the Linears have a bias.
        activation: makes the activation; None for a single Linear.
        mlp_ratio: hidden width over `num_features`, with an activation.
        dropout: rate after the single Linear, or after the activation.
        dropout_first: without an activation, dropout before the Linear instead of after.
    """

    def __init__(
        self,
        num_features: int,
        width: int,
        *,
        norm: bool,
        bias: bool,
        activation: Callable[[], nn.Module] | None,
        mlp_ratio: float,
        dropout: float,
        dropout_first: bool,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(num_features) if norm else nn.Identity()
        drop = nn.Dropout(dropout)
        if activation is None:
            self.hidden = drop if dropout_first else nn.Identity()
            self.linear = nn.Linear(num_features, width, bias=bias)
            self.dropout = nn.Identity() if dropout_first else drop
        else:
            hidden = int(num_features * mlp_ratio)
            self.hidden = nn.Sequential(nn.Linear(num_features, hidden, bias=bias), activation(), drop)
            self.linear = nn.Linear(hidden, width, bias=bias)
            self.dropout = nn.Identity()

    def forward(self, features: Float[Tensor, "*rows features"]) -> Float[Tensor, "*rows width"]:
        """Projects every row."""
        return self.dropout(self.linear(self.hidden(self.norm(features))))
