"""SPAN-MIL against a dense evaluation of the specification, and what must never change its answer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from span_sparse.errors import BatchError, ConfigError
from span_sparse.models import SpanMil, SpanMilConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
import dense_span

SMALL = SpanMilConfig(head_channels=8, window_size=2)


def random_slide(num_patches: int, side: int, seed: int) -> Tensor:
    """Distinct cells `(row, col)`, int32, in random order."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(side * side, generator=generator)[:num_patches]
    return torch.stack([cells // side, cells % side], dim=1).int()


def batch_of(*slides: Tensor) -> Tensor:
    rows = [torch.cat([torch.full((len(slide), 1), number), slide], dim=1) for number, slide in enumerate(slides)]
    return torch.cat(rows).int()


def model_of(config: SpanMilConfig = SMALL, num_features: int = 32, num_classes: int = 3) -> SpanMil:
    model = SpanMil(config, num_features=num_features, num_classes=num_classes).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize("stages", ["1", "11", "121", "201"])
@pytest.mark.parametrize("num_patches", [1, 7, 61])
def test_equals_the_dense_oracle(stages: str, num_patches: int) -> None:
    config = SpanMilConfig(stages=stages, head_channels=8, window_size=2)
    model = model_of(config)
    grid, features = random_slide(num_patches, 13, seed=3), torch.randn(num_patches, 32).double()
    expected = dense_span.span_mil_logits(
        model.state_dict(), features, grid.long(), stages=stages, heads=2, window_size=2
    )
    ours = model(features, batch_of(grid), 1)[0]
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("head", ["multi_addition", "pyramid_pooling"])
@pytest.mark.parametrize("down", ["dwpatchconv", "patchconv"])
def test_row_order_and_batch_mates_do_not_matter(head: str, down: str) -> None:
    model = model_of(SpanMilConfig(head_channels=8, head=head, down=down)).float()  # pyright: ignore[reportArgumentType]
    slides = [random_slide(count, 17, seed) for seed, count in enumerate([40, 1, 90])]
    features = [torch.randn(len(slide), 32) for slide in slides]
    alone = torch.cat([model(rows, batch_of(slide), 1) for rows, slide in zip(features, slides, strict=True)])
    together = model(torch.cat(features), batch_of(*slides), 3)
    shuffle = torch.randperm(131)
    shuffled = model(torch.cat(features)[shuffle], batch_of(*slides)[shuffle], 3)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(shuffled, together, rtol=0, atol=0)


def test_a_far_patch_changes_neither_other_slides_nor_any_pairing() -> None:
    model = model_of().float()
    slides = [random_slide(30, 9, 1), random_slide(25, 9, 2)]
    features = torch.randn(55, 32)
    before = model.run(features, batch_of(*slides), 2)
    far = torch.tensor([[0, 40_001, 2997]], dtype=torch.int32)
    after = model.run(torch.cat([features, torch.randn(1, 32)]), torch.cat([batch_of(*slides), far]), 2)
    torch.testing.assert_close(after.logits[1], before.logits[1], rtol=0, atol=1e-5)
    for old, new in zip(before.pyramid.levels[1:], after.pyramid.levels[1:], strict=True):
        assert old.children is not None
        assert new.children is not None
        kept = [row for row, site in enumerate(new.sites.coords.tolist()) if site in old.sites.coords.tolist()]
        assert len(new.sites) == len(old.sites) + 1
        assert torch.equal(new.sites.coords[kept], old.sites.coords)
        assert torch.equal(new.children.table[kept] >= 0, old.children.table >= 0)


def test_every_parameter_trains_with_the_head_that_promises_it() -> None:
    model = model_of(SpanMilConfig(head_channels=8, head="pyramid_pooling"))
    model(torch.randn(80, 32).double(), batch_of(random_slide(80, 15, 0)), 1).square().sum().backward()
    silent = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    # a softmax does not see a bias common to all keys, and with one global token a local's softmax over it is 1
    assert all(name.endswith(("window_qkv.1.bias", "global_qkv.1.bias")) for name in silent)


def test_what_the_default_head_cannot_reach_is_frozen() -> None:
    model = model_of()
    model(torch.randn(80, 32).double(), batch_of(random_slide(80, 15, 0)), 1).sum().backward()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert all(name.startswith("encoder.stages.2.layers.0.") for name in frozen)


def test_the_classification_preset_has_the_authors_parameter_count() -> None:
    model = SpanMil(SpanMilConfig(), num_features=1024, num_classes=2)
    assert sum(parameter.numel() for parameter in model.parameters()) == 9_735_514


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        ([[0, 1, 1], [0, 1, 1]], "occurs more than once"),
        ([[0, -1, 1], [0, 1, 1]], "row, col >= 0"),
        ([[0, 1, 1], [2, 1, 1]], r"slide in \[0, 2\)"),
        ([[1, 1, 1], [1, 1, 2]], "slide 0 of the batch has no patches"),
        ([[0, 2**30, 2**30], [1, 1, 2]], "exceed spconv's"),
    ],
)
def test_bad_coordinates_are_refused(coords: list[list[int]], message: str) -> None:
    with pytest.raises(BatchError, match=message):
        model_of()(torch.randn(2, 32).double(), torch.tensor(coords, dtype=torch.int32), 2)


def test_bad_tensors_are_refused() -> None:
    model, coords = model_of(), torch.zeros(1, 3, dtype=torch.int32)
    with pytest.raises(BatchError, match=r"expected features \[tokens, 32\]"):
        model(torch.randn(1, 31).double(), coords, 1)
    with pytest.raises(BatchError, match="no patches"):
        model(torch.randn(0, 32).double(), coords[:0], 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SpanMilConfig(head_channels=48), "head_channels 48 does not divide"),
        (SpanMilConfig(embed_dim_div=3), "embed_dim_div 3 does not divide"),
        (SpanMilConfig(channel_factor=2), "equally wide"),
        (SpanMilConfig(channel_factor=2, head="last"), "depthwise"),
        (SpanMilConfig(stages="1a1"), "one digit a pyramid level"),
        (SpanMilConfig(tokens=["median"]), "unknown kind 'median'"),
        (SpanMilConfig(tokens=[]), "at least one global token"),
        (SpanMilConfig(dropout_head=1.0), "dropout_head"),
        (SpanMilConfig(kernel_size=1), "smaller than stride"),
        (SpanMilConfig(down="patchmerge", kernel_size=3), "disjoint blocks"),
        (SpanMilConfig(attention="swin"), "same answer"),
        (SpanMilConfig(stages="111-11"), "no decoder"),
    ],
)
def test_settings_that_cannot_work_are_refused(config: SpanMilConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SpanMil(config, num_features=128, num_classes=2)


def test_an_unknown_choice_is_refused_wherever_it_comes_from() -> None:
    config = SpanMilConfig()
    object.__setattr__(config, "attention", "longish")  # as unchecked code would pass it
    with pytest.raises(ConfigError, match=r"attention: expected one of long, long_noshift, .*, found 'longish'"):
        SpanMil(config, num_features=128, num_classes=2)


def test_state_dict_names_are_pinned() -> None:
    names = set(SpanMil(SpanMilConfig(stages="11", head_channels=16), num_features=32, num_classes=2).state_dict())
    layer = {
        *(
            f"{part}.{kind}"
            for part in ("attention_norm", "output", "feed_forward_norm")
            for kind in ("weight", "bias")
        ),
        *(
            f"{part}.{i}.{kind}"
            for part in ("window_qkv", "global_qkv")
            for i in range(3)
            for kind in ("weight", "bias")
        ),
        *(f"feed_forward.{i}.{kind}" for i in (0, 3) for kind in ("weight", "bias")),
        "positions.table",
    }
    norms = {f"{part}.{kind}" for part in ("operator.input_norm", "tokens.norm") for kind in ("weight", "bias")}
    down = norms | {"operator.convolution.weight"}
    assert names == {
        *(f"encoder.stages.{stage}.layers.0.{name}" for stage in (0, 1) for name in layer),
        *(f"encoder.stages.1.down.{name}" for name in down),
        "encoder.input_projection.linear.weight",
        "encoder.token_transition.projection.weight",
        "encoder.token_transition.projection.bias",
        "encoder.tokens.learned.0",
        *(f"head.readout.{part}.{kind}" for part in ("norm", "linear") for kind in ("weight", "bias")),
    }
