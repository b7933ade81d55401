"""What do patch features say without their place? Two baselines that ignore coordinates.

They take the same batch as SPAN and are trained by the same module, so a difference between them is context.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from span_sparse.models.config import AttentionPoolingConfig, MeanPoolingConfig
from span_sparse.nn import AttentionPooling


def bags(features: Tensor, coords: Tensor, num_slides: int) -> tuple[Tensor, tuple[int, ...]]:
    """The features sorted by slide, and the number of patches of each: what `Tensor.split` takes."""
    slide = coords[:, 0].long()
    return features[_order(coords)], tuple(torch.bincount(slide, minlength=num_slides).tolist())


def _order(coords: Tensor) -> Tensor:
    return coords[:, 0].argsort(stable=True)


class MeanPooling(nn.Module):
    """Mean of the patch features, then a perceptron with one hidden layer."""

    def __init__(self, config: MeanPoolingConfig, *, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.classify = nn.Sequential(
            nn.LayerNorm(num_features),
            nn.Linear(num_features, config.hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, num_classes),
        )

    def forward(
        self, features: Float[Tensor, "tokens features"], coords: Int[Tensor, "tokens 3"], num_slides: int
    ) -> Float[Tensor, "slides classes"]:
        """Logits of every slide."""
        rows, counts = bags(features, coords, num_slides)
        return self.classify(torch.stack([bag.mean(dim=0) for bag in rows.split(counts)]))


class AttentionMil(nn.Module):
    """Attention pooling of projected patch features (ABMIL, Ilse et al., ICML 2018)."""

    def __init__(self, config: AttentionPoolingConfig, *, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.project = nn.Sequential(
            nn.LayerNorm(num_features), nn.Linear(num_features, config.hidden), nn.ReLU(), nn.Dropout(config.dropout)
        )
        self.pool = AttentionPooling(config.hidden, config.hidden // 2)
        self.classify = nn.Linear(config.hidden, num_classes)

    def forward(
        self, features: Float[Tensor, "tokens features"], coords: Int[Tensor, "tokens 3"], num_slides: int
    ) -> Float[Tensor, "slides classes"]:
        """Logits of every slide."""
        rows, counts = bags(features, coords, num_slides)
        return self.classify(self.pool(self.project(rows), counts))

    def attention(
        self, features: Float[Tensor, "tokens features"], coords: Int[Tensor, "tokens 3"], num_slides: int
    ) -> Float[Tensor, " tokens"]:
        """The share of every patch in its slide's mean, in the caller's order; one over a slide."""
        rows, counts = bags(features, coords, num_slides)
        weights = self.pool.weights(self.project(rows), counts)[:, 0]
        return torch.empty_like(weights).index_copy(0, _order(coords), weights)
