"""How do patch features become tokens? `Dropout(x W)`, after a LayerNorm where features are not normalised."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class InputProjection(nn.Module):
    """Features to the width of stage 0.

    Args:
        num_features: width of the patch features.
        width: width of stage 0.
        norm: LayerNorm first; for features whose channels have unlike scales.
        dropout: rate after the projection.
    """

    def __init__(self, num_features: int, width: int, *, norm: bool, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(num_features) if norm else nn.Identity()
        self.linear = nn.Linear(num_features, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Float[Tensor, "tokens features"]) -> Float[Tensor, "tokens width"]:
        """Projects every patch."""
        return self.dropout(self.linear(self.norm(features)))
