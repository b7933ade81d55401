"""SPAN-UNet: a network of two levels written out by hand, pinned names, sizes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from span_sparse.models import SpanUnet, SpanUnetConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
import dense_layers
import random_slides

SMALL: dict[str, Any] = {
    "channel_factor": 1,
    "down": "patchmerge",
    "norm": "post",
    "edge_mode": "none",
    "tokens": ["max"],
    "token_strategy": "proj",
    "head_channels": 8,
    "window_size": 2,
    "share_qkv": False,
    "stages": "11-1",
    "up": "pixelshuffle",
}


def linear(weights: dict[str, Tensor], name: str, rows: Tensor) -> Tensor:
    rows = rows @ weights[f"{name}.weight"].T
    return rows + weights[f"{name}.bias"] if f"{name}.bias" in weights else rows


def norm(weights: dict[str, Tensor], name: str, rows: Tensor) -> Tensor:
    return layer_norm(rows, rows.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def by_hand(
    weights: dict[str, Tensor], features: Tensor, places: list[tuple[int, int]], connection: str, order: str
) -> Tensor:
    """One slide through stages 11-1, cell by cell; `places` row-major."""

    def refined(name: str, rows: Tensor, glob: Tensor, cells: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        recipe = dense_layers.Recipe("long", "rpb", heads=2, window_size=2)
        part = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(name)}
        local, glob, _ = dense_layers.layer(recipe, part, rows, glob, torch.tensor(cells), lambda x: x.clamp(min=0))
        return local, glob

    tokens = linear(weights, "encoder.input_projection.linear", features)
    glob = linear(weights, "encoder.token_transition.projection", features.amax(dim=0, keepdim=True))
    fine, glob = refined("encoder.stages.0.layers.0", tokens, glob, places)
    fine_glob = glob
    parents = sorted({(row // 2, col // 2) for row, col in places})
    merged = torch.zeros(len(parents), 4, fine.shape[1]).double()
    for (row, col), token in zip(places, fine, strict=True):
        merged[parents.index((row // 2, col // 2)), 2 * (row % 2) + col % 2] = token
    coarse = norm(
        weights,
        "encoder.stages.1.down.operator.output_norm",
        linear(weights, "encoder.stages.1.down.operator.linear", merged.flatten(1)),
    )
    glob = linear(weights, "encoder.stages.1.down.tokens.projection", glob)
    coarse, glob = refined("encoder.stages.1.layers.0", coarse, glob, parents)
    hidden = linear(weights, "decoder.stages.0.up.operator.linear", coarse).unflatten(1, (-1, 4))
    children = [hidden[parents.index((row // 2, col // 2)), :, 2 * (row % 2) + col % 2] for row, col in places]
    spread = norm(weights, "decoder.stages.0.up.operator.output_norm", torch.stack(children))
    glob = linear(weights, "decoder.stages.0.up.tokens.projection", glob)

    def joined(ours: Tensor, theirs: Tensor) -> Tensor:
        if connection == "concat":
            return torch.cat([ours, theirs], dim=1)
        return ours + theirs if connection == "add" else ours

    layer = "decoder.stages.0.layers.0"
    if order == "after_attention":
        result = joined(refined(layer, spread, glob, places)[0], fine)
    else:
        fused = linear(weights, "decoder.stages.0.fuse", joined(spread, fine))
        glob = linear(weights, "decoder.stages.0.fuse_tokens.projection", joined(glob, fine_glob))
        result = refined(layer, fused, glob, places)[0]
    return linear(weights, "output", result)


@pytest.mark.parametrize("skip_order", ["after_attention", "before_attention"])
@pytest.mark.parametrize("connection", ["concat", "add", "none"])
def test_equals_two_levels_by_hand(connection, skip_order) -> None:
    config = SpanUnetConfig(**SMALL | {"connection": connection, "skip_order": skip_order})
    network = SpanUnet(config, num_features=32, num_classes=3).double().eval()
    random_slides.shake(network, 0.2)
    slides = [random_slides.random_slide(17, 7, 1), random_slides.random_slide(3, 5, 2)]
    coords, features = random_slides.batch_of(*slides), torch.randn(20, 32).double()
    ours = network(features, coords, 2)
    for rows in torch.arange(20).split((17, 3)):
        places = [(row, col) for _, row, col in coords[rows].tolist()]
        order = sorted(range(len(places)), key=places.__getitem__)
        weights = dict(network.state_dict())
        expected = by_hand(weights, features[rows][order], [places[i] for i in order], connection, skip_order)
        torch.testing.assert_close(ours[rows][order], expected, rtol=1e-9, atol=1e-9)


def test_state_dict_names_are_pinned() -> None:
    network = SpanUnet(SpanUnetConfig(**SMALL | {"connection": "concat"}), num_features=32, num_classes=1)
    pairs = [
        f"{part}.{kind}" for part in ("attention_norm", "output", "feed_forward_norm") for kind in ("weight", "bias")
    ]
    pairs += [
        f"{part}.{i}.{kind}" for part in ("window_qkv", "global_qkv") for i in range(3) for kind in ("weight", "bias")
    ]
    layer = {*pairs, "positions.table", *(f"feed_forward.{i}.{kind}" for i in (0, 3) for kind in ("weight", "bias"))}
    step = {"operator.linear.weight", "operator.output_norm.weight", "operator.output_norm.bias"}
    step |= {"tokens.projection.weight", "tokens.projection.bias"}
    assert set(network.state_dict()) == {
        "encoder.input_projection.linear.weight",
        "encoder.token_transition.projection.weight",
        "encoder.token_transition.projection.bias",
        *(f"encoder.stages.{stage}.layers.0.{name}" for stage in (0, 1) for name in layer),
        *(f"encoder.stages.1.down.{name}" for name in step),
        *(f"decoder.stages.0.layers.0.{name}" for name in layer),
        *(f"decoder.stages.0.up.{name}" for name in step),
        "output.weight",
        "output.bias",
    }


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"skip_order": "before_attention"}, {"fuse.weight", "fuse_tokens.projection.weight"}),
        ({"up": "patchinvs", "connection": "add"}, {"up.operator.convolution.weight"}),
        ({"up": "dwpatchinvs", "sampling_bias": True}, {f"up.operator.convolution.{k}" for k in ("weight", "bias")}),
    ],
)  # fmt: skip
def test_names_of_other_options_are_pinned(change: dict[str, Any], names: set[str]) -> None:
    network = SpanUnet(SpanUnetConfig(**SMALL | change), num_features=32, num_classes=1)
    stage = {name.removeprefix("decoder.stages.0.") for name in network.state_dict() if name.startswith("decoder")}
    assert names <= stage
    assert any(name.startswith("fuse") for name in stage) == ("skip_order" in change)
