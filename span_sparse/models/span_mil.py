"""How is a slide classified? SPAN-MIL: pyramid encoder, then a head.

Reads a batch as plain tensors, so the same network serves training, evaluation and export. Rows may come in any order
and slides in any company: rows are sorted first, and no operation mixes slides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from span_sparse.errors import BatchError
from span_sparse.models.config import Activation, SpanMilConfig
from span_sparse.nn import (
    DownSampling,
    GlobalTokenHead,
    GlobalTokens,
    InputProjection,
    PyramidEncoder,
    PyramidPoolingHead,
    StageOutput,
    TransformerLayer,
)
from span_sparse.sparse import Pyramid, build_pyramid

_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


class SpanMilOutput(NamedTuple):
    """Everything the network computed.

    Attributes:
        logits: one row a slide.
        stages: tokens after every stage.
        pyramid: the geometry the stages' rows refer to.
    """

    logits: Float[Tensor, "slides classes"]
    stages: list[StageOutput]
    pyramid: Pyramid


class SpanMil(nn.Module):
    """SPAN for slide-level classification.

    Args:
        config: settings.
        num_features: width of the patch features.
        num_classes: number of logits.

    Raises:
        ConfigError: settings that do not fit together.
    """

    def __init__(self, config: SpanMilConfig, *, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_features = num_features
        widths = config.widths(num_features)
        if config.head == "multi_addition":
            self.head = GlobalTokenHead(widths[-1], num_classes, dropout=config.dropout_head)
        else:
            self.head = PyramidPoolingHead(widths[-1], len(widths), num_classes, dropout=config.dropout_head)
        self.encoder = PyramidEncoder(
            tokens=GlobalTokens(num_features, config.tokens),
            input_projection=InputProjection(
                num_features, widths[0], norm=config.input_norm, dropout=config.dropout_input
            ),
            token_projection=_token_projection(config, num_features, widths[0]),
            widths=widths,
            make_down=lambda finer, coarser: _down_sampling(config, finer, coarser),
            make_layers=lambda stage: _layers(config, stage, widths[stage]),
            locals_needed=self.head.reads_locals,
        )

    def forward(
        self, features: Float[Tensor, "tokens features"], coords: Int[Tensor, "tokens 3"], num_slides: int
    ) -> Float[Tensor, "slides classes"]:
        """Logits of every slide; see `run` for the arguments."""
        return self.run(features, coords, num_slides).logits

    def run(
        self, features: Float[Tensor, "tokens features"], coords: Int[Tensor, "tokens 3"], num_slides: int
    ) -> SpanMilOutput:
        """Runs the network and returns intermediate tokens as well.

        Args:
            features: patch features.
            coords: `(slide, row, col)` of each patch, any order, unique.
            num_slides: slides in the batch.

        Raises:
            BatchError: features and coordinates do not describe a valid batch.
        """
        if features.ndim != 2 or len(features) != len(coords) or features.shape[1] != self.num_features:
            raise BatchError(
                f"expected features [tokens, {self.num_features}] with one row for each of the {len(coords)} "
                f"coordinates, found {list(features.shape)}"
            )
        config = self.config
        pyramid = build_pyramid(
            coords,
            num_slides,
            num_levels=len(config.stages),
            window_size=config.window_size,
            kernel_size=config.kernel_size,
            stride=config.stride,
            dilation=config.dilation,
        )
        stages = self.encoder(features[pyramid.order], pyramid)
        logits = self.head(stages, [level.sites.counts for level in pyramid.levels])
        return SpanMilOutput(logits, stages, pyramid)


def _token_projection(config: SpanMilConfig, num_features: int, width: int) -> nn.Module:
    if config.token_strategy == "identity" and num_features == width:
        return nn.Identity()
    return nn.Linear(num_features, width)


def _down_sampling(config: SpanMilConfig, finer: int, coarser: int) -> DownSampling:
    return DownSampling(
        finer,
        coarser,
        kind=config.down,
        kernel_size=config.kernel_size,
        stride=config.stride,
        dilation=config.dilation,
        bias=config.down_bias,
        norm=config.norm,
        edge_mode=config.edge_mode,
        token_strategy=config.token_strategy,
    )


def _layers(config: SpanMilConfig, stage: int, width: int) -> list[TransformerLayer]:
    return [
        TransformerLayer(
            width,
            width // config.head_channels,
            window_size=config.window_size,
            ff_ratio=config.ff_ratio,
            activation=_ACTIVATIONS[config.activation],
            dropout=config.dropout_attention,
            drop_path=config.drop_path,
            position_std=config.position_std,
            share_qkv=config.share_qkv,
        )
        for _ in range(int(config.stages[stage]))
    ]
