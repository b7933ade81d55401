"""How does a coarse level become the finer one it was made of? On the encoder's sites of that level, in their order.

    pixelshuffle   z = Linear(C → s²·C');  child (dy, dx), channel c reads z[s²·c + s·dy + dx] of its parent
    patchinvs      spconv's inverse convolution
    dwpatchinvs    the same, depthwise

`pixelshuffle` has its LayerNorm before or after, as the down-sampling; the other two always after.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from span_sparse.errors import ConfigError
from span_sparse.nn.down_sampling import SamplingSettings
from span_sparse.nn.token_transition import TokenTransition
from span_sparse.sparse import InverseConvolution, KernelMap, Level, depthwise_convolution
from span_sparse.sparse.operators import on_device

UpKind = Literal["pixelshuffle", "patchinvs", "dwpatchinvs"]


class PixelShuffle(nn.Module):
    """`pixelshuffle`, initialised so that all children of a parent start equal (ICNR, Aitken et al. 2017)."""

    def __init__(self, in_channels: int, out_channels: int, settings: SamplingSettings) -> None:
        super().__init__()
        self.slots = settings.stride**2
        self.input_norm = nn.LayerNorm(in_channels) if settings.norm == "pre" else nn.Identity()
        self.output_norm = nn.LayerNorm(out_channels) if settings.norm == "post" else nn.Identity()
        self.linear = nn.Linear(in_channels, self.slots * out_channels, bias=settings.bias)
        shared = nn.init.kaiming_normal_(torch.empty(out_channels, in_channels), mode="fan_out")
        with torch.no_grad():
            self.linear.weight.copy_(shared.repeat_interleave(self.slots, dim=0))
        if self.linear.bias is not None:
            nn.init.zeros_(self.linear.bias)

    def forward(self, features: Float[Tensor, "coarse in"], children: KernelMap) -> Float[Tensor, "fine out"]:
        """Every fine row reads its slot of its parent."""
        by_slot = self._by_slot(features).flatten(0, 1)
        return self.output_norm(by_slot[children.slots_of_inputs])

    def constant(self, rows: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """The mean of a parent's children."""
        return self.output_norm(self._by_slot(rows).mean(dim=-2))

    def _by_slot(self, rows: Tensor) -> Tensor:
        return self.linear(self.input_norm(rows)).unflatten(-1, (-1, self.slots)).transpose(-1, -2)


class DepthwiseInverse(nn.Module):
    """The depthwise inverse convolution, weight `[taps, channels]`."""

    def __init__(self, channels: int, *, kernel_size: int, bias: bool) -> None:
        super().__init__()
        taps = kernel_size**2
        bound = taps**-0.5
        self.weight = nn.Parameter(torch.empty(taps, channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(
        self, features: Float[Tensor, "coarse channels"], children: KernelMap
    ) -> Float[Tensor, "fine channels"]:
        """Distributes every coarse row to the sites it was made of; on a CPU in the weights' dtype."""
        features = features if on_device(features) else features.to(self.weight.dtype)
        output = depthwise_convolution(features, self.weight, children.transposed)
        return output if self.bias is None else output + self.bias

    def constant(self, rows: Float[Tensor, "*rows channels"]) -> Float[Tensor, "*rows channels"]:
        """The mean over the taps of what one coarse row distributes."""
        output = rows * self.weight.mean(dim=0)
        return output if self.bias is None else output + self.bias


class InverseOperator(nn.Module):
    """`patchinvs` or `dwpatchinvs` with its LayerNorm."""

    def __init__(self, in_channels: int, out_channels: int, settings: SamplingSettings, *, depthwise: bool) -> None:
        super().__init__()
        kernel_size, bias = settings.kernel_size, settings.bias
        if depthwise:
            self.convolution = DepthwiseInverse(in_channels, kernel_size=kernel_size, bias=bias)
        else:
            self.convolution = InverseConvolution(in_channels, out_channels, kernel_size=kernel_size, bias=bias)
        self.output_norm = nn.LayerNorm(out_channels)

    def forward(self, features: Float[Tensor, "coarse in"], children: KernelMap) -> Float[Tensor, "fine out"]:
        """Distributes every coarse row to the sites it was made of."""
        return self.output_norm(self.convolution(features, children))

    def constant(self, rows: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """The mean over the taps of what one coarse row distributes."""
        return self.output_norm(self.convolution.constant(rows))


class UpSampling(nn.Module):
    """One up-sampling step for local and global tokens.

    Args:
        in_channels: width of the coarser level.
        out_channels: width of the finer level; must equal `in_channels` for `dwpatchinvs`.
        kind: which operation.
        settings: what all steps have in common.

    Raises:
        ConfigError: a kernel that `pixelshuffle` cannot have, or a change of width that `dwpatchinvs` cannot make.
    """

    def __init__(self, in_channels: int, out_channels: int, kind: UpKind, settings: SamplingSettings) -> None:
        super().__init__()
        if kind == "pixelshuffle" and (settings.kernel_size != settings.stride or settings.dilation != 1):
            raise ConfigError(
                f"up 'pixelshuffle' needs one parent for every patch: kernel_size {settings.kernel_size} must equal "
                f"stride {settings.stride} and dilation {settings.dilation} must be 1; or set up to 'patchinvs'"
            )
        if kind == "dwpatchinvs" and in_channels != out_channels:
            raise ConfigError(
                f"up 'dwpatchinvs' is depthwise and keeps the width, but {in_channels} → {out_channels} was asked for; "
                "set channel_factor to 1 and connection to 'add' or 'none', or up to 'patchinvs'"
            )
        if kind == "pixelshuffle":
            self.operator = PixelShuffle(in_channels, out_channels, settings)
        else:
            self.operator = InverseOperator(in_channels, out_channels, settings, depthwise=kind == "dwpatchinvs")
        self.tokens = TokenTransition(in_channels, out_channels, settings.token_strategy, norm=settings.norm == "pre")

    def forward(
        self,
        local_tokens: Float[Tensor, "coarse in"],
        global_tokens: Float[Tensor, "slides globals in"],
        coarser: Level,
    ) -> tuple[Float[Tensor, "fine out"], Float[Tensor, "slides globals out"]]:
        """Spreads the local tokens of `coarser` over the sites it was made of."""
        assert coarser.children is not None
        output = self.operator(local_tokens, coarser.children)
        return output, self.tokens(global_tokens, self.operator.constant)
