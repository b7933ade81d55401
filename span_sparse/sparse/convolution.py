"""Strided sparse convolution and its inverse on indice maps; spconv's arithmetic, wrapped once.

    strided   y_o = b + Σ_k W_k x_{stride · o + dilation · k}            (absent inputs are zero)
    inverse   x_i = b + Σ_{(o, k): stride · o + dilation · k = i} W_k y_o    on the sites the strided one came from

Both read a map that is there already, as gathered products per tap (algorithm Native, the same on every device). The
wrapper deals with what spconv does silently (spconv 2.3.6 and 2.3.8): bias in evaluation mode fails on CPU, so the bias
is ours; evaluation mode on CUDA drops the autograd graph, so its function is called, not its module; bfloat16 is
unknown to it and CUDA autocast would compute in float16, so it runs outside autocast in the weights' dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn

from span_sparse.errors import BatchError
from span_sparse.sparse.backend import load_spconv, native_algorithm
from span_sparse.sparse.indice_maps import KernelMap, strided_map
from span_sparse.sparse.sites import SparseSites

MAX_TENSOR_BYTES = 2**31 - 1
"""spconv addresses a feature tensor with int32."""


class StridedConvolution(nn.Module):
    """A strided sparse convolution, kernel `[out, kernel, kernel, in]`, without padding.

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        kernel_size: taps per axis.
        stride: step of the outputs.
        bias: whether a learned bias is added.
        dilation: step of the taps.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        stride: int,
        bias: bool = False,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation
        self.spconv: Any = load_spconv().SparseConv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            dilation=dilation,
            bias=False,
            algo=native_algorithm(),
        )
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    @property
    def weight(self) -> Float[Tensor, "out kernel kernel in"]:
        """The kernel, as spconv holds it."""
        return self.spconv.weight

    def forward(self, features: Float[Tensor, "tokens in"], children: KernelMap) -> Float[Tensor, "outputs out"]:
        """Output features along the map of a convolution of this kernel, stride and dilation.

        Raises:
            BatchError: the feature tensor exceeds what spconv can address (2 GiB).
        """
        load_spconv()
        from spconv.pytorch.functional import indice_conv

        _check_size(features, self.weight)
        pairs, counts = _as_pairs(children)
        with torch.autocast(features.device.type, enabled=False):
            output = indice_conv(
                features.to(self.weight.dtype), self.weight, pairs, counts, children.num_outputs, native_algorithm()
            )
        return output if self.bias is None else output + self.bias

    def convolve(
        self, features: Float[Tensor, "tokens in"], sites: SparseSites
    ) -> tuple[SparseSites, KernelMap, Float[Tensor, "outputs out"]]:
        """Builds the map and convolves along it.

        Returns:
            The output sites, their map, and the output features, rows ordered by (slide, row, col).

        Raises:
            BatchError: the feature tensor exceeds what spconv can address (2 GiB).
        """
        outputs, children = strided_map(sites, self.kernel_size, self.stride, self.dilation)
        return outputs, children, self(features, children)

    def constant(self, rows: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """The output where every input of the neighbourhood is `rows`."""
        return torch.nn.functional.linear(rows, self.weight.sum(dim=(1, 2)), self.bias)

    def tap_magnitudes(self) -> Float[Tensor, "taps out"]:
        """`Σ_in |W|` of every tap and output channel."""
        return self.weight.abs().sum(dim=3).flatten(1).T


class InverseConvolution(nn.Module):
    """The inverse of a strided sparse convolution: back to the sites it came from, in their order.

    Args:
        in_channels: width of the coarser level.
        out_channels: width of the finer level.
        kernel_size: taps per axis.
        bias: whether a learned bias is added.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int, bias: bool = False) -> None:
        super().__init__()
        bound = (in_channels * kernel_size**2) ** -0.5  # kaiming-uniform with a = √5, as spconv's own layers
        weight = torch.empty(out_channels, kernel_size, kernel_size, in_channels).uniform_(-bound, bound)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, features: Float[Tensor, "coarse in"], children: KernelMap) -> Float[Tensor, "fine out"]:
        """Distributes every coarse row to the sites it was made of.

        Args:
            features: rows of `children`'s outputs.
            children: the map of the strided convolution that is undone.

        Raises:
            BatchError: the feature tensor exceeds what spconv can address (2 GiB).
        """
        load_spconv()
        from spconv.pytorch.functional import indice_inverse_conv

        _check_size(features, self.weight)
        pairs, counts = _as_pairs(children)
        with torch.autocast(features.device.type, enabled=False):
            output = indice_inverse_conv(
                features.to(self.weight.dtype), self.weight, pairs, counts, children.num_inputs, native_algorithm()
            )
        return output if self.bias is None else output + self.bias

    def constant(self, rows: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """The mean over the taps of what one coarse row distributes."""
        return torch.nn.functional.linear(rows, self.weight.mean(dim=(1, 2)), self.bias)


def _check_size(features: Tensor, weight: Tensor) -> None:
    if features.numel() * weight.element_size() > MAX_TENSOR_BYTES:
        raise BatchError(
            f"{features.shape[0]} tokens of {features.shape[1]} channels exceed spconv's limit of 2 GiB a tensor; "
            "use fewer slides a batch"
        )


def _as_pairs(children: KernelMap) -> tuple[Int32[Tensor, "2 taps inputs"], Int32[Tensor, " taps"]]:
    """The map as spconv's Native pairs: compacted per tap, -1 filled, with counts."""
    table = children.table.T
    active = table >= 0
    position = active.cumsum(dim=1, dtype=torch.int32)
    counts = position[:, -1].contiguous()
    columns = torch.where(active, position - 1, children.num_inputs).long()  # absent inputs write to a spare column
    pairs = table.new_full((2, children.num_taps, children.num_inputs + 1), -1)
    outputs = torch.arange(children.num_outputs, dtype=table.dtype, device=table.device).expand_as(table)
    pairs.scatter_(2, columns.expand(2, -1, -1), torch.stack([table, outputs]))
    return pairs[..., :-1].contiguous(), counts
