"""Which settings describe a network? Frozen data classes of plain values, so that a checkpoint holds them safely.

`PyramidConfig` is what both variants share. The defaults of `SpanMilConfig`, `SpanSurvivalConfig` and `SpanUnetConfig`
are the presets of the paper, also under the names `span_mil`, `span_survival` and `span_unet`; in Python as in YAML
(`class_path: span_sparse.models.span_survival`) any setting can be overridden.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from span_sparse.errors import ConfigError
from span_sparse.nn import (
    AttentionMode,
    Connection,
    DownKind,
    EdgeMode,
    HeadKind,
    NormPosition,
    Positions,
    TokenStrategy,
    UpKind,
    reads_locals,
    reads_patches,
    writes_globals,
)

Activation = Literal["relu", "gelu", "silu", "tanh"]
SkipOrder = Literal["after_attention", "before_attention"]


@dataclass(frozen=True)
class PyramidConfig:
    """The settings of encoder and attention.

    Attributes:
        stages: one digit a pyramid level, the number of its transformer layers; `"111"` (or `[1, 1, 1]`) is three
            levels of one; `"111-11"` adds a decoder.
        embed_dim_div: width of stage 0 is the feature width over this.
        channel_factor: width of stage `i` is that of stage 0 times this to the power `i`.
        head_channels: width of one attention head.
        input_norm: LayerNorm of the features before the input projection.
        input_bias: whether the input projection has a bias.
        input_activation: None for one Linear, else a perceptron with this activation.
        input_mlp_ratio: its hidden width over the feature width.
        input_dropout_first: dropout before the single Linear instead of after.
        attention: which attentions a layer has.
        positions: how positions enter the attention.
        position_std: initial spread of the relative position bias.
        window_size: `w`; an attention window spans `2w × 2w` patches.
        share_qkv: whether the second attention uses the first one's projections.
        ff_ratio: width of the feed-forward network over the width of the tokens.
        activation: of the feed-forward network.
        down: down-sampling operation.
        kernel_size: taps per axis between levels.
        stride: factor between levels.
        dilation: step of the taps.
        sampling_bias: whether the operations between levels have a bias.
        norm: LayerNorm before or after them.
        edge_mode: how cells with fewer active inputs are scaled.
        edge_eps: smallest divisor of `partial`.
        tokens: initial global tokens, see `GlobalTokens`.
        token_strategy: how global tokens pass between levels.
        dropout_input: rate in the input projection.
        dropout_attention: rate after attention and in the feed-forward network.
        drop_path: rate at which a slide skips a residual branch.
    """

    stages: str | list[int] = "111"
    embed_dim_div: int = 2
    channel_factor: int = 1
    head_channels: int = 64
    input_norm: bool = False
    input_bias: bool = False
    input_activation: Activation | None = None
    input_mlp_ratio: float = 0.5
    input_dropout_first: bool = False
    attention: AttentionMode = "long"
    positions: Positions = "rpb"
    position_std: float = 0.02
    window_size: int = 3
    share_qkv: bool = False
    ff_ratio: float = 2.0
    activation: Activation = "relu"
    down: DownKind = "dwpatchconv"
    kernel_size: int = 2
    stride: int = 2
    dilation: int = 1
    sampling_bias: bool = False
    norm: NormPosition = "pre"
    edge_mode: EdgeMode = "count"
    edge_eps: float = 1e-6
    tokens: list[str] = field(default_factory=lambda: ["lrn1e-4"])
    token_strategy: TokenStrategy = "identity"
    dropout_input: float = 0.05
    dropout_attention: float = 0.05
    drop_path: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints."""
        return asdict(self)

    def depths(self) -> tuple[list[int], list[int]]:
        """Transformer layers of every encoder and of every decoder stage.

        Raises:
            ConfigError: `stages` is not of the grammar, or the decoder is not one stage shorter than the encoder.

        >>> SpanUnetConfig(stages="121-11").depths()
        ([1, 2, 1], [1, 1])
        """
        if isinstance(self.stages, list):
            parts = [self.stages]
        else:
            if not isinstance(self.stages, str):
                raise ConfigError(f"stages: expected digits in quotes such as '111', found the number {self.stages!r}")
            if not all(part.isdecimal() for part in self.stages.split("-")):
                raise ConfigError(
                    f"stages: expected one digit a pyramid level such as '111' or '111-11', found {self.stages!r}"
                )
            parts = [[int(digit) for digit in part] for part in self.stages.split("-")]
        encoder, decoder = parts[0], parts[1] if len(parts) == 2 else []
        if len(parts) > 2 or not encoder or min(encoder + decoder) < 0:
            raise ConfigError(f"stages: expected '<encoder>' or '<encoder>-<decoder>', found {self.stages!r}")
        if decoder and len(decoder) != len(encoder) - 1:
            raise ConfigError(
                f"stages {self.stages!r}: a decoder has one stage fewer than its encoder, expected "
                f"{len(encoder) - 1}, found {len(decoder)}"
            )
        return encoder, decoder

    def widths(self, num_features: int) -> list[int]:
        """Width of every encoder stage for features of `num_features` channels.

        Raises:
            ConfigError: the settings do not fit together, with the reason.

        >>> SpanMilConfig().widths(1024)
        [512, 512, 512]
        """
        self._check()
        if self.embed_dim_div < 1 or num_features % self.embed_dim_div:
            raise ConfigError(
                f"embed_dim_div {self.embed_dim_div} does not divide the feature width {num_features}; "
                "choose a divisor of it"
            )
        first = num_features // self.embed_dim_div
        widths = [first * self.channel_factor**stage for stage in range(len(self.depths()[0]))]
        if any(width % self.head_channels for width in widths):
            raise ConfigError(
                f"head_channels {self.head_channels} does not divide the stage widths {widths} "
                f"(feature width {num_features} / embed_dim_div {self.embed_dim_div}); "
                "choose another head_channels or embed_dim_div"
            )
        return widths

    def _check(self) -> None:
        """Refuses values that cannot work whatever the features are."""
        for name, kind in get_type_hints(type(self)).items():
            choices = [
                choice for part in (kind, *get_args(kind)) if get_origin(part) is Literal for choice in get_args(part)
            ]
            if choices and getattr(self, name) not in (
                *choices,
                *(() if type(None) not in get_args(kind) else (None,)),
            ):
                raise ConfigError(f"{name}: expected one of {', '.join(choices)}, found {getattr(self, name)!r}")
        for name in ("channel_factor", "head_channels", "window_size", "kernel_size", "stride", "dilation"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, found {getattr(self, name)}")
        for name in (name for name in self.as_dict() if name.startswith("drop")):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected a rate in [0, 1), found {getattr(self, name)}")
        if self.kernel_size < self.stride:
            raise ConfigError(
                f"kernel_size {self.kernel_size} is smaller than stride {self.stride}: patches between the kernels "
                "would be dropped; use a kernel at least as large as the stride"
            )
        for name in ("ff_ratio", "input_mlp_ratio", "edge_eps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}: expected a positive number, found {getattr(self, name)}")
        if not 0 <= self.position_std < float("inf"):
            raise ConfigError(f"position_std: expected 0 or more, found {self.position_std}")


@dataclass(frozen=True)
class SpanMilConfig(PyramidConfig):
    """SPAN-MIL: one row of outputs a slide (classes, or hazards of a survival model).

    Attributes:
        head: how the tokens of all stages become one row.
        head_norm: LayerNorm in `multi_addition` and `concat`.
        head_activation: of `multiattn`'s scoring perceptron.
        head_divisor: width of the tokens over the hidden width of that perceptron.
        dropout_head: rate before the last Linear.
    """

    head: HeadKind = "multi_addition"
    head_norm: bool = True
    head_activation: Activation = "relu"
    head_divisor: int = 4
    dropout_head: float = 0.05

    def _check(self) -> None:
        super()._check()
        if self.depths()[1]:
            raise ConfigError(f"stages {self.stages!r}: a slide-level model has no decoder; use SpanUnetConfig")
        if not reads_locals(self.head) and not writes_globals(self.attention):
            raise ConfigError(
                f"head {self.head!r} reads global tokens only, and attention {self.attention!r} never writes them: "
                "every slide would get the same answer; use attention 'long' or a head that reads local tokens "
                "('addition', 'multiattn', 'pyramid_pooling')"
            )
        if not reads_locals(self.head) and not any(self.depths()[0]) and not reads_patches(self.tokens):
            raise ConfigError(
                f"head {self.head!r} reads global tokens only, and without a layer in stages {self.stages!r} nothing "
                "writes them: every slide would get the same answer; give a stage a layer, for example '111'"
            )
        if self.head_divisor < 1:
            raise ConfigError(f"head_divisor: expected at least 1, found {self.head_divisor}")
        if self.channel_factor != 1 and self.head not in ("last", "addition"):
            raise ConfigError(
                f"head {self.head!r} joins the stages and needs them equally wide, but channel_factor is "
                f"{self.channel_factor}; set it to 1 or head to 'last' or 'addition'"
            )


@dataclass(frozen=True)
class SpanUnetConfig(PyramidConfig):
    """SPAN-UNet: one row of outputs a patch; defaults are the segmentation preset of the paper.

    Attributes:
        up: up-sampling operation.
        connection: how the encoder's tokens of a level join the decoder's.
        skip_order: join after the attention of a level (the authors' default) or before it, through a Linear.
        decoder_attention: which attentions the decoder's layers have; None as the encoder's.
    """

    stages: str | list[int] = "111-11"
    channel_factor: int = 2
    down: DownKind = "patchconv"
    norm: NormPosition = "post"
    edge_mode: EdgeMode = "none"
    tokens: list[str] = field(default_factory=lambda: ["max", "mean", "fix1e-4"])
    token_strategy: TokenStrategy = "proj"
    up: UpKind = "pixelshuffle"
    connection: Connection = "concat"
    skip_order: SkipOrder = "after_attention"
    decoder_attention: AttentionMode | None = None

    def _check(self) -> None:
        super()._check()
        encoder, decoder = self.depths()
        if not decoder and len(encoder) > 1:
            raise ConfigError(f"stages {self.stages!r}: a segmentation model needs a decoder, for example '111-11'")


@dataclass(frozen=True)
class SpanSurvivalConfig(SpanMilConfig):
    """SPAN-MIL with the survival preset of the paper; the outputs are the logits of discrete-time hazards."""

    norm: NormPosition = "post"
    share_qkv: bool = True
    ff_ratio: float = 4.0
    head_norm: bool = False


span_mil = SpanMilConfig
"""The classification preset: 9,735,514 parameters for 1,024 features and two classes."""

span_survival = SpanSurvivalConfig
"""The survival preset."""

span_unet = SpanUnetConfig
"""The segmentation preset: 104,955,346 parameters for 1,024 features and two classes."""


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


TorchmilName = Literal["abmil", "clam_sb", "dsmil", "transmil"]


@dataclass(frozen=True)
class TorchmilConfig:
    """Baseline of the library torchmil (`pip install 'span-sparse[baselines]'`), for two classes.

    Attributes:
        name: ABMIL (gated; Ilse et al., 2018), CLAM with one branch (Lu et al., 2021), DSMIL (Li et al., 2021) or
            TransMIL (Shao et al., 2021).
        hidden: width to which the features are projected, Linear and ReLU.
    """

    name: TorchmilName = "abmil"
    hidden: int = 512

    def __post_init__(self) -> None:
        if self.name not in get_args(TorchmilName) or self.hidden < 8 or self.hidden % 8:
            raise ConfigError(
                f"name {self.name!r} must be one of {', '.join(get_args(TorchmilName))}, hidden {self.hidden} a "
                "multiple of 8"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints."""
        return asdict(self)


NetworkConfig = SpanMilConfig | MeanPoolingConfig | AttentionPoolingConfig
"""Every network a slide classifier can be built from."""
