"""Networks: settings, SPAN-MIL, the baselines without context, and weights of the authors' code."""

from span_sparse.models.config import AttentionPoolingConfig, MeanPoolingConfig, NetworkConfig, SpanMilConfig
from span_sparse.models.convert import convert_state_dict
from span_sparse.models.networks import build_network, network_as_dict, network_from_dict
from span_sparse.models.pooling import AttentionMil, MeanPooling
from span_sparse.models.span_mil import SpanMil, SpanMilOutput

__all__ = [
    "AttentionMil",
    "AttentionPoolingConfig",
    "MeanPooling",
    "MeanPoolingConfig",
    "NetworkConfig",
    "SpanMil",
    "SpanMilConfig",
    "SpanMilOutput",
    "build_network",
    "convert_state_dict",
    "network_as_dict",
    "network_from_dict",
]
