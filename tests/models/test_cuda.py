"""The same weights give the same answer on CPU and CUDA."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from span_sparse.float32 import exact_convolutions
from span_sparse.models import SpanMil, SpanUnet, span_mil, span_survival, span_unet
from span_sparse.models.verify import verify_reference
from span_sparse.sparse import StridedConvolution, build_pyramid
from span_sparse.sparse.backend import probe
from span_sparse.sparse.exactness import dense_errors

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


def test_implicit_gemm_and_native_give_one_kernel_map() -> None:
    features, coords = two_slides()
    sites = build_pyramid(coords, 2, num_levels=2, window_size=3).levels[0].sites
    there = build_pyramid(coords.cuda(), 2, num_levels=2, window_size=3).levels[0].sites
    layer = StridedConvolution(256, 8, kernel_size=2, stride=2)
    _, native, _ = layer.convolve(features, sites)
    _, implicit, _ = layer.cuda().convolve(features.cuda(), there)
    assert torch.equal(native.table, implicit.table.cpu())


def test_probe() -> None:
    result = probe("cuda")
    assert result["algorithm"] == "MaskImplicitGemm"
    assert result["max_error"] < 1e-4
    above = {(w, q): e for w, quantities in result["errors"].items() for q, e in quantities.items() if not e < 1e-5}
    assert above == {}  # what `span doctor` calls a failure


def test_float32_products_and_convolutions_are_float32_when_tf32_is_off() -> None:
    with exact_convolutions():
        errors = dense_errors(torch.device("cuda"))
    assert all(error < 1e-5 for error in errors.values()), errors
