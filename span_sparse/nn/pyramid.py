"""How do the stages of SPAN follow each other?

    input projection → layers of stage 0 → down-sampling → layers of stage 1 → … ; the global tokens travel along.

The stages hold modules only; the geometry (`Pyramid`) is built from the coordinates before the first layer runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from span_sparse.nn.down_sampling import DownSampling
from span_sparse.nn.global_tokens import GlobalTokens
from span_sparse.nn.transformer import TransformerLayer
from span_sparse.sparse import Level, Pyramid


class StageOutput(NamedTuple):
    """Tokens after a stage's last layer; local rows are ordered as the level's sites."""

    local_tokens: Float[Tensor, "tokens channels"]
    global_tokens: Float[Tensor, "slides globals channels"]


class Stage(nn.Module):
    """One level: down-sampling (none in stage 0), then its transformer layers.

    Args:
        down: from the finer level.
        layers: refine this level, in order.
        locals_needed: whether anything reads the local tokens after the last layer. If not, that layer leaves out what
            could not reach the output, and the parameters of that part are frozen.
    """

    def __init__(self, down: DownSampling | None, layers: Sequence[TransformerLayer], *, locals_needed: bool) -> None:
        super().__init__()
        self.down = down
        self.layers = nn.ModuleList(layers)
        self.locals_needed = locals_needed
        if layers and not locals_needed:
            for parameter in layers[-1].parameters_of_locals():
                parameter.requires_grad_(False)

    def forward(self, tokens: StageOutput, finer: Level | None, level: Level) -> StageOutput:
        """Condenses the tokens of `finer` into those of `level`, then refines them."""
        local_tokens, global_tokens = tokens
        if self.down is not None:
            local_tokens, global_tokens = self.down(local_tokens, global_tokens, finer, level)
        for position, layer in enumerate(self.layers, start=1):
            needed = self.locals_needed or position < len(self.layers)
            local_tokens, global_tokens = layer(local_tokens, global_tokens, level, locals_needed=needed)
        return StageOutput(local_tokens, global_tokens)


class PyramidEncoder(nn.Module):
    """The encoder of SPAN.

    Args:
        tokens: initial global tokens, in input space.
        input_projection: features → width of stage 0.
        token_projection: the same for the global tokens.
        widths: width of every stage.
        make_down: builds the down-sampling between two widths.
        make_layers: builds the transformer layers of a stage.
        locals_needed: whether the caller reads the local tokens of the last stage (see `Stage`).
    """

    def __init__(
        self,
        *,
        tokens: GlobalTokens,
        input_projection: nn.Module,
        token_projection: nn.Module,
        widths: Sequence[int],
        make_down: Callable[[int, int], DownSampling],
        make_layers: Callable[[int], list[TransformerLayer]],
        locals_needed: bool,
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.input_projection = input_projection
        self.token_projection = token_projection
        last = len(widths) - 1
        self.stages = nn.ModuleList(
            Stage(
                make_down(widths[stage - 1], width) if stage else None,
                make_layers(stage),
                locals_needed=locals_needed or stage < last,
            )
            for stage, width in enumerate(widths)
        )

    def forward(self, features: Float[Tensor, "tokens features"], pyramid: Pyramid) -> list[StageOutput]:
        """Runs all stages on features ordered as `pyramid.levels[0].sites`."""
        global_tokens = self.token_projection(self.tokens(features, pyramid.levels[0].sites.counts))
        tokens = StageOutput(self.input_projection(features), global_tokens)
        outputs: list[StageOutput] = []
        finer = None
        for stage, level in zip(self.stages, pyramid.levels, strict=True):
            tokens = stage(tokens, finer, level)
            outputs.append(tokens)
            finer = level
        return outputs
