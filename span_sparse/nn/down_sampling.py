"""How does a level of the pyramid become the next coarser one? Spatial-adaptive feature condensation (SAC).

A strided sparse operation, kernel 2 and stride 2 by default; an output cell is active when one of its inputs is. No
site is ever dropped, and there is no activation in this path:

    patchconv     y_o = b + Σ_k W_k x̃_{s·o + d·k}       spconv's strided sparse convolution
    dwpatchconv   y_o = b + Σ_k w_k ⊙ x̃_{s·o + d·k}     depthwise, on spconv's indice map
    patchmerge    y_o = b + W [x_{2o}; …; x_{2o+3}]~      the four children side by side, zeros where absent

`~` is a LayerNorm for `norm = "pre"`; with `"post"` the output is normalised instead. Edges of the tissue:

    none      nothing
    count     the result, bias included, over the number of active inputs (patchmerge: its input, before the LayerNorm)
    partial   y_c / max(ε, Σ_{k active} Σ_in |W_{c,in,k}|)       (patchmerge: as `count`)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from span_sparse.errors import ConfigError
from span_sparse.nn.add_norm import add_norm
from span_sparse.nn.execution import current_execution
from span_sparse.nn.token_transition import TokenStrategy, TokenTransition
from span_sparse.sparse import KernelMap, Level, StridedConvolution, depthwise_convolution
from span_sparse.sparse.operators import on_device

DownKind = Literal["patchconv", "dwpatchconv", "patchmerge"]
NormPosition = Literal["pre", "post"]
EdgeMode = Literal["none", "count", "partial"]


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """What all steps between levels have in common.

    Attributes:
        kernel_size: taps per axis.
        stride: factor between levels.
        dilation: step of the taps.
        bias: whether the operation has a bias.
        norm: LayerNorm before or after the operation.
        edge_mode: how outputs with fewer active inputs are scaled (down-sampling only).
        edge_eps: `ε` of `partial`.
        token_strategy: how global tokens pass.
    """

    kernel_size: int
    stride: int
    dilation: int
    bias: bool
    norm: NormPosition
    edge_mode: EdgeMode
    edge_eps: float
    token_strategy: TokenStrategy


class DepthwiseConvolution(nn.Module):
    """A depthwise strided sparse convolution, weight `[taps, channels]`, initialised like `torch.nn.Conv2d`."""

    def __init__(self, channels: int, *, kernel_size: int, bias: bool) -> None:
        super().__init__()
        taps = kernel_size**2
        bound = taps**-0.5  # kaiming-uniform with a = √5 and fan-in `taps`
        self.weight = nn.Parameter(torch.empty(taps, channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(
        self, features: Float[Tensor, "tokens channels"], kernel_map: KernelMap
    ) -> Float[Tensor, "outputs channels"]:
        """Sums each output's inputs, weighted by tap and channel; on a CPU in the weights' dtype."""
        features = features if on_device(features) else features.to(self.weight.dtype)
        output = depthwise_convolution(features, self.weight, kernel_map)
        return output if self.bias is None else output + self.bias

    def constant(self, rows: Float[Tensor, "*rows channels"]) -> Float[Tensor, "*rows channels"]:
        """The output where every input of the neighbourhood is `rows`."""
        output = rows * self.weight.sum(dim=0)
        return output if self.bias is None else output + self.bias

    def tap_magnitudes(self) -> Float[Tensor, "taps channels"]:
        """`|w|` of every tap and channel."""
        return self.weight.abs()


class ConvolutionOperator(nn.Module):
    """`patchconv` or `dwpatchconv` with its LayerNorm and edge correction."""

    def __init__(self, in_channels: int, out_channels: int, settings: SamplingSettings, *, depthwise: bool) -> None:
        super().__init__()
        self.edge_mode, self.edge_eps = settings.edge_mode, settings.edge_eps
        self.input_norm = nn.LayerNorm(in_channels) if settings.norm == "pre" else nn.Identity()
        self.output_norm = nn.LayerNorm(out_channels) if settings.norm == "post" else nn.Identity()
        if depthwise:
            self.convolution = DepthwiseConvolution(in_channels, kernel_size=settings.kernel_size, bias=settings.bias)
        else:
            self.convolution = StridedConvolution(
                in_channels,
                out_channels,
                kernel_size=settings.kernel_size,
                stride=settings.stride,
                dilation=settings.dilation,
                bias=settings.bias,
            )

    def forward(self, features: Float[Tensor, "tokens in"], children: KernelMap) -> Float[Tensor, "outputs out"]:
        """Condenses the rows along `children`."""
        normed = _normed(features, self.input_norm)
        output = self.convolution(normed, children)
        if self.edge_mode == "count":
            output = output / children.active_counts.unsqueeze(1)
        elif self.edge_mode == "partial":
            active = (children.table >= 0).to(output.dtype)
            output = output / (active @ self.convolution.tap_magnitudes()).clamp(min=self.edge_eps)
        return _normed(output, self.output_norm)

    def constant(self, rows: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """The operator on a constant neighbourhood without edge correction."""
        return self.output_norm(self.convolution.constant(self.input_norm(rows)))


def _normed(rows: Tensor, norm: nn.Module) -> Tensor:
    """The rows' LayerNorm, where there is one."""
    if isinstance(norm, nn.LayerNorm) and current_execution(rows.device).operators and rows.dtype != torch.float64:
        return add_norm(rows, None, norm)[1]
    return norm(rows)


class MergeOperator(nn.Module):
    """`patchmerge`: the children side by side, in slot order, through a Linear."""

    def __init__(self, in_channels: int, out_channels: int, settings: SamplingSettings) -> None:
        super().__init__()
        self.slots = settings.stride**2
        self.edge_mode = settings.edge_mode
        merged = self.slots * in_channels
        self.input_norm = nn.LayerNorm(merged) if settings.norm == "pre" else nn.Identity()
        self.output_norm = nn.LayerNorm(out_channels) if settings.norm == "post" else nn.Identity()
        self.linear = nn.Linear(merged, out_channels, bias=settings.bias)

    def forward(self, features: Float[Tensor, "tokens in"], children: KernelMap) -> Float[Tensor, "outputs out"]:
        """Condenses the rows along `children`."""
        padded = torch.cat([features, features.new_zeros(1, features.shape[1])])
        merged = padded[children.table.long()].flatten(1)  # slot-major; -1 reads the zeros
        if self.edge_mode != "none":
            merged = merged / children.active_counts.unsqueeze(1)
        return self.output_norm(self.linear(self.input_norm(merged)))

    def constant(self, rows: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """The operator on four equal children without edge correction."""
        return self.output_norm(self.linear(self.input_norm(torch.cat([rows] * self.slots, dim=-1))))


class DownSampling(nn.Module):
    """One down-sampling step for local and global tokens.

    Args:
        in_channels: width of the finer level.
        out_channels: width of the coarser level; must equal `in_channels` for `dwpatchconv`.
        kind: which operation.
        settings: what all steps have in common.

    Raises:
        ConfigError: a kernel that `patchmerge` cannot have, or a change of width that `dwpatchconv` cannot make.
    """

    def __init__(self, in_channels: int, out_channels: int, kind: DownKind, settings: SamplingSettings) -> None:
        super().__init__()
        if kind == "dwpatchconv" and in_channels != out_channels:
            raise ConfigError(
                f"down 'dwpatchconv' is depthwise and keeps the width, but {in_channels} → {out_channels} was asked "
                "for; set channel_factor to 1 or down to 'patchconv'"
            )
        if kind == "patchmerge" and (settings.kernel_size != settings.stride or settings.dilation != 1):
            raise ConfigError(
                f"down 'patchmerge' reads disjoint blocks: kernel_size {settings.kernel_size} must equal stride "
                f"{settings.stride} and dilation {settings.dilation} must be 1"
            )
        if kind == "patchmerge":
            self.operator = MergeOperator(in_channels, out_channels, settings)
        else:
            self.operator = ConvolutionOperator(in_channels, out_channels, settings, depthwise=kind == "dwpatchconv")
        self.tokens = TokenTransition(in_channels, out_channels, settings.token_strategy, norm=settings.norm == "pre")

    def forward(
        self,
        local_tokens: Float[Tensor, "tokens in"],
        global_tokens: Float[Tensor, "slides globals in"],
        coarser: Level,
    ) -> tuple[Float[Tensor, "outputs out"], Float[Tensor, "slides globals out"]]:
        """Condenses the local tokens of the finer level into those of `coarser`."""
        assert coarser.children is not None
        output = self.operator(local_tokens, coarser.children)
        return output, self.tokens(global_tokens, self.operator.constant)
