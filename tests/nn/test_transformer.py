"""One transformer layer of every mode against loops over pairs of tokens; DropPath; what may be left out."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from span_sparse.nn import LayerSettings, execution, make_layer
from span_sparse.sparse import Level, make_sites, window_maps

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
import dense_layers
import random_slides

HEADS, WIDTH, WINDOW, SIDE = 3, 24, 2, 9
SETTINGS = LayerSettings(
    mode="long",
    positions="rpb",
    head_channels=WIDTH // HEADS,
    window_size=WINDOW,
    ff_ratio=1.5,
    activation=nn.GELU,
    dropout=0.0,
    drop_path=0.0,
    position_std=1.0,
    share_qkv=False,
)
MODES = ["long", "long_noshift", "swin", "swin_global", "tradswin"]


def level_of(*num_patches: int) -> Level:
    slides = [random_slides.random_slide(count, SIDE, seed) for seed, count in enumerate(num_patches)]
    sites, _ = make_sites(random_slides.batch_of(*slides), len(slides))
    return Level(sites, window_maps(sites, WINDOW), None)


def tokens_of(level: Level, num_globals: int) -> tuple[torch.Tensor, torch.Tensor]:
    sites = level.sites
    return torch.randn(len(sites), WIDTH).double(), torch.randn(sites.num_slides, num_globals, WIDTH).double()


@pytest.mark.parametrize("share_qkv", [False, True])
@pytest.mark.parametrize("positions", ["rpb", "alibi", "rope", "none"])
@pytest.mark.parametrize("mode", MODES)
def test_equals_the_dense_layer(mode, positions, share_qkv: bool) -> None:
    level = level_of(13, 3)
    num_globals = 1 if share_qkv else 2
    tokens, global_tokens = tokens_of(level, num_globals)
    settings = replace(SETTINGS, mode=mode, positions=positions, share_qkv=share_qkv)
    layer = random_slides.shake(make_layer(WIDTH, settings).double())
    local, glob, weights = layer(tokens, global_tokens, level)
    recipe = dense_layers.Recipe(mode, positions, HEADS, WINDOW, share_qkv)
    error = {"rope": 1e-5, "alibi": 1e-6}.get(positions, 1e-10)  # angles and distances are float32
    close = {"rtol": error, "atol": error}
    start = 0
    for slide, count in enumerate(level.sites.counts):
        rows = slice(start, start + count)
        places = level.sites.coords[rows, 1:]
        expected = dense_layers.layer(
            recipe, layer.state_dict(), tokens[rows], global_tokens[slide], places, nn.functional.gelu
        )
        torch.testing.assert_close(local[rows], expected[0], **close)
        torch.testing.assert_close(glob[slide], expected[1], **close)
        assert (weights is None) == (expected[2] is None)
        if weights is not None:
            torch.testing.assert_close(weights[..., rows], expected[2], **close)
        start += count


@pytest.mark.parametrize("positions", ["rpb", "rope"])
@pytest.mark.parametrize("mode", MODES)
def test_locals_nobody_reads_do_not_change_the_globals(mode, positions) -> None:
    level = level_of(12, 5)
    tokens, global_tokens = tokens_of(level, 2)
    layer = random_slides.shake(make_layer(WIDTH, replace(SETTINGS, mode=mode, positions=positions)).double())
    whole = layer(tokens, global_tokens, level)
    short = layer(tokens, global_tokens, level, locals_needed=False)
    torch.testing.assert_close(short.global_tokens, whole.global_tokens)
    assert torch.equal(short.local_tokens, tokens)


def test_the_halves_of_tradswin_share_their_position_table() -> None:
    layer = make_layer(WIDTH, replace(SETTINGS, mode="tradswin"))
    names = [name for name, _ in layer.named_parameters() if "table" in name]
    assert names == ["shifted.positions.table"]
    assert (
        make_layer(WIDTH, replace(SETTINGS, share_qkv=True))
        .state_dict()
        .keys()
        .isdisjoint({"global_qkv.0.weight", "global_qkv.1.weight", "global_qkv.2.weight"})
    )


def test_drop_path_drops_slides_and_keeps_the_expectation() -> None:
    """Equal slides: each shows one of four results, `x + a·attention`, `+ b·feed-forward`, a and b of 0 or 1/(1-p)."""
    count, rate = 400, 0.25
    cells = torch.tensor([[0, 0], [0, 1], [3, 2]], dtype=torch.int32)
    sites, _ = make_sites(random_slides.batch_of(*[cells] * count), count)
    level = Level(sites, window_maps(sites, WINDOW), None)
    row, glob = torch.randn(3, WIDTH).double(), torch.randn(1, WIDTH).double()
    layer = random_slides.shake(make_layer(WIDTH, replace(SETTINGS, drop_path=rate)).double())
    tokens, global_tokens = row.repeat(count, 1), glob.expand(count, 1, WIDTH)
    branches: list[torch.Tensor] = []
    hook = layer.output.register_forward_hook(lambda _module, _inputs, output: branches.append(output))
    local, written, _ = layer(tokens, global_tokens, level)
    hook.remove()
    for_globals, for_locals = branches
    matches = []
    for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
        same = torch.ones(count, dtype=torch.bool)
        for start, branch, result in ((tokens, for_locals, local), (global_tokens, for_globals, written)):
            halfway = start + branch * a / (1 - rate)
            expected = halfway + layer.feed_forward(layer.feed_forward_norm(halfway)) * b / (1 - rate)
            same &= (result - expected).abs().reshape(count, -1).amax(dim=1) < 1e-9
        matches.append(same)
    assert torch.equal(torch.stack(matches).sum(dim=0), torch.ones(count, dtype=torch.long))
    shares = torch.stack(matches).double().mean(dim=1).reshape(2, 2)
    torch.testing.assert_close(shares, torch.tensor([[1.0, 3], [3, 9]]).double() / 16, rtol=0, atol=0.08)
    layer.eval()
    assert layer(tokens, global_tokens, level).local_tokens.reshape(count, -1).std(dim=0).max() < 1e-9


@pytest.mark.parametrize("num_heads", [1, 3, 6])
@pytest.mark.parametrize("positions", ["rpb", "rope"])
@pytest.mark.parametrize("mode", MODES)
def test_the_frugal_way_without_gradients_says_the_same(mode, positions, num_heads: int) -> None:
    """Heads in groups and rows in blocks; 1, 3 and 6 heads fall into groups of unequal size."""
    level = level_of(13, 3)
    tokens, global_tokens = tokens_of(level, 2)
    settings = replace(SETTINGS, mode=mode, positions=positions, head_channels=WIDTH // num_heads)
    layer = random_slides.shake(make_layer(WIDTH, settings).double())
    kept = layer(tokens, global_tokens, level)
    with torch.no_grad(), execution(rows_at_once=5):
        frugal = layer(tokens, global_tokens, level)
    assert kept.local_tokens.requires_grad
    for ours, expected in zip(frugal, kept, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
