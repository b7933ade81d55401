"""How does a dense strided convolution run on sparse sites? spconv's `SparseConv2d`, wrapped once.

    y_o = b + Σ_k W_k x_{stride · o + dilation · k}        (absent inputs are zero)

The wrapper deals with what spconv does silently (spconv 2.3.6 and 2.3.8): bias in evaluation mode fails on CPU, so
the bias is ours; evaluation mode on CUDA drops the autograd graph, so spconv's layer stays in training mode (it has
neither dropout nor running statistics); bfloat16 is unknown to it and CUDA autocast would compute in float16, so it
runs outside autocast in the weights' dtype; output rows come in an order of its own, so they are sorted.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from span_sparse.errors import BatchError
from span_sparse.sparse.backend import convolution_algorithm, load_spconv, native_algorithm
from span_sparse.sparse.indice_maps import KernelMap, kernel_map
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
        stride: step of the outputs; the sites' extents must be multiples of it.
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
        self.convolution: Any = load_spconv().SparseConv2d(
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
        return self.convolution.weight

    def train(self, mode: bool = True) -> StridedConvolution:
        """Keeps spconv's layer in training mode, where gradients exist on every device."""
        super().train(mode)
        self.convolution.train(True)
        return self

    def forward(
        self, features: Float[Tensor, "tokens in"], sites: SparseSites
    ) -> tuple[SparseSites, KernelMap, Float[Tensor, "outputs out"]]:
        """Convolves.

        Returns:
            The output sites, the kernel map spconv used, and the output features, rows ordered by (slide, row, col).

        Raises:
            BatchError: the feature tensor exceeds what spconv can address (2 GiB).
        """
        weight = self.weight
        if features.numel() * weight.element_size() > MAX_TENSOR_BYTES:
            raise BatchError(
                f"{features.shape[0]} tokens of {features.shape[1]} channels exceed spconv's limit of 2 GiB a tensor; "
                "use fewer slides a batch"
            )
        self.convolution.algo = convolution_algorithm(features.device)
        with torch.autocast(features.device.type, enabled=False):
            tensor = load_spconv().SparseConvTensor(
                features.to(weight.dtype), sites.coords, list(sites.extents), sites.num_slides
            )
            result = self.convolution(tensor)
        outputs, order = ordered_sites(result.indices, sites.num_slides, tuple(result.spatial_shape))
        table = kernel_map(result.indice_dict[_KEY], len(sites), order)
        output = result.features[order]
        return outputs, table, output if self.bias is None else output + self.bias
