"""The same weights give the same answer on CPU and CUDA."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch

from span_sparse.float32 import exact_convolutions
from span_sparse.models import SpanMil, SpanUnet, span_mil, span_survival, span_unet
from span_sparse.models.verify import verify_reference
from span_sparse.nn.window_attention import Reach, window_attention
from span_sparse.nn.window_fused import fused_attention
from span_sparse.sparse import build_pyramid
from span_sparse.sparse.backend import probe
from span_sparse.sparse.exactness import dense_errors

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
import random_slides

REFERENCE = sorted((Path(__file__).parents[1] / "reference").glob("*.npz"))
"""Outputs, tokens of every stage and gradients of the authors' code."""

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def two_slides(num_patches: int = 700, side: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    slides = []
    for slide in range(2):
        cells = torch.randperm(side * side)[: num_patches // (slide + 1)]
        slides.append(torch.stack([torch.full_like(cells, slide), cells // side, cells % side], dim=1))
    coords = torch.cat(slides).int()
    return torch.randn(len(coords), 256), coords


@pytest.mark.parametrize("preset", [span_mil, span_survival, span_unet])
def test_outputs_and_gradients_agree(preset) -> None:
    config = preset(dropout_input=0.0, dropout_attention=0.0)
    network = SpanUnet if preset is span_unet else SpanMil
    model = network(config, num_features=256, num_classes=3).eval()
    twin = copy.deepcopy(model).cuda()
    features, coords = two_slides()
    results = []
    for one, device in ((model, "cpu"), (twin, "cuda")):
        rows = features.detach().to(device, copy=True).requires_grad_()  # a leaf of its own on either device
        logits = one(rows, coords.to(device), 2)
        logits.square().mean().backward()
        assert rows.grad is not None
        results.append((logits.detach().cpu(), rows.grad.cpu()))
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() < 1e-3 * ours.abs().max()


@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.stem)
def test_equals_the_authors_code(path: Path) -> None:
    comparisons = verify_reference(path, torch.float32, torch.device("cuda"))
    assert {"out/logits", "enc0/feats", "grad_feats_rownorm"} <= {one.quantity for one in comparisons}
    assert [(one.quantity, one.error) for one in comparisons if not one.passed] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_close(dtype: torch.dtype) -> None:
    model = SpanMil(span_mil(), num_features=256, num_classes=3).cuda().eval()
    features, coords = (rows.cuda() for rows in two_slides())
    expected = model(features, coords, 2)
    with torch.autocast("cuda", dtype):
        logits = model(features, coords, 2)
    assert torch.isfinite(logits).all()
    assert (logits.float() - expected).abs().max() < 3e-2 * expected.abs().max().clamp(min=1)


def test_maps_are_the_same() -> None:
    _, coords = two_slides()
    here = build_pyramid(coords, 2, num_levels=3, window_size=3)
    there = build_pyramid(coords.cuda(), 2, num_levels=3, window_size=3)
    for ours, theirs in zip(here.levels, there.levels, strict=True):
        assert torch.equal(ours.sites.coords, theirs.sites.coords.cpu())
        assert torch.equal(ours.windows.regular.table, theirs.windows.regular.table.cpu())
        assert torch.equal(ours.windows.shifted.table, theirs.windows.shifted.table.cpu())
        if ours.children is not None and theirs.children is not None:
            assert torch.equal(ours.children.table, theirs.children.table.cpu())


@pytest.mark.parametrize("seed", range(20))
def test_maps_of_any_pattern_are_the_same(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    kernel_size, window_size = 2 + seed % 2, 1 + seed % 4
    counts = torch.randint(1, 200, (1 + seed % 3,), generator=generator).tolist()
    coords = random_slides.batch_of(*(random_slides.random_slide(count, 17, seed) for count in counts))
    here, there = (
        build_pyramid(rows, len(counts), num_levels=3, window_size=window_size, kernel_size=kernel_size)
        for rows in (coords, coords.cuda())
    )
    for ours, theirs in zip(here.levels, there.levels, strict=True):
        found = theirs.sites.coords.cpu()
        keys = (found[:, 0].long() * 10_000 + found[:, 1]) * 10_000 + found[:, 2]
        assert (keys.diff() > 0).all()  # by (slide, row, col)
        assert torch.equal(ours.sites.coords, found)
        assert torch.equal(ours.sites.offsets, theirs.sites.offsets.cpu())
        assert torch.equal(ours.windows.cells.coords, theirs.windows.cells.coords.cpu())
        assert torch.equal(ours.windows.tokens.table, theirs.windows.tokens.table.cpu())
        assert torch.equal(ours.windows.seen, theirs.windows.seen.cpu())
        assert torch.equal(ours.windows.regular.table, theirs.windows.regular.table.cpu())
        assert torch.equal(ours.windows.shifted.table, theirs.windows.shifted.table.cpu())
        if ours.children is not None and theirs.children is not None:
            assert torch.equal(ours.children.table, theirs.children.table.cpu())
            assert torch.equal(ours.children.transposed.table, theirs.children.transposed.table.cpu())


LIMITS = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("reach", ["union", "regular", "shifted"])
@pytest.mark.parametrize(("window_size", "channels"), [(1, 16), (2, 24), (3, 64), (4, 128), (3, 33)])
def test_fused_attention_equals_the_oracle(window_size: int, channels: int, reach: Reach, dtype: torch.dtype) -> None:
    _, coords = two_slides(side=30)
    side = 4 * window_size - 1
    with exact_convolutions():
        windows = build_pyramid(coords.cuda(), 2, num_levels=1, window_size=window_size).levels[0].windows
        qkv = torch.randn(len(coords), 3, 2, channels, device="cuda").to(dtype)
        bias = torch.randn(2, side, side, device="cuda").to(dtype)
        grad = torch.randn(len(coords), 2, channels, device="cuda").to(dtype)
        leaves = [qkv.clone().requires_grad_(), bias.clone().requires_grad_()]
        wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
        runs = []
        for _ in range(2):
            output = fused_attention(*leaves, windows, reach)
            runs.append([output.detach(), *torch.autograd.grad(output, leaves, grad)])
        exact = window_attention(*wide[0].unbind(1), wide[1], windows, reach, implementation="gathered")
        expected = [exact.detach(), *torch.autograd.grad(exact, wide, grad.double())]
    for ours, again, theirs in zip(*runs, expected, strict=True):
        assert torch.equal(ours, again)
        assert (ours.double() - theirs).abs().max() < LIMITS[dtype] * theirs.abs().max().clamp(min=1)


def network_of(preset) -> torch.nn.Module:
    network = SpanUnet if preset is span_unet else SpanMil
    return network(preset(), num_features=256, num_classes=3).cuda()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("preset", [span_mil, span_survival, span_unet])
def test_a_training_step_repeats_bit_by_bit(preset, dtype: torch.dtype) -> None:
    network = network_of(preset).train()
    features, coords = (rows.cuda() for rows in two_slides())
    runs = []
    for _ in range(2):
        torch.manual_seed(5)  # of the dropout
        network.zero_grad()
        rows = features.clone().requires_grad_()
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            network(rows, coords, 2).float().square().mean().backward()
        grads = {name: one.grad.clone() for name, one in network.named_parameters() if one.grad is not None}
        runs.append(grads | {"features": rows.grad})
    assert [name for name in runs[0] if not torch.equal(runs[0][name], runs[1][name])] == []


@pytest.mark.parametrize("preset", [span_mil, span_survival, span_unet])
def test_a_forward_pass_does_not_wait_where_the_geometry_is_there(preset) -> None:
    network = network_of(preset).eval()
    features, coords = (rows.cuda() for rows in two_slides())
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        network(features, network.prepare(coords, 2), 2)  # kernels are compiled
        pyramid = network.prepare(coords, 2)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            network(features, pyramid, 2)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("preset", [span_mil, span_survival, span_unet])
def test_batched_slides_are_single_slides_within_rounding(preset, dtype: torch.dtype) -> None:
    network = network_of(preset).eval()
    features, coords = (rows.cuda() for rows in two_slides())
    with torch.no_grad(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        together = network(features, coords, 2).float()
        alone = []
        for slide in range(2):
            rows = coords[:, 0] == slide
            alone.append(network(features[rows], coords[rows] - coords.new_tensor([slide, 0, 0]), 1).float())
    limit = 1e-4 if dtype == torch.float32 else 3e-2
    assert (together - torch.cat(alone)).abs().max() < limit * together.abs().max().clamp(min=1)


def test_probe() -> None:
    result = probe("cuda")
    assert result["algorithm"] == "Native"
    assert result["max_error"] < 1e-4
    above = {(w, q): e for w, quantities in result["errors"].items() for q, e in quantities.items() if not e < 1e-5}
    assert above == {}  # what `span doctor` calls a failure


def test_float32_products_and_convolutions_are_float32_when_tf32_is_off() -> None:
    with exact_convolutions():
        errors = dense_errors(torch.device("cuda"))
    assert all(error < 1e-5 for error in errors.values()), errors
