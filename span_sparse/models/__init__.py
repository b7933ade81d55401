"""Networks: settings and presets, SPAN-MIL, SPAN-UNet, the baselines without context, weights of the authors' code."""

from span_sparse.models.attention_maps import attention_maps
from span_sparse.models.bundle import load_network, write_bundle
from span_sparse.models.config import (
    AttentionPoolingConfig,
    MeanPoolingConfig,
    NetworkConfig,
    PyramidConfig,
    SpanMilConfig,
    SpanSurvivalConfig,
    SpanUnetConfig,
    TorchmilConfig,
    span_mil,
    span_survival,
    span_unet,
)
from span_sparse.models.convert import config_from_official, convert_state_dict
from span_sparse.models.mil import SpanMil, SpanMilOutput
from span_sparse.models.networks import build_network, network_as_dict, network_from_dict
from span_sparse.models.pooling import AttentionMil, MeanPooling
from span_sparse.models.torchmil_network import TorchmilNetwork
from span_sparse.models.unet import SpanUnet, SpanUnetOutput

__all__ = [
    "AttentionMil",
    "AttentionPoolingConfig",
    "MeanPooling",
    "MeanPoolingConfig",
    "NetworkConfig",
    "PyramidConfig",
    "SpanMil",
    "SpanMilConfig",
    "SpanMilOutput",
    "SpanSurvivalConfig",
    "SpanUnet",
    "SpanUnetConfig",
    "SpanUnetOutput",
    "TorchmilConfig",
    "TorchmilNetwork",
    "attention_maps",
    "build_network",
    "config_from_official",
    "convert_state_dict",
    "load_network",
    "network_as_dict",
    "network_from_dict",
    "span_mil",
    "span_survival",
    "span_unet",
    "write_bundle",
]
