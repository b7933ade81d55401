"""SPAN-MIL: pyramid encoder, then a head that gives one row of outputs per slide.

Reads a batch as plain tensors, so the same network serves training, evaluation and export. Rows may come in any order
and slides in any company: rows are sorted first, and no operation mixes slides.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from span_sparse.errors import BatchError
from span_sparse.models.assembly import ACTIVATIONS, Place, freeze_unreachable, make_encoder, make_pyramid
from span_sparse.models.config import SpanMilConfig
from span_sparse.nn import (
    AdditionHead,
    GlobalTokenHead,
    MultiAttentionHead,
    PyramidPoolingHead,
    StageOutput,
    execution,
    reads_locals,
)
from span_sparse.sparse import Pyramid


class SpanMilOutput(NamedTuple):
    """Everything the network computed.

    Attributes:
        logits: one row a slide.
        stages: tokens after every stage.
        pyramid: the geometry the stages' rows refer to.
    """

    logits: Float[Tensor, "slides outputs"]
    stages: list[StageOutput]
    pyramid: Pyramid


class SpanMil(nn.Module):
    """SPAN for slide-level outputs.

    Args:
        config: settings.
        num_features: width of the patch features.
        num_classes: outputs a slide.

    Raises:
        ConfigError: settings that do not fit together.
    """

    def __init__(self, config: SpanMilConfig, *, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_features = num_features
        self.encoder = make_encoder(config, num_features, locals_needed=reads_locals(config.head))
        self.head = _head(config, config.widths(num_features), num_classes)
        freeze_unreachable(self, num_features)

    def forward(
        self, features: Float[Tensor, "tokens features"], place: Place, num_slides: int
    ) -> Float[Tensor, "slides outputs"]:
        """Outputs of every slide; see `run` for the arguments."""
        with execution(keep_attention=False):
            return self.run(features, place, num_slides).logits

    def prepare(self, place: Place, num_slides: int) -> Pyramid:
        """The geometry of a batch for this network, to be given to `forward` in place of coordinates."""
        return make_pyramid(self.config, place, num_slides)

    def run(self, features: Float[Tensor, "tokens features"], place: Place, num_slides: int) -> SpanMilOutput:
        """Runs the network and returns intermediate tokens as well.

        Args:
            features: patch features.
            place: `(slide, row, col)` of each patch, any order, unique; or valid coordinates, or the batch's geometry.
            num_slides: slides in the batch.

        Raises:
            BatchError: features and coordinates do not describe a valid batch.
        """
        pyramid = make_pyramid(self.config, place, num_slides)
        check_features(features, len(pyramid.sites), self.num_features)
        stages = self.encoder(features, pyramid)
        logits = self.head(stages, [level.sites for level in pyramid.levels])
        return SpanMilOutput(logits, stages, pyramid)


def check_features(features: Tensor, num_tokens: int, num_features: int) -> None:
    """Raises `BatchError` unless there is one row of `num_features` for every coordinate."""
    if features.ndim != 2 or len(features) != num_tokens or features.shape[1] != num_features:
        raise BatchError(
            f"expected features [tokens, {num_features}] with one row for each of the {num_tokens} "
            f"coordinates, found {list(features.shape)}"
        )


def _head(config: SpanMilConfig, widths: list[int], num_outputs: int) -> nn.Module:
    width, num_stages, dropout = widths[-1], len(widths), config.dropout_head
    if config.head == "addition":
        return AdditionHead(width, num_outputs, dropout=dropout)
    if config.head == "multiattn":
        return MultiAttentionHead(
            width,
            num_stages,
            num_outputs,
            dropout=dropout,
            activation=ACTIVATIONS[config.head_activation],
            divisor=config.head_divisor,
        )
    if config.head == "pyramid_pooling":
        return PyramidPoolingHead(width, num_stages, num_outputs, dropout=dropout)
    return GlobalTokenHead(config.head, width, num_stages, num_outputs, norm=config.head_norm, dropout=dropout)
