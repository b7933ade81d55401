"""Every option of the specification in many combinations: two slides forward and backward, nothing infinite.

No parameter may wait for a gradient in vain: data-parallel training would hang.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from span_sparse.errors import ConfigError
from span_sparse.models import SpanMil, SpanMilConfig, SpanUnet, SpanUnetConfig, span_mil, span_survival, span_unet
from span_sparse.nn import reads_locals, writes_globals

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
import random_slides

NUM_FEATURES = 16

SHARED: dict[str, list[Any]] = {
    "channel_factor": [1, 2],
    "input_norm": [False, True],
    "input_bias": [False, True],
    "input_activation": [None, "relu", "gelu", "silu", "tanh"],
    "input_dropout_first": [False, True],
    "attention": ["long", "long_noshift", "swin", "swin_global", "tradswin"],
    "positions": ["rpb", "alibi", "rope", "none"],
    "window_size": [1, 2, 3],
    "share_qkv": [False, True],
    "ff_ratio": [0.5, 2.0],
    "activation": ["relu", "gelu", "silu", "tanh"],
    "down": ["patchconv", "dwpatchconv", "patchmerge"],
    "kernel_size": [2, 2, 2, 3],
    "dilation": [1, 1, 1, 2],
    "sampling_bias": [False, True],
    "norm": ["pre", "post"],
    "edge_mode": ["none", "count", "partial"],
    "tokens": [["lrn1e-2"], ["max", "mean", "fix1e-4"], ["std", "lrn1e-1", "lrn1e-3"], ["fix1", "lrn1"]],
    "token_strategy": ["identity", "proj", "kernel"],
    "drop_path": [0.0, 0.5],
}
MIL: dict[str, list[Any]] = SHARED | {
    "stages": ["1", "11", "101", "110", "011", "120", "111", "1111", [2, 1]],
    "head": ["multi_addition", "concat", "mean", "last", "addition", "multiattn", "pyramid_pooling"],
    "head_norm": [False, True],
    "head_activation": ["relu", "tanh"],
    "head_divisor": [1, 4],
}
UNET: dict[str, list[Any]] = SHARED | {
    "stages": ["1", "11-1", "11-0", "111-11", "101-01", "111-20", "1111-111", [1]],
    "up": ["pixelshuffle", "patchinvs", "dwpatchinvs"],
    "connection": ["concat", "add", "none"],
    "skip_order": ["after_attention", "before_attention"],
    "decoder_attention": [None, "long", "swin", "tradswin"],
}


def sample(
    network: type[SpanMil] | type[SpanUnet], options: dict[str, list[Any]], count: int
) -> Iterator[dict[str, Any]]:
    """Settings that can be built, drawn at random; a setting seldom drawn so far is preferred."""
    config_type = SpanMilConfig if network is SpanMil else SpanUnetConfig
    draw, uses = random.Random(1), {(name, str(value)): 1 for name in options for value in options[name]}

    def pick(name: str) -> Any:
        weights = [uses[name, str(value)] ** -2 for value in options[name]]
        return draw.choices(options[name], weights)[0]

    while count:
        chosen = {name: pick(name) for name in options}
        try:
            settings = config_type(head_channels=8, **chosen)
            settings.widths(NUM_FEATURES)
            _check_operators(settings)
        except ConfigError:
            continue
        for name, value in chosen.items():
            uses[name, str(value)] += 1
        count -= 1
        yield chosen


def _check_operators(settings: SpanMilConfig | SpanUnetConfig) -> None:
    """The refusals that come from single operations, without building a network."""
    plain = settings.kernel_size == settings.stride and settings.dilation == 1
    if settings.down == "dwpatchconv" and settings.channel_factor != 1 and len(settings.depths()[0]) > 1:
        raise ConfigError("width")
    if settings.down == "patchmerge" and not plain:
        raise ConfigError("kernel")
    if isinstance(settings, SpanUnetConfig) and settings.depths()[1]:
        widens = settings.channel_factor != 1 or (
            settings.connection == "concat"
            and settings.skip_order == "after_attention"
            and len(settings.depths()[1]) > 1
        )
        if settings.up == "dwpatchinvs" and widens:
            raise ConfigError("width")
        if settings.up == "pixelshuffle" and not plain:
            raise ConfigError("kernel")


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two slides of different size, one of them tiny; cell (0, 0) is read by every dilated kernel."""
    large = random_slides.random_slide(34, 9, 1)
    coords = random_slides.batch_of(large, torch.tensor([[0, 0], [7, 2], [6, 3]], dtype=torch.int32))
    if not (large == 0).all(dim=1).any():
        coords[0] = 0
    return torch.randn(len(coords), NUM_FEATURES), coords


def check(network: nn.Module) -> None:
    """Forward, backward, and what must hold of every parameter."""
    features, coords = batch()
    output = network.train()(features.requires_grad_(), coords, 2)
    assert output.isfinite().all()
    (output * torch.randn_like(output)).sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert features.grad.any()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


MIL_SAMPLE = list(sample(SpanMil, MIL, 40))
UNET_SAMPLE = list(sample(SpanUnet, UNET, 32))


@pytest.mark.parametrize("number", range(len(MIL_SAMPLE)))
def test_slide_level_settings_train(number: int) -> None:
    chosen = MIL_SAMPLE[number]
    network = SpanMil(SpanMilConfig(head_channels=8, **chosen), num_features=NUM_FEATURES, num_classes=3)
    check(network)
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    if chosen["head"] == "pyramid_pooling" and writes_globals(chosen["attention"]):
        assert frozen == [], chosen
    if not reads_locals(chosen["head"]) and chosen["stages"] == "1" and not chosen["share_qkv"]:
        assert any("window_qkv" in name for name in frozen), chosen


@pytest.mark.parametrize("number", range(len(UNET_SAMPLE)))
def test_patch_level_settings_train(number: int) -> None:
    config = SpanUnetConfig(head_channels=8, **UNET_SAMPLE[number])
    network = SpanUnet(config, num_features=NUM_FEATURES, num_classes=2)
    check(network)
    features, coords = batch()
    assert network(features, coords, 2).shape == (len(coords), 2)


@pytest.mark.parametrize(("options", "drawn"), [(MIL, MIL_SAMPLE), (UNET, UNET_SAMPLE)], ids=["slides", "patches"])
def test_the_sample_holds_every_value(options: dict[str, list[Any]], drawn: list[dict[str, Any]]) -> None:
    for name, values in options.items():
        assert {str(chosen[name]) for chosen in drawn} == {str(value) for value in values}, name


@pytest.mark.parametrize(
    ("first", "second"),
    [("attention", "positions"), ("attention", "share_qkv"), ("down", "edge_mode"), ("down", "token_strategy")],
)
def test_the_samples_hold_the_pairs_that_matter(first: str, second: str) -> None:
    seen = {(chosen[first], chosen[second]) for chosen in MIL_SAMPLE + UNET_SAMPLE}
    assert len(seen) == len(SHARED[first]) * len(SHARED[second])


@pytest.mark.parametrize("preset", [span_mil, span_survival])
@pytest.mark.parametrize("tokens", [["lrn1e-4"], ["mean", "lrn1e-4"]], ids=["one", "two"])
def test_every_parameter_of_a_preset_trains_with_the_head_that_promises_it(preset, tokens: list[str]) -> None:
    config = preset(head="pyramid_pooling", head_channels=8, tokens=tokens)
    network = SpanMil(config, num_features=NUM_FEATURES * 2, num_classes=2).double()
    silent = silent_parameters(network, NUM_FEATURES * 2)
    # a softmax sees no bias common to all its keys; with share_qkv the same key bias serves both attentions
    expected = {"window_qkv.1.bias"} if config.share_qkv else {"window_qkv.1.bias", "global_qkv.1.bias"}
    assert {name.split(".", 5)[-1] for name in silent} == expected


def test_every_parameter_of_the_segmentation_preset_trains_but_what_nothing_reads() -> None:
    network = SpanUnet(span_unet(head_channels=8, window_size=2), num_features=NUM_FEATURES, num_classes=1).double()
    silent = silent_parameters(network, NUM_FEATURES)
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == set()
    assert all(name.endswith(("window_qkv.1.bias", "global_qkv.1.bias")) for name in silent)


def silent_parameters(network: nn.Module, num_features: int) -> list[str]:
    """Names of trainable parameters whose gradient is zero up to rounding, and of those without one."""
    random_slides.shake(network).eval()
    coords = random_slides.batch_of(random_slides.random_slide(80, 13, 0), random_slides.random_slide(9, 7, 1))
    output = network(torch.randn(89, num_features).double(), coords, 2)
    (output * torch.randn_like(output)).sum().backward()
    return [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or parameter.grad.abs().max() < 1e-12
    ]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_network_can_be_built_where_no_gradients_are(mode) -> None:
    with mode():
        network = SpanMil(SpanMilConfig(head_channels=8), num_features=NUM_FEATURES, num_classes=2).eval()
        assert network(*batch(), 2).isfinite().all()


def test_building_leaves_the_random_numbers_and_the_mode_alone() -> None:
    torch.manual_seed(3)
    network = SpanMil(SpanMilConfig(head_channels=8), num_features=NUM_FEATURES, num_classes=2)
    after = torch.rand(1)
    torch.manual_seed(3)
    again = SpanMil(SpanMilConfig(head_channels=8), num_features=NUM_FEATURES, num_classes=2)
    assert torch.equal(after, torch.rand(1))
    assert network.training
    assert all(parameter.grad is None for parameter in again.parameters())
    for ours, theirs in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
