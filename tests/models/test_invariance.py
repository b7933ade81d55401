"""What must never change an answer: the order of rows, batch mates, and where on the glass the tissue lies.

A slide moved by a multiple of `2w · S` lattice cells (S the factor between patches and the coarsest level) keeps its
2 × 2 blocks and its windows on every level, so it keeps its logits. Two exceptions are by definition. Rotary positions
are absolute for the global tokens, which stand at (0, 0); without an exchange with them (`swin`, `tradswin`) only
displacements remain, up to the float32 angles. A kernel larger than the stride, without padding, has no output at -1:
tissue in the very first rows and columns is read once less often than the same tissue elsewhere.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from span_sparse.errors import BatchError
from span_sparse.models import SpanMil, SpanMilConfig, SpanUnet, SpanUnetConfig
from span_sparse.nn import execution

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
import random_slides

NUM_FEATURES, WINDOW = 16, 2
MIL: dict[str, dict[str, Any]] = {
    "default": {},
    "pooling": {"head": "pyramid_pooling", "down": "patchconv", "kernel_size": 3, "positions": "alibi"},
    "merged": {"head": "multiattn", "down": "patchmerge", "attention": "swin_global", "norm": "post"},
    "tradswin": {"head": "addition", "attention": "tradswin", "edge_mode": "partial", "positions": "none"},
    "tokens": {"head": "concat", "attention": "long_noshift", "tokens": ["max", "std", "fix1", "mean"], "stages": "12"},
    "kernel": {"token_strategy": "kernel", "share_qkv": True, "stages": "1101", "sampling_bias": True},
}
NARROW: dict[str, Any] = {"channel_factor": 1, "down": "dwpatchconv"}
UNET: dict[str, dict[str, Any]] = {
    "shuffled": {"down": "patchconv", "channel_factor": 2, "norm": "post", "tokens": ["max", "mean", "fix1e-4"]},
    "inverse": NARROW | {"up": "patchinvs", "skip_order": "before_attention", "kernel_size": 3, "stages": "1111-111"},
    "depthwise": NARROW | {"up": "dwpatchinvs", "connection": "add", "positions": "alibi", "token_strategy": "kernel"},
    "none": {
        "connection": "none",
        "decoder_attention": "swin",
        "down": "patchmerge",
        "norm": "pre",
        "tokens": ["lrn1"],
    },
}


@functools.cache
def network_of(name: str) -> SpanMil | SpanUnet:
    """Built once: hypothesis runs each of them many times."""
    torch.manual_seed(1)
    if name in MIL:
        config = SpanMilConfig(head_channels=8, window_size=WINDOW, **MIL[name])
        network = SpanMil(config, num_features=NUM_FEATURES, num_classes=2)
    else:
        config = SpanUnetConfig(head_channels=8, window_size=WINDOW, **UNET[name])
        network = SpanUnet(config, num_features=NUM_FEATURES, num_classes=2)
    random_slides.shake(network.double().eval())
    return network


def features_of(cells: Tensor) -> Tensor:
    """Features that belong to a cell, whatever its row number: hypothesis may shrink and reorder freely."""
    phase = cells.double() @ torch.tensor([[0.7], [1.3]]).double()
    return torch.sin(phase * torch.arange(1, NUM_FEATURES + 1) ** 1.5)


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


names = st.sampled_from([*MIL, *UNET])


@settings(max_examples=25, deadline=None)
@given(names, random_slides.cell_sets, random_slides.cell_sets, st.randoms(use_true_random=False))
def test_order_of_rows_and_batch_mates(name: str, first, second, random) -> None:
    network = network_of(name)
    slides = [random_slides.grid_of(cells) for cells in (first, second)]
    features, coords = torch.cat([features_of(slide) for slide in slides]), random_slides.batch_of(*slides)
    together = network(features, coords, 2)
    order = list(range(len(coords)))
    random.shuffle(order)
    shuffled = network(features[order], coords[order], 2)
    alone = [network(features_of(slide), random_slides.batch_of(slide), 1) for slide in slides]
    assert torch.equal(shuffled, together[order] if name in UNET else together)
    same(together, torch.cat(alone))


@settings(max_examples=25, deadline=None)
@given(names, random_slides.cell_sets, st.integers(0, 3), st.integers(0, 3))
def test_where_the_tissue_lies(name: str, cells, down: int, right: int) -> None:
    network = network_of(name)
    slide = random_slides.grid_of(cells)
    step = 2 * WINDOW * 2 ** (len(network.config.depths()[0]) - 1)
    features = features_of(slide)
    start = slide + step * int(network.config.kernel_size > network.config.stride)  # away from the missing output
    moved = start + torch.tensor([down * step, right * step], dtype=torch.int32)
    logits = [network(features, random_slides.batch_of(place), 1) for place in (start, moved)]
    same(logits[1], logits[0])


@pytest.mark.parametrize("name", [*MIL, *UNET])
def test_a_smaller_move_is_seen(name: str) -> None:
    """The test above can fail: half a window further the windows are others."""
    network = network_of(name)
    slide = random_slides.random_slide(40, 11, 3)
    features = features_of(slide)
    logits = [network(features, random_slides.batch_of(slide + move), 1) for move in (0, WINDOW - 1)]
    assert (logits[1] - logits[0]).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("attention", "moves"), [("long", True), ("swin_global", True), ("swin", False), ("tradswin", False)]
)
def test_rotary_positions_are_absolute_for_the_global_tokens_only(attention, moves: bool) -> None:
    config = SpanMilConfig(
        head_channels=8, window_size=WINDOW, positions="rope", attention=attention, head="pyramid_pooling"
    )
    network = SpanMil(config, num_features=NUM_FEATURES, num_classes=2).double().eval()
    random_slides.shake(network)
    slide = random_slides.random_slide(40, 11, 3)
    logits = [network(features_of(slide), random_slides.batch_of(slide + move), 1) for move in (0, 16)]
    assert ((logits[1] - logits[0]).abs().max() > 1e-4) == moves
    if not moves:
        torch.testing.assert_close(logits[1], logits[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["default", "shuffled"])
def test_repeated_cells_are_refused(name: str) -> None:
    coords = torch.tensor([[0, 3, 1], [0, 2, 2], [0, 3, 1]], dtype=torch.int32)
    with pytest.raises(BatchError, match=r"cell \(row 3, col 1\) of slide 0 .* more than once"):
        network_of(name)(torch.randn(3, NUM_FEATURES).double(), coords, 1)


@pytest.mark.parametrize("up", ["pixelshuffle", "patchinvs", "dwpatchinvs"])
@pytest.mark.parametrize("levels", range(1, 6))
def test_a_decoder_lands_on_the_patches_at_every_depth(up, levels: int) -> None:
    """Levels of decoder tokens are those of the encoder, row by row; patches come out in the caller's order."""
    stages = f"{'1' * (levels + 1)}-{'1' * levels}"
    narrow = NARROW | {"stages": stages, "up": up, "connection": "add"}
    config = SpanUnetConfig(head_channels=8, window_size=WINDOW, **narrow)
    network = SpanUnet(config, num_features=NUM_FEATURES, num_classes=2).double().eval()
    random_slides.shake(network, 0.1)
    slides = [random_slides.random_slide(40, 21, 0), random_slides.random_slide(2, 40, 1)]
    coords = random_slides.batch_of(*slides)
    features = torch.cat([features_of(slide) for slide in slides])
    result = network.run(features, coords, 2)
    decoded = [len(stage.local_tokens) for stage in result.decoded]
    assert decoded == [len(level.sites) for level in reversed(result.pyramid.levels[:-1])]
    ordered = network.output(result.decoded[-1].local_tokens)
    assert torch.equal(result.logits[result.pyramid.order], ordered)
    assert torch.equal(coords[result.pyramid.order], result.pyramid.levels[0].sites.coords)
    by_cell = coords[:, 0] * 10**6 + coords[:, 1] * 1000 + coords[:, 2]
    order = by_cell.argsort()
    assert torch.equal(network(features[order], coords[order], 2), result.logits[order])


@pytest.mark.parametrize("name", [*MIL, *UNET])
def test_gradients_do_not_change_the_answer(name: str) -> None:
    """Without them, rows are projected in blocks and heads attended to in groups."""
    slides = [random_slides.random_slide(count, 9, seed) for seed, count in enumerate((23, 6))]
    features, coords = torch.cat([features_of(slide) for slide in slides]), random_slides.batch_of(*slides)
    logits = network_of(name)(features, coords, 2)
    with torch.no_grad(), execution(rows_at_once=5):
        same(network_of(name)(features, coords, 2), logits)
    assert logits.requires_grad
