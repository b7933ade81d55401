"""Heads: one row of outputs per slide from the tokens of all stages. `g` is the first global token of a stage.

    multi_addition    Linear(Dropout(LN(Σ_stages g)))                    the authors' default (survival: without LN)
    concat            Linear(Dropout(LN([g_0; g_1; …])))                 (survival: without LN)
    mean, last        Linear(Dropout(mean_stages g)),  Linear(Dropout(g_last))
    addition          Linear(Dropout(LN(max + mean of the last stage's local tokens)))
    multiattn         attention pooling of every stage, gated with g, softmax over stages
    pyramid_pooling   Linear(Dropout(LN([Σ_stages g ; Σ_stages p])))     ours; p = attention pooling of a stage's locals

Attention pooling: `p = Σ_i a_i x_i`, `a = softmax_i(u·φ(V x_i))` (Ilse et al., ICML 2018, equation 8). With a head
that reads global tokens only, the coarsest level's window attention cannot reach the output (8 % of the authors'
parameters get no gradient); with `pyramid_pooling` every parameter trains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from span_sparse.nn.pyramid import StageOutput
from span_sparse.nn.slides import slide_max, slide_mean, slide_outer, slide_softmax
from span_sparse.sparse import SparseSites

HeadKind = Literal["multi_addition", "concat", "mean", "last", "addition", "multiattn", "pyramid_pooling"]
_READ_LOCALS = ("addition", "multiattn", "pyramid_pooling")


def reads_locals(kind: HeadKind) -> bool:
    """Whether the head reads local tokens of the last stage."""
    return kind in _READ_LOCALS


def first_globals(stages: list[StageOutput]) -> list[Float[Tensor, "slides channels"]]:
    """The first global token of every stage."""
    return [stage.global_tokens[:, 0] for stage in stages]


class Readout(nn.Module):
    """`Linear(Dropout(LayerNorm(x)))`, the end of every head."""

    def __init__(self, width: int, num_outputs: int, *, norm: bool, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, num_outputs)

    def forward(self, rows: Float[Tensor, "slides width"]) -> Float[Tensor, "slides outputs"]:
        """One row a slide."""
        return self.linear(self.dropout(self.norm(rows)))


class GlobalTokenHead(nn.Module):
    """`multi_addition`, `concat`, `mean`, `last`."""

    def __init__(
        self, kind: HeadKind, width: int, num_stages: int, num_outputs: int, *, norm: bool, dropout: float
    ) -> None:
        super().__init__()
        self.kind = kind
        total = width * num_stages if kind == "concat" else width
        normed = norm and kind in ("multi_addition", "concat")
        self.readout = Readout(total, num_outputs, norm=normed, dropout=dropout)

    def forward(self, stages: list[StageOutput], sites: list[SparseSites]) -> Float[Tensor, "slides outputs"]:
        """Outputs; the `sites` of the stages are not needed here."""
        tokens = first_globals(stages)
        if self.kind == "concat":
            return self.readout(torch.cat(tokens, dim=1))
        if self.kind == "last":
            return self.readout(tokens[-1])
        stacked = torch.stack(tokens)
        return self.readout(stacked.mean(dim=0) if self.kind == "mean" else stacked.sum(dim=0))


class AdditionHead(nn.Module):
    """`addition`: maximum plus mean of the last stage's local tokens."""

    def __init__(self, width: int, num_outputs: int, *, dropout: float) -> None:
        super().__init__()
        self.readout = Readout(width, num_outputs, norm=True, dropout=dropout)

    def forward(self, stages: list[StageOutput], sites: list[SparseSites]) -> Float[Tensor, "slides outputs"]:
        """Outputs; `sites` are those of every stage."""
        rows = stages[-1].local_tokens
        return self.readout(slide_max(rows, sites[-1]) + slide_mean(rows, sites[-1]))


class AttentionPooling(nn.Module):
    """Attention-weighted mean of each slide's rows.

    Args:
        width: of the rows.
        hidden: of the scoring perceptron.
        activation: `φ`.
        score_bias: a bias on the scores; it cancels in the softmax and is kept for weights that have one.
    """

    def __init__(
        self, width: int, hidden: int, *, activation: Callable[[], nn.Module] = nn.Tanh, score_bias: bool = False
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.activation = activation()
        self.score = nn.Linear(hidden, 1, bias=score_bias)

    def forward(self, rows: Float[Tensor, "tokens width"], sites: SparseSites) -> Float[Tensor, "slides width"]:
        """Pools the rows of each slide."""
        return slide_outer(self.weights(rows, sites), rows, sites)[:, 0]

    def weights(self, rows: Float[Tensor, "tokens width"], sites: SparseSites) -> Float[Tensor, "tokens 1"]:
        """The share of every row in its slide's mean."""
        scores = self.score(self.activation(self.hidden(rows)))
        return slide_softmax(scores, scores.new_empty(sites.num_slides, 0, 1), sites)[0]


class MultiAttentionHead(nn.Module):
    """`multiattn`: pooled locals of every stage, mixed with its global token, then a softmax over stages.

    With `f_s` the pooled locals and `g_s` the global token of stage s:
    `α_s = σ(c_s + r·[f_s; g_s] + b)`, `f'_s = (1 − α_s) f_s + α_s g_s`, `w = softmax_s(l_s + t·f'_s)`, output of
    `Σ_s w_s f'_s`.
    """

    def __init__(
        self,
        width: int,
        num_stages: int,
        num_outputs: int,
        *,
        dropout: float,
        activation: Callable[[], nn.Module],
        divisor: int,
    ) -> None:
        super().__init__()
        hidden = max(1, width // divisor)
        self.pooling = nn.ModuleList(
            AttentionPooling(width, hidden, activation=activation, score_bias=True) for _ in range(num_stages)
        )
        self.gate_offset = nn.Parameter(torch.full((num_stages,), -2.0))
        self.gate = nn.Linear(2 * width, 1)
        self.stage_offset = nn.Parameter(torch.zeros(num_stages))
        self.stage_score = nn.Linear(width, 1, bias=False)
        for weight in (self.gate.weight, self.gate.bias, self.stage_score.weight):
            nn.init.zeros_(weight)
        self.readout = Readout(width, num_outputs, norm=True, dropout=dropout)

    def forward(self, stages: list[StageOutput], sites: list[SparseSites]) -> Float[Tensor, "slides outputs"]:
        """Outputs; `sites` are those of every stage."""
        mixed = []
        for pool, stage, rows, token, offset in zip(
            self.pooling, stages, sites, first_globals(stages), self.gate_offset, strict=True
        ):
            pooled = pool(stage.local_tokens, rows)
            share = torch.sigmoid(offset + self.gate(torch.cat([pooled, token], dim=1)))
            mixed.append((1 - share) * pooled + share * token)
        features = torch.stack(mixed, dim=1)  # (slides, stages, width)
        weights = (self.stage_offset.unsqueeze(1) + self.stage_score(features)).softmax(dim=1)
        return self.readout((weights * features).sum(dim=1))


class PyramidPoolingHead(nn.Module):
    """`pyramid_pooling`: global tokens and attention pooling of the local tokens of every stage."""

    def __init__(self, width: int, num_stages: int, num_outputs: int, *, dropout: float) -> None:
        super().__init__()
        self.pooling = nn.ModuleList(AttentionPooling(width, max(1, width // 4)) for _ in range(num_stages))
        self.readout = Readout(2 * width, num_outputs, norm=True, dropout=dropout)

    def forward(self, stages: list[StageOutput], sites: list[SparseSites]) -> Float[Tensor, "slides outputs"]:
        """Outputs; `sites` are those of every stage."""
        pooled = [pool(stage.local_tokens, rows) for pool, stage, rows in zip(self.pooling, stages, sites, strict=True)]
        summed = (torch.stack(rows).sum(dim=0) for rows in (first_globals(stages), pooled))
        return self.readout(torch.cat(list(summed), dim=1))
