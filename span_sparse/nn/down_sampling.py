"""How does a level of the pyramid become the next coarser one? Spatial-adaptive feature condensation (SAC).

A strided sparse operation with kernel 2 and stride 2; an output cell is active when one of its inputs is. No site is
ever dropped, and there is no activation in this path:

    patchconv     y_o = b + Σ_k W_k x̃_{2o+k}        spconv's strided sparse convolution
    dwpatchconv   y_o = b + Σ_k w_k ⊙ x̃_{2o+k}      depthwise, on spconv's indice map

`x̃ = LayerNorm(x)` for `norm = "pre"`; with `"post"` the output is normalised instead. With `edge_mode = "count"` the
result, bias included, is divided by the number of active inputs, so that a cell at the tissue's edge is a mean like any
other.

Global tokens pass through (`identity`; a Linear where widths differ) or are projected (`proj`), with `pre` after a
LayerNorm of their own.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from span_sparse.sparse import KernelMap, Level, StridedConvolution, depthwise_convolution

DownKind = Literal["patchconv", "dwpatchconv"]
NormPosition = Literal["pre", "post"]
EdgeMode = Literal["none", "count"]
TokenStrategy = Literal["identity", "proj"]


class DepthwiseConvolution(nn.Module):
    """A depthwise strided sparse convolution, weight `[taps, channels]`, initialised like `torch.nn.Conv2d`."""

    def __init__(self, channels: int, *, kernel_size: int, bias: bool) -> None:
        super().__init__()
        taps = kernel_size**2
        bound = taps**-0.5  # kaiming-uniform with a = √5 and fan-in `taps`
        self.weight = nn.Parameter(torch.empty(taps, channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(
        self, features: Float[Tensor, "tokens channels"], children: KernelMap
    ) -> Float[Tensor, "outputs channels"]:
        """Sums each output's inputs, weighted by tap and channel."""
        output = depthwise_convolution(features, self.weight, children)
        return output if self.bias is None else output + self.bias


class DownSampling(nn.Module):
    """One down-sampling step for local and global tokens.

    Args:
        in_channels: width of the finer level.
        out_channels: width of the coarser level; must equal `in_channels` for `dwpatchconv`.
        kind: which operation.
        kernel_size: taps per axis.
        stride: down-sampling factor.
        dilation: step of the taps.
        bias: whether the operation has a bias.
        norm: where the LayerNorm stands.
        edge_mode: how outputs with fewer active inputs are scaled.
        token_strategy: what happens to the global tokens.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kind: DownKind,
        kernel_size: int,
        stride: int,
        dilation: int,
        bias: bool,
        norm: NormPosition,
        edge_mode: EdgeMode,
        token_strategy: TokenStrategy,
    ) -> None:
        super().__init__()
        self.edge_mode = edge_mode
        self.input_norm = nn.LayerNorm(in_channels) if norm == "pre" else nn.Identity()
        self.output_norm = nn.LayerNorm(out_channels) if norm == "post" else nn.Identity()
        self.token_norm = nn.LayerNorm(in_channels) if norm == "pre" else nn.Identity()
        keeps_tokens = token_strategy == "identity" and in_channels == out_channels
        self.token_projection = nn.Identity() if keeps_tokens else nn.Linear(in_channels, out_channels)
        if kind == "dwpatchconv":
            self.operation = DepthwiseConvolution(in_channels, kernel_size=kernel_size, bias=bias)
        else:
            self.operation = StridedConvolution(
                in_channels, out_channels, kernel_size=kernel_size, stride=stride, dilation=dilation, bias=bias
            )

    def forward(
        self,
        local_tokens: Float[Tensor, "tokens in"],
        global_tokens: Float[Tensor, "slides globals in"],
        finer: Level,
        coarser: Level,
    ) -> tuple[Float[Tensor, "outputs out"], Float[Tensor, "slides globals out"]]:
        """Condenses the local tokens of `finer` into those of `coarser`."""
        assert coarser.children is not None
        normed = self.input_norm(local_tokens)
        if isinstance(self.operation, StridedConvolution):
            _, _, output = self.operation(normed, finer.sites)
        else:
            output = self.operation(normed, coarser.children)
        if self.edge_mode == "count":
            output = output / coarser.children.active_counts().unsqueeze(1)
        return self.output_norm(output), self.token_projection(self.token_norm(global_tokens))
