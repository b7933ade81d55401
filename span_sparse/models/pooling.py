"""Baselines that ignore coordinates: mean pooling and attention pooling.

They take the same batch as SPAN and are trained by the same module, so a difference between them is context.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from span_sparse.models.assembly import Place
from span_sparse.models.config import AttentionPoolingConfig, MeanPoolingConfig
from span_sparse.nn import AttentionPooling, slide_mean
from span_sparse.sparse import Pyramid, SparseSites, ValidCoords
from span_sparse.sparse.sites import slide_offsets


def bags(
    features: Tensor, place: Place, num_slides: int
) -> tuple[Float[Tensor, "tokens features"], SparseSites, Int[Tensor, " tokens"] | None]:
    """The features slide after slide, whose rows they are, and the permutation that sorted them, None if they were."""
    if isinstance(place, ValidCoords):
        return features, SparseSites(place.coords, num_slides, place.extents, place.offsets), None
    if isinstance(place, Pyramid):
        return (features if place.order is None else features[place.order]), place.sites, place.order
    order = place[:, 0].argsort(stable=True)
    coords = place[order].int()
    return features[order], SparseSites(coords, num_slides, (0, 0), slide_offsets(coords, num_slides)), order


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
        self, features: Float[Tensor, "tokens features"], place: Place, num_slides: int
    ) -> Float[Tensor, "slides classes"]:
        """Logits of every slide."""
        rows, sites, _ = bags(features, place, num_slides)
        return self.classify(slide_mean(rows, sites))


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
        self, features: Float[Tensor, "tokens features"], place: Place, num_slides: int
    ) -> Float[Tensor, "slides classes"]:
        """Logits of every slide."""
        rows, sites, _ = bags(features, place, num_slides)
        return self.classify(self.pool(self.project(rows), sites))

    def attention(
        self, features: Float[Tensor, "tokens features"], place: Place, num_slides: int
    ) -> Float[Tensor, " tokens"]:
        """The share of every patch in its slide's mean, in the caller's order; one over a slide."""
        rows, sites, order = bags(features, place, num_slides)
        weights = self.pool.weights(self.project(rows), sites)[:, 0]
        return weights if order is None else torch.empty_like(weights).index_copy(0, order, weights)
