"""How do global tokens pass from one level to the next, where they have no place on the lattice?

    identity   unchanged; a Linear where the width changes
    proj       a Linear
    kernel     the local operator applied to a neighbourhood that is the token everywhere, mean over the taps

The first two after a LayerNorm of their own where the operator is pre-normalised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

TokenStrategy = Literal["identity", "proj", "kernel"]


class TokenTransition(nn.Module):
    """The way of the global tokens beside one operator.

    Args:
        in_channels: width before.
        out_channels: width after.
        strategy: see the module's docstring.
        norm: LayerNorm first; `kernel` uses the operator's own.
    """

    def __init__(self, in_channels: int, out_channels: int, strategy: TokenStrategy, *, norm: bool) -> None:
        super().__init__()
        self.strategy = strategy
        self.norm = nn.LayerNorm(in_channels) if norm and strategy != "kernel" else nn.Identity()
        projects = strategy == "proj" or (strategy == "identity" and in_channels != out_channels)
        self.projection = nn.Linear(in_channels, out_channels) if projects else nn.Identity()

    def forward(
        self, tokens: Float[Tensor, "slides globals in"], constant: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, "slides globals out"]:
        """Carries the tokens over; `constant` is the operator on a constant neighbourhood."""
        return constant(tokens) if self.strategy == "kernel" else self.projection(self.norm(tokens))
