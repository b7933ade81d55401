"""How does a depthwise convolution run on sparse sites? spconv has no groups, so it reads the kernel map itself.

    y_o = Σ_k w_k ⊙ x_{table[o, k]}        (absent inputs are zero)

Plain autograd over the taps would allocate one zero-filled `[tokens, channels]` gradient per tap; written out, forward
and backward touch every pair once.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from span_sparse.sparse.indice_maps import KernelMap


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, table: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(features, weight, table)
        output = features.new_zeros(table.shape[0], features.shape[1])
        for tap, inputs in enumerate(table.unbind(1)):
            active = (inputs >= 0).nonzero().squeeze(1)
            output.index_add_(0, active, features.index_select(0, inputs[active]).mul_(weight[tap]))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        features, weight, table = ctx.saved_tensors
        grad_features, grad_weight = torch.zeros_like(features), torch.zeros_like(weight)
        for tap, inputs in enumerate(table.unbind(1)):
            active = (inputs >= 0).nonzero().squeeze(1)
            rows, grad_rows = inputs[active], grad.index_select(0, active)
            grad_weight[tap] = features.index_select(0, rows).mul_(grad_rows).sum(dim=0)
            grad_features.index_add_(0, rows, grad_rows.mul_(weight[tap]))
        return grad_features, grad_weight, None


def depthwise_convolution(
    features: Float[Tensor, "tokens channels"], weight: Float[Tensor, "taps channels"], children: KernelMap
) -> Float[Tensor, "outputs channels"]:
    """Depthwise sparse convolution without bias.

    Args:
        features: rows of the map's inputs.
        weight: one vector a tap, taps row-major over the kernel.
        children: which input each tap of each output reads.
    """
    return _Depthwise.apply(features, weight, children.table)  # pyright: ignore[reportReturnType]
