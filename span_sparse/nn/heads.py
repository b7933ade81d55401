"""How do the tokens of all stages become one row of logits a slide?

    multi_addition    Linear(Dropout(LayerNorm(Σ_stages g_0)))         the authors' default; reads global tokens only
    pyramid_pooling   Linear(Dropout(LayerNorm([g ; p])))              ours; reads local tokens at every stage as well

with `g = Σ_stages g_0`, and `p = Σ_stages Σ_i a_i x_i`, `a = softmax_i(u·tanh(V x_i))`, attention pooling (Ilse et al.,
ICML 2018) over each stage's local tokens. With the first, the coarsest level's window attention cannot reach the output
(8 % of the authors' parameters get no gradient); with the second every parameter trains.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from span_sparse.nn.pyramid import StageOutput


class GlobalTokenHead(nn.Module):
    """`multi_addition`: the first global token, summed over stages."""

    reads_locals = False

    def __init__(self, width: int, num_outputs: int, *, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, num_outputs)

    def forward(self, stages: list[StageOutput], counts: list[tuple[int, ...]]) -> Float[Tensor, "slides classes"]:
        """Logits; `counts` (rows of each slide at every stage) is not needed here."""
        summed = torch.stack([stage.global_tokens[:, 0] for stage in stages]).sum(dim=0)
        return self.output(self.dropout(self.norm(summed)))


class AttentionPooling(nn.Module):
    """Attention-weighted mean of each slide's rows (Ilse et al., ICML 2018, equation 8)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)  # a bias would cancel in the softmax

    def forward(self, rows: Float[Tensor, "tokens width"], counts: tuple[int, ...]) -> Float[Tensor, "slides width"]:
        """Pools the rows of each slide."""
        scores = self.score(torch.tanh(self.hidden(rows)))
        pooled = [
            (score.softmax(dim=0) * row).sum(dim=0)
            for score, row in zip(scores.split(counts), rows.split(counts), strict=True)
        ]
        return torch.stack(pooled)


class PyramidPoolingHead(nn.Module):
    """`pyramid_pooling`: global tokens and attention pooling of the local tokens of every stage."""

    reads_locals = True

    def __init__(self, width: int, num_stages: int, num_outputs: int, *, dropout: float) -> None:
        super().__init__()
        self.pooling = nn.ModuleList(AttentionPooling(width, max(1, width // 4)) for _ in range(num_stages))
        self.norm = nn.LayerNorm(2 * width)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(2 * width, num_outputs)

    def forward(self, stages: list[StageOutput], counts: list[tuple[int, ...]]) -> Float[Tensor, "slides classes"]:
        """Logits; `counts` gives the rows of each slide at every stage."""
        summed = torch.stack([stage.global_tokens[:, 0] for stage in stages]).sum(dim=0)
        pooled = [
            pool(stage.local_tokens, rows) for pool, stage, rows in zip(self.pooling, stages, counts, strict=True)
        ]
        return self.output(self.dropout(self.norm(torch.cat([summed, torch.stack(pooled).sum(dim=0)], dim=1))))
