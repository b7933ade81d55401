"""Settings: every refusal with its reason, the grammar of stages, the way into a checkpoint and back."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
import torch

from span_sparse.errors import CheckpointError, ConfigError
from span_sparse.models import (
    AttentionMil,
    AttentionPoolingConfig,
    MeanPooling,
    MeanPoolingConfig,
    SpanMil,
    SpanMilConfig,
    SpanUnet,
    SpanUnetConfig,
    build_network,
    network_as_dict,
    network_from_dict,
    span_mil,
    span_survival,
    span_unet,
)

NAN = float("nan")

MIL_REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"stages": 111}, "expected digits in quotes such as '111', found the number 111"),
    ({"stages": ""}, "one digit a pyramid level"),
    ({"stages": "1-"}, "one digit a pyramid level"),
    ({"stages": "1.1"}, "one digit a pyramid level"),
    ({"stages": "111-11-1"}, "expected '<encoder>' or '<encoder>-<decoder>'"),
    ({"stages": []}, "expected '<encoder>' or '<encoder>-<decoder>'"),
    ({"stages": [1, -1]}, "expected '<encoder>' or '<encoder>-<decoder>'"),
    ({"stages": "111-111"}, "one stage fewer than its encoder, expected 2, found 3"),
    ({"stages": "111-11"}, "no decoder; use SpanUnetConfig"),
    ({"stages": "000"}, "nothing writes them"),
    ({"embed_dim_div": 0}, "embed_dim_div 0 does not divide the feature width 128"),
    ({"embed_dim_div": 256}, "embed_dim_div 256 does not divide"),
    ({"head_channels": 48}, r"head_channels 48 does not divide the stage widths \[64, 64, 64\]"),
    ({"edge_eps": 0.0}, "edge_eps: expected a positive number, found 0.0"),
    ({"ff_ratio": -1.0}, "ff_ratio: expected a positive number"),
    ({"ff_ratio": NAN}, "ff_ratio: expected a positive number"),
    ({"input_mlp_ratio": 0.0}, "input_mlp_ratio: expected a positive number"),
    ({"position_std": -0.1}, "position_std: expected 0 or more"),
    ({"position_std": NAN}, "position_std: expected 0 or more"),
    ({"kernel_size": 2, "stride": 3}, "kernel_size 2 is smaller than stride 3"),
    ({"head_divisor": 0}, "head_divisor: expected at least 1, found 0"),
    ({"channel_factor": 2}, "equally wide, but channel_factor is 2"),
    ({"channel_factor": 2, "head": "last"}, "down 'dwpatchconv' is depthwise and keeps the width, but 64 → 128"),
    ({"down": "patchmerge", "stride": 3, "kernel_size": 4}, "kernel_size 4 must equal stride 3"),
    ({"down": "patchmerge", "dilation": 2}, "dilation 2 must be 1"),
    ({"tokens": []}, "at least one global token is needed"),
    ({"tokens": ["lrn"]}, "unknown kind 'lrn'"),
    ({"tokens": ["mean", "fix-1"]}, "unknown kind 'fix-1'"),
    *(({name: 0}, f"{name}: expected at least 1, found 0") for name in
      ("channel_factor", "head_channels", "window_size", "kernel_size", "stride", "dilation")),
    *(({name: rate}, rf"{name}: expected a rate in \[0, 1\)") for name in
      ("dropout_input", "dropout_attention", "dropout_head", "drop_path") for rate in (-0.1, 1.0, NAN)),
    *(({"attention": mode, "head": head}, f"head '{head}' .* attention '{mode}' never writes them")
      for mode in ("swin", "tradswin") for head in ("multi_addition", "concat", "mean", "last")),
]  # fmt: skip


def exactly(config_type: type, change: dict[str, Any]) -> Any:
    """Settings as unchecked code would pass them: types are looked at by the network, not by Python."""
    config = config_type()
    for name, value in change.items():
        object.__setattr__(config, name, value)
    return config


@pytest.mark.parametrize(("change", "message"), MIL_REFUSALS, ids=[str(change) for change, _ in MIL_REFUSALS])
def test_slide_level_settings_that_cannot_work(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SpanMil(exactly(SpanMilConfig, change), num_features=128, num_classes=2)


@pytest.mark.parametrize(
    "name",
    ["attention", "positions", "down", "norm", "edge_mode", "token_strategy", "activation", "input_activation", "head",
     "head_activation"],
)  # fmt: skip
def test_an_unknown_choice_is_named_with_what_is_known(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}: expected one of \w+, .*, found 'nonsense'$"):
        exactly(SpanMilConfig, {name: "nonsense"}).widths(128)


UNET_REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"stages": "111"}, "a segmentation model needs a decoder"),
    ({"stages": [1, 1]}, "a segmentation model needs a decoder"),
    ({"stages": "111-111"}, "expected 2, found 3"),
    ({"stages": "111-1"}, "expected 2, found 1"),
    ({"stages": "1-1"}, "expected 0, found 1"),
    ({"up": "dwpatchinvs"}, "up 'dwpatchinvs' is depthwise and keeps the width"),
    ({"up": "dwpatchinvs", "channel_factor": 1}, "set channel_factor to 1 and connection to 'add' or 'none'"),
    ({"kernel_size": 3}, "up 'pixelshuffle' needs one parent for every patch: kernel_size 3 must equal stride 2"),
    ({"up": "sideways"}, "up: expected one of pixelshuffle, patchinvs, dwpatchinvs, found 'sideways'"),
    ({"connection": "glue"}, "connection: expected one of"),
    ({"skip_order": "never"}, "skip_order: expected one of"),
    ({"decoder_attention": "full"}, "decoder_attention: expected one of"),
]


@pytest.mark.parametrize(("change", "message"), UNET_REFUSALS, ids=[str(change) for change, _ in UNET_REFUSALS])
def test_patch_level_settings_that_cannot_work(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SpanUnet(exactly(SpanUnetConfig, change), num_features=128, num_classes=2)


def test_what_may_be_left_out_may() -> None:
    for change in ({"decoder_attention": None}, {"input_activation": None}):
        SpanUnetConfig(**change).widths(128)


@pytest.mark.parametrize(
    ("stages", "depths"),
    [("111", ([1, 1, 1], [])), ("3", ([3], [])), ([1, 12, 0], ([1, 12, 0], [])), ("201-10", ([2, 0, 1], [1, 0]))],
)
def test_grammar_of_stages(stages, depths) -> None:
    assert SpanMilConfig(stages=stages).depths() == depths


def test_widths_follow_the_factor() -> None:
    assert span_unet().widths(1024) == [512, 1024, 2048]
    assert span_mil(stages="1111").widths(256) == [128] * 4
    assert span_mil(channel_factor=3, head="last", embed_dim_div=1).widths(64) == [64, 192, 576]


CONFIGS = [
    span_mil(),
    span_survival(stages=[1, 2]),
    span_unet(tokens=["max"], decoder_attention="swin"),
    MeanPoolingConfig(hidden=7),
    AttentionPoolingConfig(hidden=9, dropout=0.5),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_through_json_and_a_weights_only_checkpoint_and_back(config, tmp_path) -> None:
    values = network_as_dict(config)
    restored = network_from_dict(json.loads(json.dumps(values)))
    assert network_as_dict(restored) == values
    assert restored.as_dict() == config.as_dict()
    torch.save(values, tmp_path / "settings.pt")
    assert network_from_dict(torch.load(tmp_path / "settings.pt", weights_only=True)) == restored
    assert values["kind"] == network_as_dict(config)["kind"]  # `network_from_dict` left its argument alone


def test_values_written_down_do_not_change_with_the_settings() -> None:
    config = span_mil()
    values = network_as_dict(config)
    values["tokens"].append("max")
    assert config.tokens == ["lrn1e-4"]
    assert SpanMilConfig().tokens == ["lrn1e-4"]
    with pytest.raises(FrozenInstanceError):
        config.stages = "1"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_preset_from_plain_values() -> None:
    plain = {"stages": "12", "head": "concat", "window_size": 2}
    config = span_survival(**plain)
    assert {name: getattr(config, name) for name in plain} == plain
    assert (config.norm, config.share_qkv, config.ff_ratio, config.head_norm) == ("post", True, 4.0, False)
    assert set(config.as_dict()) == {field.name for field in fields(config)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "unknown network None"),
        ({"kind": "transformer"}, r"unknown network 'transformer'; expected one of .*span_mil"),
        ({"kind": "span_mil", "colour": 3}, r"settings of network 'span_mil' do not fit this version: .*colour"),
    ],
)
def test_settings_of_another_program_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        network_from_dict(values)


@pytest.mark.parametrize(
    ("config", "network_type"),
    [
        (span_mil(head_channels=8), SpanMil),
        (MeanPoolingConfig(), MeanPooling),
        (AttentionPoolingConfig(), AttentionMil),
    ],
)
def test_settings_know_their_network(config, network_type: type) -> None:
    network = build_network(config, num_features=32, num_classes=3).eval()
    assert isinstance(network, network_type)
    coords = torch.tensor([[1, 0, 0], [0, 2, 1], [1, 5, 5]], dtype=torch.int32)
    features = torch.randn(3, 32)
    logits = network(features, coords, 2)
    assert logits.shape == (2, 3)
    torch.testing.assert_close(network(features[[1]], coords[[1]], 1), logits[:1])
