"""Which settings describe a network? Frozen data classes of plain values, so that a checkpoint holds them safely.

Defaults are the classification preset of the authors' code.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from span_sparse.errors import ConfigError
from span_sparse.nn import DownKind, EdgeMode, NormPosition, TokenStrategy

Activation = Literal["relu", "gelu"]
Head = Literal["multi_addition", "pyramid_pooling"]


@dataclass(frozen=True)
class SpanMilConfig:
    """SPAN-MIL: slide-level classification.

    Attributes:
        stages: one digit a pyramid level, the number of its transformer layers; `"111"` is three levels of one.
        embed_dim_div: width of stage 0 is the feature width over this.
        channel_factor: width of stage `i` is that of stage 0 times this to the power `i`.
        input_norm: LayerNorm of the features before the input projection.
        head_channels: width of one attention head.
        window_size: `w`; an attention window spans `2w × 2w` patches.
        down: down-sampling operation.
        kernel_size: taps per axis of the down-sampling.
        stride: down-sampling factor.
        dilation: step of the taps.
        down_bias: whether the down-sampling has a bias.
        norm: LayerNorm before or after the down-sampling.
        edge_mode: `count` divides by the number of active inputs, `none` does not.
        tokens: initial global tokens.
        token_strategy: how global tokens pass a down-sampling.
        ff_ratio: width of the feed-forward network over the width of the tokens.
        activation: of the feed-forward network.
        share_qkv: whether the global attention uses the window attention's projections.
        position_std: initial spread of the relative position bias.
        dropout_input: dropout after the input projection.
        dropout_attention: dropout after attention and in the feed-forward network.
        dropout_head: dropout before the last Linear.
        drop_path: rate at which a slide skips a residual branch.
        head: `multi_addition` (the authors') or `pyramid_pooling` (every parameter trains).
    """

    stages: str = "111"
    embed_dim_div: int = 2
    channel_factor: int = 1
    input_norm: bool = False
    head_channels: int = 64
    window_size: int = 3
    down: DownKind = "dwpatchconv"
    kernel_size: int = 2
    stride: int = 2
    dilation: int = 1
    down_bias: bool = False
    norm: NormPosition = "pre"
    edge_mode: EdgeMode = "count"
    tokens: list[str] = field(default_factory=lambda: ["lrn1e-4"])
    token_strategy: TokenStrategy = "identity"
    ff_ratio: float = 2.0
    activation: Activation = "relu"
    share_qkv: bool = False
    position_std: float = 0.02
    dropout_input: float = 0.05
    dropout_attention: float = 0.05
    dropout_head: float = 0.05
    drop_path: float = 0.0
    head: Head = "multi_addition"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints."""
        return asdict(self)

    def widths(self, num_features: int) -> list[int]:
        """Width of every stage for features of `num_features` channels.

        Raises:
            ConfigError: the settings do not fit together, with the reason.

        >>> SpanMilConfig().widths(1024)
        [512, 512, 512]
        """
        self._check()
        if num_features % self.embed_dim_div:
            raise ConfigError(
                f"embed_dim_div {self.embed_dim_div} does not divide the feature width {num_features}; "
                "choose a divisor of it"
            )
        first = num_features // self.embed_dim_div
        widths = [first * self.channel_factor**stage for stage in range(len(self.stages))]
        bad = [width for width in widths if width % self.head_channels]
        if bad:
            raise ConfigError(
                f"head_channels {self.head_channels} does not divide the stage widths {widths} "
                f"(feature width {num_features} / embed_dim_div {self.embed_dim_div}); "
                "choose another head_channels or embed_dim_div"
            )
        return widths

    def _check(self) -> None:
        if not self.stages.isdecimal():
            raise ConfigError(f"stages: expected one digit a pyramid level such as '111', found {self.stages!r}")
        if self.down == "dwpatchconv" and self.channel_factor != 1:
            raise ConfigError(
                f"down 'dwpatchconv' is depthwise and keeps the width, but channel_factor is {self.channel_factor}; "
                "set channel_factor to 1 or down to 'patchconv'"
            )
        if (self.kernel_size, self.stride, self.dilation) != (2, 2, 1):
            raise ConfigError(
                f"kernel_size {self.kernel_size}, stride {self.stride}, dilation {self.dilation}: "
                "only kernel 2, stride 2, dilation 1 are supported"
            )
        for name in ("dropout_input", "dropout_attention", "dropout_head", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected a rate in [0, 1), found {getattr(self, name)}")


@dataclass(frozen=True)
class MeanPoolingConfig:
    """Baseline without context: mean of the patch features, then a two-layer perceptron.

    Attributes:
        hidden: width of the hidden layer.
        dropout: before the last Linear.
    """

    hidden: int = 128
    dropout: float = 0.05

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints."""
        return asdict(self)


@dataclass(frozen=True)
class AttentionPoolingConfig:
    """Baseline without context: attention pooling of projected patch features (ABMIL, Ilse et al., ICML 2018).

    Attributes:
        hidden: width of the projected features.
        dropout: before the last Linear.
    """

    hidden: int = 128
    dropout: float = 0.05

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints."""
        return asdict(self)


NetworkConfig = SpanMilConfig | MeanPoolingConfig | AttentionPoolingConfig
"""Every network a classifier can be built from."""
