"""Slides of every size and shape, in every dtype that training uses on a CPU."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from span_sparse.errors import BatchError
from span_sparse.models import SpanMil, SpanMilConfig, SpanUnet, SpanUnetConfig, span_mil, span_survival, span_unet

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
import random_slides

NUM_FEATURES = 32
NETWORKS: dict[str, SpanMilConfig | SpanUnetConfig] = {
    "mil": span_mil(head_channels=8),
    "survival": span_survival(head_channels=8, head="pyramid_pooling", tokens=["std", "lrn1e-4"]),
    "unet": span_unet(head_channels=16),
    "unet_deep": span_unet(head_channels=16, stages="1111-111", up="patchinvs", skip_order="before_attention"),
}


def network_of(config: SpanMilConfig | SpanUnetConfig) -> nn.Module:
    network_type = SpanUnet if isinstance(config, SpanUnetConfig) else SpanMil
    return network_type(config, num_features=NUM_FEATURES, num_classes=2)  # pyright: ignore[reportArgumentType]


def step(network: nn.Module, features: Tensor, coords: Tensor, num_slides: int) -> Tensor:
    """Forward and backward; everything finite."""
    output = network(features, coords, num_slides)
    output.float().square().mean().backward()
    assert output.isfinite().all()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())
    return output


SHAPES: dict[str, Tensor] = {
    "one token": torch.tensor([[0, 0]]),
    "one token far away": torch.tensor([[4095, 8190]]),
    "one row": torch.stack([torch.full((97,), 5), torch.arange(97)], dim=1),
    "one column": torch.stack([torch.arange(97), torch.full((97,), 6)], dim=1),
    "one full cell": torch.cartesian_prod(torch.arange(3, 6), torch.arange(6, 9)),
    "opposite corners": torch.tensor([[0, 0], [0, 4000], [3000, 0], [3000, 4000]]),
    "a diagonal": torch.arange(60).unsqueeze(1).expand(60, 2) * 7,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_slides_of_any_shape(name: str, shape: str) -> None:
    coords = random_slides.batch_of(SHAPES[shape].int())
    output = step(network_of(NETWORKS[name]), torch.randn(len(coords), NUM_FEATURES), coords, 1)
    assert len(output) == (len(coords) if name.startswith("unet") else 1)


@pytest.mark.parametrize("name", ["mil", "unet"])
def test_an_empty_slide_is_refused(name: str) -> None:
    network = network_of(NETWORKS[name])
    with pytest.raises(BatchError, match="no patches"):
        network(torch.randn(0, NUM_FEATURES), torch.zeros(0, 3, dtype=torch.int32), 1)
    with pytest.raises(BatchError, match="slide 1 of the batch has no patches"):
        network(torch.randn(2, NUM_FEATURES), torch.tensor([[0, 1, 1], [2, 1, 1]], dtype=torch.int32), 3)


@pytest.mark.parametrize("name", ["mil", "unet"])
def test_twenty_thousand_patches(name: str) -> None:
    coords = random_slides.batch_of(random_slides.random_slide(20_000, 224, 0))
    network = network_of(NETWORKS[name])
    start = time.process_time()
    step(network, torch.randn(20_000, NUM_FEATURES), coords, 1)
    assert time.process_time() - start < 60  # seconds of processor time: linear is about two, quadratic is minutes


@pytest.mark.parametrize("name", NETWORKS)
def test_float64_and_float32_agree(name: str) -> None:
    network = network_of(NETWORKS[name]).eval()
    coords = random_slides.batch_of(random_slides.random_slide(150, 21, 0), random_slides.random_slide(3, 8, 1))
    features = torch.randn(153, NUM_FEATURES)
    single = network(features, coords, 2)
    double = network.double()(features.double(), coords, 2)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


AUTOCAST: dict[str, dict[str, Any]] = {
    "default": {},
    "dense, post": {"down": "patchconv", "norm": "post", "edge_mode": "partial", "head": "pyramid_pooling"},
    "merge": {"down": "patchmerge", "head": "multiattn", "attention": "swin_global", "tokens": ["std", "lrn1e-2"]},
    "rope": {"positions": "rope", "token_strategy": "proj", "head": "addition"},
    "alibi": {"positions": "alibi", "token_strategy": "kernel", "sampling_bias": True, "attention": "long_noshift"},
    "tradswin": {"attention": "tradswin", "head": "pyramid_pooling", "input_activation": "gelu"},
    "unet": {"stages": "111-11"},
    "unet, inverse": {"stages": "111-11", "up": "patchinvs", "skip_order": "before_attention"},
    "unet, depthwise": {"stages": "11-1", "up": "dwpatchinvs", "channel_factor": 1, "connection": "add"},
}  # fmt: skip


@pytest.mark.parametrize("name", AUTOCAST)
def test_bfloat16_autocast_stays_close_to_float32(name: str) -> None:
    config_type = SpanUnetConfig if name.startswith("unet") else SpanMilConfig
    network = network_of(config_type(head_channels=16, dropout_input=0.0, dropout_attention=0.0, **AUTOCAST[name]))
    network.eval()
    coords = random_slides.batch_of(random_slides.random_slide(150, 21, 0), random_slides.random_slide(3, 8, 1))
    features = torch.randn(153, NUM_FEATURES)
    expected = network(features, coords, 2)
    expected.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    network.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(features, coords, 2)
    output.float().square().mean().backward()
    assert output.isfinite().all()
    assert (output.float() - expected).abs().max() < 3e-2 * expected.abs().max().clamp(min=1)
    norms = [gradient.norm() for gradient in gradients.values() if gradient is not None]
    for key, parameter in network.named_parameters():
        expected_grad = gradients[key]
        assert (parameter.grad is None) == (expected_grad is None)
        if parameter.grad is not None and expected_grad is not None:
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all()
            assert (parameter.grad - expected_grad).norm() < 0.1 * expected_grad.norm() + 0.03 * max(norms), key
