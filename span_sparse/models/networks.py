"""Which network belongs to which settings? The one place that builds networks and writes their settings down."""

from __future__ import annotations

from typing import Any

from torch import nn

from span_sparse.errors import CheckpointError
from span_sparse.models.config import (
    AttentionPoolingConfig,
    MeanPoolingConfig,
    NetworkConfig,
    SpanMilConfig,
    SpanSurvivalConfig,
    SpanUnetConfig,
    TorchmilConfig,
)
from span_sparse.models.mil import SpanMil
from span_sparse.models.pooling import AttentionMil, MeanPooling
from span_sparse.models.torchmil_network import TorchmilNetwork
from span_sparse.models.unet import SpanUnet

AnyNetworkConfig = NetworkConfig | SpanUnetConfig | TorchmilConfig

_KINDS: dict[str, type[AnyNetworkConfig]] = {
    "span_survival": SpanSurvivalConfig,
    "span_mil": SpanMilConfig,
    "span_unet": SpanUnetConfig,
    "mean_pooling": MeanPoolingConfig,
    "attention_pooling": AttentionPoolingConfig,
    "torchmil": TorchmilConfig,
}


def build_network(config: AnyNetworkConfig, *, num_features: int, num_classes: int) -> nn.Module:
    """The network of these settings; its `forward` takes `(features, coords, num_slides)` and returns logits."""
    if isinstance(config, SpanMilConfig):
        return SpanMil(config, num_features=num_features, num_classes=num_classes)
    if isinstance(config, SpanUnetConfig):
        return SpanUnet(config, num_features=num_features, num_classes=num_classes)
    if isinstance(config, MeanPoolingConfig):
        return MeanPooling(config, num_features=num_features, num_classes=num_classes)
    if isinstance(config, TorchmilConfig):
        return TorchmilNetwork(config, num_features=num_features, num_classes=num_classes)
    return AttentionMil(config, num_features=num_features, num_classes=num_classes)


def network_as_dict(config: AnyNetworkConfig) -> dict[str, Any]:
    """Plain values, for checkpoints: the settings and `kind`."""
    kind = next(kind for kind, config_type in _KINDS.items() if type(config) is config_type)
    return {"kind": kind, **config.as_dict()}


def network_from_dict(values: dict[str, Any]) -> AnyNetworkConfig:
    """Inverse of `network_as_dict`.

    Raises:
        CheckpointError: an unknown kind or setting.
    """
    settings = dict(values)
    kind = settings.pop("kind", None)
    if kind not in _KINDS:
        raise CheckpointError(f"unknown network {kind!r}; expected one of {', '.join(_KINDS)}")
    try:
        return _KINDS[kind](**settings)
    except TypeError as error:
        raise CheckpointError(f"settings of network {kind!r} do not fit this version: {error}") from error
