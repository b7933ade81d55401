"""How does a dense strided convolution run on sparse sites, and how is it undone? spconv's, wrapped once.

    strided   y_o = b + Σ_k W_k x_{stride · o + dilation · k}            (absent inputs are zero)
    inverse   x_i = b + Σ_{(o, k): stride · o + dilation · k = i} W_k y_o    on the sites the strided one came from

The wrapper deals with what spconv does silently (spconv 2.3.6 and 2.3.8): bias in evaluation mode fails on CPU, so
the bias is ours; evaluation mode on CUDA drops the autograd graph, so spconv's layer stays in training mode (it has
neither dropout nor running statistics); bfloat16 is unknown to it and CUDA autocast would compute in float16, so it
runs outside autocast in the weights' dtype; output rows come in an order of its own, so they are sorted.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn

from span_sparse.errors import BatchError
from span_sparse.sparse.backend import convolution_algorithm, load_spconv, native_algorithm
from span_sparse.sparse.indice_maps import KernelMap, kernel_map, padded_extents
from span_sparse.sparse.sites import SparseSites, ordered_sites

MAX_TENSOR_BYTES = 2**31 - 1
"""spconv addresses a feature tensor with int32."""

_KEY = "down"


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
            indice_key=_KEY,
            algo=native_algorithm(),
        )
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    @property
    def weight(self) -> Float[Tensor, "out kernel kernel in"]:
        """The kernel, as spconv holds it."""
        return self.spconv.weight

    def train(self, mode: bool = True) -> StridedConvolution:
        """Keeps spconv's layer in training mode, where gradients exist on every device."""
        super().train(mode)
        self.spconv.train(True)
        return self

    def forward(self, features: Float[Tensor, "tokens in"], sites: SparseSites) -> Float[Tensor, "outputs out"]:
        """Output features, rows ordered by (slide, row, col); see `convolve`."""
        return self.convolve(features, sites)[2]

    def convolve(
        self, features: Float[Tensor, "tokens in"], sites: SparseSites
    ) -> tuple[SparseSites, KernelMap, Float[Tensor, "outputs out"]]:
        """Convolves.

        Returns:
            The output sites, the kernel map spconv used, and the output features, rows ordered by (slide, row, col).

        Raises:
            BatchError: the feature tensor exceeds what spconv can address (2 GiB).
        """
        weight = self.weight
        _check_size(features, weight)
        self.spconv.algo = convolution_algorithm(features.device)
        with torch.autocast(features.device.type, enabled=False):
            extents = padded_extents(sites, self.kernel_size, self.stride, self.dilation)
            tensor = load_spconv().SparseConvTensor(features.to(weight.dtype), sites.coords, extents, sites.num_slides)
            result = self.spconv(tensor)
        outputs, order = ordered_sites(result.indices, sites.num_slides, tuple(result.spatial_shape))
        table = kernel_map(result.indice_dict[_KEY], len(sites), order)
        output = result.features[order]
        return outputs, table, output if self.bias is None else output + self.bias

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
    tap, output = (children.table.T >= 0).nonzero(as_tuple=True)
    counts = torch.bincount(tap, minlength=children.num_taps)
    position = torch.arange(len(tap), device=tap.device) - (counts.cumsum(0) - counts)[tap]
    pairs = children.table.new_full((2, children.num_taps, children.num_inputs), -1)
    pairs[0, tap, position], pairs[1, tap, position] = children.table[output, tap], output
    return pairs.int(), counts.int()
