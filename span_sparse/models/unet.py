"""SPAN-UNet: pyramid encoder, decoder with skips, and a Linear that gives one row of outputs per patch.

Up-sampling lands on the encoder's own sites of each level, so the finest level has exactly the slide's patches; the
outputs are returned in the caller's row order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from span_sparse.models.assembly import (
    Place,
    freeze_unreachable,
    make_encoder,
    make_layers,
    make_pyramid,
    sampling_settings,
)
from span_sparse.models.config import SpanUnetConfig
from span_sparse.models.mil import check_features
from span_sparse.nn import DecoderStage, PyramidDecoder, StageOutput, TokenTransition, UpSampling, execution
from span_sparse.sparse import Pyramid


class SpanUnetOutput(NamedTuple):
    """Everything the network computed.

    Attributes:
        logits: one row a patch, in the caller's order.
        encoded: tokens after every encoder stage.
        decoded: tokens after every decoder stage, coarsest first; with `concat` the decoder's own channels come first.
        pyramid: the geometry the stages' rows refer to.
    """

    logits: Float[Tensor, "tokens outputs"]
    encoded: list[StageOutput]
    decoded: list[StageOutput]
    pyramid: Pyramid


class SpanUnet(nn.Module):
    """SPAN for patch-level outputs.

    Args:
        config: settings.
        num_features: width of the patch features.
        num_classes: outputs a patch; 1 for a binary segmentation.

    Raises:
        ConfigError: settings that do not fit together.
    """

    def __init__(self, config: SpanUnetConfig, *, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_features = num_features
        self.encoder = make_encoder(config, num_features, locals_needed=True)
        stages, width = _decoder_stages(config, config.widths(num_features))
        self.decoder = PyramidDecoder(stages)
        self.output = nn.Linear(width, num_classes)
        freeze_unreachable(self, num_features)

    def forward(
        self, features: Float[Tensor, "tokens features"], place: Place, num_slides: int
    ) -> Float[Tensor, "tokens outputs"]:
        """Outputs of every patch, in the caller's order; see `run` for the arguments."""
        with execution(keep_attention=False):
            return self.run(features, place, num_slides).logits

    def prepare(self, place: Place, num_slides: int) -> Pyramid:
        """The geometry of a batch for this network, to be given to `forward` in place of coordinates."""
        return make_pyramid(self.config, place, num_slides)

    def run(self, features: Float[Tensor, "tokens features"], place: Place, num_slides: int) -> SpanUnetOutput:
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
        encoded = self.encoder(features, pyramid)
        decoded = self.decoder(encoded, pyramid)
        ordered = self.output((decoded or encoded)[-1].local_tokens)
        logits = ordered if pyramid.order is None else torch.empty_like(ordered).index_copy(0, pyramid.order, ordered)
        return SpanUnetOutput(logits, encoded, decoded, pyramid)


def _decoder_stages(config: SpanUnetConfig, widths: list[int]) -> tuple[list[DecoderStage], int]:
    """The decoder's stages and the width of the tokens after the last one."""
    settings = sampling_settings(config)
    mode = config.decoder_attention or config.attention
    doubles = config.connection == "concat"
    stages: list[DecoderStage] = []
    incoming = widths[-1]
    for depth, width in zip(config.depths()[1], reversed(widths[:-1]), strict=True):
        up = UpSampling(incoming, width, config.up, settings)
        joined = 2 * width if doubles else width
        fuse, fuse_tokens = None, None
        if config.skip_order == "before_attention":
            fuse = nn.Linear(joined, width, bias=False)
            fuse_tokens = TokenTransition(joined, width, config.token_strategy, norm=False)
        stages.append(DecoderStage(up, make_layers(config, depth, width, mode), config.connection, fuse, fuse_tokens))
        incoming = width if fuse is not None else joined
    return stages, incoming
