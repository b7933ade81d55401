"""Depthwise sparse convolution on an indice map; spconv has no groups.

    y_o = Σ_k w_k ⊙ x_{table[o, k]}        (absent inputs are zero)

The operator `span_sparse::depthwise`. Plain autograd over the taps would allocate one zero-filled `[tokens, channels]`
gradient per tap. On a CPU forward and backward touch every pair once; on CUDA every output gathers its inputs, and in
the backward pass, along the transposed map, every input its outputs: no row is written twice, so nothing depends on
the order of threads.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from span_sparse.sparse.indice_maps import KernelMap
from span_sparse.sparse.operators import has_kernels, on_device, operator


def depthwise_convolution(
    features: Float[Tensor, "tokens channels"], weight: Float[Tensor, "taps channels"], children: KernelMap
) -> Float[Tensor, "outputs channels"]:
    """Depthwise sparse convolution without bias; sums are at least float32, the output has the features' dtype.

    Args:
        features: rows of the map's inputs.
        weight: one vector a tap, taps row-major over the kernel.
        children: which input each tap of each output reads.
    """
    if on_device(features) and features.dtype != torch.float64:
        return _OnDevice.apply(features, weight, children)  # pyright: ignore[reportReturnType]
    return _OnCpu.apply(features, weight, children.table)  # pyright: ignore[reportReturnType]


class _OnCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, table: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(features, weight, table)
        output = features.new_zeros(table.shape[0], features.shape[1])
        for tap, inputs in enumerate(table.unbind(1)):
            active = (inputs >= 0).nonzero().squeeze(1)
            output.index_add_(0, active, features.index_select(0, inputs[active]).mul_(weight[tap]))
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        features, weight, table = ctx.saved_tensors
        grad_features, grad_weight = torch.zeros_like(features), torch.zeros_like(weight)
        for tap, inputs in enumerate(table.unbind(1)):
            active = (inputs >= 0).nonzero().squeeze(1)
            rows, grad_rows = inputs[active], grad.index_select(0, active)
            grad_weight[tap] = features.index_select(0, rows).mul_(grad_rows).sum(dim=0)
            grad_features.index_add_(0, rows, grad_rows.mul_(weight[tap]))
        return grad_features, grad_weight, None


class _OnDevice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, children: KernelMap) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(features, weight)
        ctx.children = children
        return gather_taps(features, weight, children.table)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        features, weight = ctx.saved_tensors
        children: KernelMap = ctx.children
        grad = grad.contiguous()
        by_input, by_weight, _ = ctx.needs_input_grad
        return (
            gather_taps(grad, weight, children.transposed.table) if by_input else None,
            tap_gradients(features, grad, children.table).to(weight.dtype) if by_weight else None,
            None,
        )


def _gather_fake(features: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    return features.new_empty(table.shape[0], features.shape[1])


@operator("depthwise", "(Tensor features, Tensor weight, Tensor table) -> Tensor", fake=_gather_fake, launches=1)
def gather_taps(features: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """`y_o = Σ_k w_k ⊙ x_{table[o, k]}`, in the features' dtype."""
    if not has_kernels(features):
        return _OnCpu.apply(features.to(weight.dtype), weight, table).to(features.dtype)  # pyright: ignore[reportAttributeAccessIssue]
    from span_sparse.sparse.depthwise_kernels import launch_gather

    return launch_gather(features.contiguous(), weight.contiguous(), table)


def _gradients_fake(features: Tensor, grad: Tensor, table: Tensor) -> Tensor:
    return features.new_empty(table.shape[1], features.shape[1], dtype=torch.float32)


@operator(
    "depthwise_weight_gradient",
    "(Tensor features, Tensor grad, Tensor table) -> Tensor",
    fake=_gradients_fake,
    launches=2,
)
def tap_gradients(features: Tensor, grad: Tensor, table: Tensor) -> Tensor:
    """`dw_k = Σ_o x_{table[o, k]} ⊙ dy_o`, float32."""
    if not has_kernels(features):
        rows = torch.cat([features, features.new_zeros(1, features.shape[1])])[
            table.long()
        ]  # (outputs, taps, channels)
        return torch.einsum("okc,oc->kc", rows.float(), grad.float()).contiguous()
    from span_sparse.sparse.depthwise_kernels import launch_tap_gradients

    return launch_tap_gradients(features.contiguous(), grad, table)
