"""The presets of the paper: their sizes, their names in YAML, their way through a checkpoint."""

from __future__ import annotations

from typing import get_args

import pytest
from jsonargparse import ArgumentParser, set_parsing_settings

from span_sparse.models import (
    NetworkConfig,
    SpanMil,
    SpanSurvivalConfig,
    SpanUnet,
    network_as_dict,
    network_from_dict,
    span_survival,
    span_unet,
)


def test_yaml_names_a_preset_and_overrides_it() -> None:
    set_parsing_settings(subclasses_enabled=list(get_args(NetworkConfig)))  # as `lightning fit` does
    parser = ArgumentParser()
    parser.add_argument("--network", type=NetworkConfig)
    values = {"class_path": "span_sparse.models.span_survival", "init_args": {"head_channels": 32, "stages": [1, 2]}}
    network = parser.instantiate_classes(parser.parse_object({"network": values})).network
    assert network == SpanSurvivalConfig(head_channels=32, stages=[1, 2])
    assert network.share_qkv


@pytest.mark.parametrize("config", [span_survival(window_size=2), span_unet(stages="11-1")], ids=["mil", "unet"])
def test_a_checkpoint_holds_plain_values_and_gives_them_back(config) -> None:
    values = network_as_dict(config)
    assert all(isinstance(value, str | int | float | bool | list | None) for value in values.values())
    assert network_from_dict(values) == config


def test_parameter_counts_are_the_authors() -> None:
    def count(model) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    assert count(SpanUnet(span_unet(), num_features=1024, num_classes=2)) == 104_955_346
    unused = 2 * 512 + (512 * 4 + 4) + (3 * 512 * 4 + 4)  # theirs: two further aggregators, never selected together
    assert count(SpanMil(span_survival(), num_features=1024, num_classes=4)) + unused == 10_527_588
