"""Encoder and decoder of SPAN: the order of the stages.

    encoder   input projection → layers of stage 0 → down-sampling → layers of stage 1 → …
    decoder   up-sampling → layers → skip, from the coarsest stage back to the finest

The global tokens travel along. The stages hold modules only; the geometry (`Pyramid`) is built from the coordinates
before the first layer runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from span_sparse.nn.down_sampling import DownSampling
from span_sparse.nn.execution import current_execution, kept
from span_sparse.nn.global_tokens import GlobalTokens
from span_sparse.nn.input_projection import InputProjection
from span_sparse.nn.token_transition import TokenTransition
from span_sparse.nn.up_sampling import UpSampling
from span_sparse.sparse import Level, Pyramid

Connection = Literal["concat", "add", "none"]


class StageOutput(NamedTuple):
    """Tokens after a stage's last layer; local rows are ordered as the level's sites.

    Attributes:
        local_tokens: of the level.
        global_tokens: of every slide.
        attention: weight every local had for each global token and head in the stage's last layer; None without one.
    """

    local_tokens: Float[Tensor, "tokens channels"]
    global_tokens: Float[Tensor, "slides globals channels"]
    attention: Float[Tensor, "globals heads tokens"] | None


def _refine(
    layers: nn.ModuleList, tokens: StageOutput, level: Level, *, locals_needed: bool = True, recompute: bool = False
) -> StageOutput:
    """Runs the layers of one level in order; `recompute` keeps nothing of a layer but its input for the gradients."""
    local_tokens, global_tokens, attention = tokens
    for position, layer in enumerate(layers, start=1):
        needed = locals_needed or position < len(layers)
        if torch.is_grad_enabled() and (recompute or current_execution(local_tokens.device).recompute):
            layer = partial(checkpoint, kept(layer), use_reentrant=False)
        local_tokens, global_tokens, attention = layer(local_tokens, global_tokens, level, locals_needed=needed)
    return StageOutput(local_tokens, global_tokens, attention)


class EncoderStage(nn.Module):
    """One level: down-sampling (none in stage 0), then its transformer layers.

    Args:
        down: from the finer level.
        layers: refine this level, in order.
        locals_needed: whether anything reads the local tokens after the last layer.

    Attributes:
        recompute: whether the backward pass computes the layers again instead of finding what they computed in memory.
    """

    def __init__(self, down: DownSampling | None, layers: Sequence[nn.Module], *, locals_needed: bool) -> None:
        super().__init__()
        self.down = down
        self.layers = nn.ModuleList(layers)
        self.locals_needed = locals_needed
        self.recompute = False

    def forward(self, tokens: StageOutput, level: Level) -> StageOutput:
        """Condenses the tokens of the finer level into those of `level`, then refines them."""
        local_tokens, global_tokens, _ = tokens
        if self.down is not None:
            local_tokens, global_tokens = self.down(local_tokens, global_tokens, level)
        start = StageOutput(local_tokens, global_tokens, None)
        return _refine(self.layers, start, level, locals_needed=self.locals_needed, recompute=self.recompute)


class PyramidEncoder(nn.Module):
    """The encoder of SPAN.

    Args:
        tokens: initial global tokens, in input space.
        input_projection: features → width of stage 0.
        token_transition: the same for the global tokens.
        stages: finest first.
    """

    def __init__(
        self,
        tokens: GlobalTokens,
        input_projection: InputProjection,
        token_transition: TokenTransition,
        stages: Sequence[EncoderStage],
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.input_projection = input_projection
        self.token_transition = token_transition
        self.stages = nn.ModuleList(stages)

    def keep_all_locals(self) -> None:
        """Computes the last stage's local tokens even where the head does not read them."""
        for stage in self.stages:
            assert isinstance(stage, EncoderStage)
            stage.locals_needed = True

    def forward(self, features: Float[Tensor, "tokens features"], pyramid: Pyramid) -> list[StageOutput]:
        """Runs all stages; rows of `features` as the caller has them, brought into order by `pyramid.order`."""
        tokens = StageOutput(*self._enter(features, pyramid), None)
        outputs: list[StageOutput] = []
        for stage, level in zip(self.stages, pyramid.levels, strict=True):
            tokens = stage(tokens, level)
            outputs.append(tokens)
        return outputs

    def _enter(self, features: Tensor, pyramid: Pyramid) -> tuple[Tensor, Tensor]:
        """Projected features in the order of the sites, and the global tokens beside them."""
        order, sites = pyramid.order, pyramid.sites
        execution = current_execution(features.device)
        ordered = features
        if order is not None and self.tokens.reads_features:
            ordered = features[order]
        initial = self.token_transition(self.tokens(ordered, sites), self.input_projection)
        if execution.operators:
            return self._project(features, order, initial, execution.rows_at_once)
        if torch.is_grad_enabled() or len(features) <= execution.rows_at_once:
            return self.input_projection(features if order is None else features[order]), initial
        rows = torch.arange(len(features)) if order is None else order
        return torch.cat(
            [self.input_projection(features[part]) for part in rows.split(execution.rows_at_once)]
        ), initial

    def _project(
        self, features: Tensor, order: Tensor | None, initial: Tensor, rows_at_once: int
    ) -> tuple[Tensor, Tensor]:
        """Projects before rows are moved, since what is projected is narrower; without gradients some rows at once."""
        if torch.is_grad_enabled():
            projected = self.input_projection(features)
            return (projected if order is None else _Permuted.apply(projected, order)), initial  # pyright: ignore[reportReturnType]
        projected = torch.cat([self.input_projection(part) for part in features.split(rows_at_once)])
        num_locals, width = projected.shape
        joined = projected.new_empty(num_locals + initial.shape[0] * initial.shape[1], width)  # see `joint_layer`
        if order is None:
            joined[:num_locals] = projected
        else:
            torch.index_select(projected, 0, order, out=joined[:num_locals])
        joined[num_locals:] = initial.flatten(0, 1)
        return joined[:num_locals], joined[num_locals:].view(initial.shape)


class _Permuted(torch.autograd.Function):
    """Rows in another order; no row is read twice, so the gradients are only moved back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(order)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (order,) = ctx.saved_tensors
        return torch.empty_like(grad).index_copy_(0, order, grad), None


class DecoderStage(nn.Module):
    """Up-sampling, transformer layers and the skip from the encoder, in one of two orders.

    Args:
        up: from the coarser level.
        layers: refine this level.
        connection: how the encoder's tokens of this level join.
        fuse: None joins after the layers (the authors' default); a Linear joins before them and brings the width back.
        fuse_tokens: beside `fuse`, for the global tokens.

    Attributes:
        recompute: as in `EncoderStage`.
    """

    def __init__(
        self,
        up: UpSampling,
        layers: Sequence[nn.Module],
        connection: Connection,
        fuse: nn.Linear | None,
        fuse_tokens: TokenTransition | None,
    ) -> None:
        super().__init__()
        self.up = up
        self.layers = nn.ModuleList(layers)
        self.connection: Connection = connection
        self.fuse, self.fuse_tokens = fuse, fuse_tokens
        self.recompute = False

    def forward(self, tokens: StageOutput, skip: StageOutput, coarser: Level, level: Level) -> StageOutput:
        """Spreads the tokens over `level` and joins the encoder's."""
        local_tokens, global_tokens = self.up(tokens.local_tokens, tokens.global_tokens, coarser)
        here = StageOutput(local_tokens, global_tokens, None)
        if self.fuse is None or self.fuse_tokens is None:
            return self._joined(_refine(self.layers, here, level, recompute=self.recompute), skip)
        joined = self._joined(here, skip)
        global_tokens = self.fuse_tokens(joined.global_tokens, self.fuse)
        fused = StageOutput(self.fuse(joined.local_tokens), global_tokens, None)
        return _refine(self.layers, fused, level, recompute=self.recompute)

    def _joined(self, tokens: StageOutput, skip: StageOutput) -> StageOutput:
        if self.connection == "none":
            return tokens
        pairs = (tokens.local_tokens, skip.local_tokens), (tokens.global_tokens, skip.global_tokens)
        if self.connection == "add":
            local_tokens, global_tokens = (ours + theirs for ours, theirs in pairs)
        else:
            local_tokens, global_tokens = (torch.cat(pair, dim=-1) for pair in pairs)
        return StageOutput(local_tokens, global_tokens, tokens.attention)


class PyramidDecoder(nn.Module):
    """The decoder of SPAN-UNet: stage `i` takes encoder stage `−(i + 2)` as skip."""

    def __init__(self, stages: Sequence[DecoderStage]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, encoded: list[StageOutput], pyramid: Pyramid) -> list[StageOutput]:
        """Tokens after every decoder stage, coarsest first; with `concat` the decoder's own channels come first."""
        tokens = encoded[-1]
        outputs: list[StageOutput] = []
        for index, stage in enumerate(self.stages):
            position = len(encoded) - 2 - index
            coarser, level = pyramid.levels[position + 1], pyramid.levels[position]
            tokens = stage(tokens, encoded[position], coarser, level)
            outputs.append(tokens)
        return outputs
