"""Input projection: patch features to tokens.

    Dropout(x W)                                          without activation; the authors' default has no bias
    Linear(F → F · mlp_ratio) → act → Dropout → Linear    with one

optionally after a LayerNorm, for features whose channels have unlike scales.

Features are the widest rows of a batch, and they stay in memory with it. Where autocast narrows them for the product,
the narrow copy is made again in the backward pass instead of being kept beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from span_sparse.nn.add_norm import compute_dtype
from span_sparse.sparse.operators import on_device


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
        rows = self.hidden(self.norm(features))
        if rows is features and on_device(rows) and compute_dtype(rows) != rows.dtype:
            return self.dropout(_NarrowedLinear.apply(rows, self.linear.weight, self.linear.bias, compute_dtype(rows)))
        return self.dropout(self.linear(rows))


class _NarrowedLinear(torch.autograd.Function):
    """A Linear in a narrower dtype, as under autocast, that keeps its input as it was given."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(rows, weight)
        ctx.dtype, ctx.bias_dtype = dtype, None if bias is None else bias.dtype
        with torch.autocast(rows.device.type, enabled=False):
            return F.linear(rows.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, weight = ctx.saved_tensors
        by_rows, by_weight, by_bias, _ = ctx.needs_input_grad
        grad = grad.to(ctx.dtype)
        return (
            (grad @ weight.to(ctx.dtype)).to(rows.dtype) if by_rows else None,
            (grad.flatten(0, -2).mT @ rows.to(ctx.dtype).flatten(0, -2)).to(weight.dtype) if by_weight else None,
            grad.flatten(0, -2).sum(dim=0, dtype=torch.float32).to(ctx.bias_dtype) if by_bias else None,
            None,
        )
