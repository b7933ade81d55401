"""Up-sampling against torch's dense operations, on a full grid and on the sites of a slide."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv_transpose2d, layer_norm, pixel_shuffle

from span_sparse.errors import ConfigError
from span_sparse.nn import SamplingSettings, UpSampling
from span_sparse.sparse import build_pyramid

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
import random_slides

SETTINGS = SamplingSettings(
    kernel_size=2,
    stride=2,
    dilation=1,
    bias=True,
    norm="pre",
    edge_mode="none",
    edge_eps=1e-6,
    token_strategy="identity",
)
WIDTH = 3


def coarse_image(rows: Tensor, sites) -> Tensor:
    """`[slides, channels, rows, cols]`, zeros where no site is."""
    dense = rows.new_zeros(sites.num_slides, *sites.extents, rows.shape[1])
    return dense.index_put(tuple(sites.coords.long().T), rows).permute(0, 3, 1, 2)


def at_sites(dense: Tensor, sites) -> Tensor:
    return dense.permute(0, 2, 3, 1)[tuple(sites.coords.long().T)]


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize(
    ("kind", "kernel", "stride"),
    [("pixelshuffle", 2, 2), ("pixelshuffle", 3, 3), ("patchinvs", 2, 2), ("patchinvs", 3, 2), ("dwpatchinvs", 2, 2),
     ("dwpatchinvs", 3, 2)],
)  # fmt: skip
def test_equals_the_dense_operation(kind, kernel: int, stride: int, norm, full: bool) -> None:
    coords = torch.cartesian_prod(torch.arange(2), torch.arange(6), torch.arange(6)).int()
    if not full:
        coords = random_slides.batch_of(*(random_slides.random_slide(n, 9, n) for n in (17, 3)))
    pyramid = build_pyramid(coords, 2, num_levels=2, window_size=2, kernel_size=kernel, stride=stride)
    finer, coarser = pyramid.levels
    settings = replace(SETTINGS, norm=norm, kernel_size=kernel, stride=stride)
    up = random_slides.shake(UpSampling(WIDTH, WIDTH, kind, settings).double())
    assert isinstance(up, UpSampling)
    rows = torch.randn(len(coarser.sites), WIDTH).double()
    ours, _ = up(rows, torch.randn(2, 1, WIDTH).double(), coarser)
    weights = {name.removeprefix("operator."): value for name, value in up.named_parameters()}
    if kind == "pixelshuffle":
        normed = rows
        if norm == "pre":
            normed = layer_norm(rows, (WIDTH,), weights["input_norm.weight"], weights["input_norm.bias"])
        hidden = normed @ weights["linear.weight"].T + weights["linear.bias"]
        dense = pixel_shuffle(coarse_image(hidden, coarser.sites), stride)
    elif kind == "patchinvs":
        weight = weights["convolution.weight"].permute(3, 0, 1, 2)
        dense = conv_transpose2d(coarse_image(rows, coarser.sites), weight, weights["convolution.bias"], stride=stride)
    else:
        weight = weights["convolution.weight"].T.reshape(WIDTH, 1, kernel, kernel)
        image = coarse_image(rows, coarser.sites)
        dense = conv_transpose2d(image, weight, weights["convolution.bias"], stride=stride, groups=WIDTH)
    expected = at_sites(dense, finer.sites)
    if kind != "pixelshuffle" or norm == "post":
        expected = layer_norm(expected, (WIDTH,), weights["output_norm.weight"], weights["output_norm.bias"])
    torch.testing.assert_close(ours, expected)


def test_pixelshuffle_starts_with_equal_children() -> None:
    coords = torch.cartesian_prod(torch.arange(1), torch.arange(4), torch.arange(4)).int()
    pyramid = build_pyramid(coords, 1, num_levels=2, window_size=2)
    up = UpSampling(5, 7, "pixelshuffle", SETTINGS)
    rows = torch.randn(4, 5)
    fine, _ = up(rows, torch.randn(1, 1, 5), pyramid.levels[1])
    image = fine.reshape(2, 2, 2, 2, 7)  # (parent row, child row, parent col, child col)
    torch.testing.assert_close(image, image[:, :1, :, :1].expand(2, 2, 2, 2, 7))
    assert not torch.allclose(image[0, 0, 0, 0], image[1, 0, 1, 0])


@pytest.mark.parametrize("kind", ["pixelshuffle", "patchinvs", "dwpatchinvs"])
def test_gradcheck(kind) -> None:
    coords = torch.tensor([[0, 0, 0], [0, 1, 1], [0, 2, 1], [0, 3, 0], [0, 3, 1]], dtype=torch.int32)
    pyramid = build_pyramid(coords, 1, num_levels=2, window_size=1)
    up = random_slides.shake(UpSampling(2, 2, kind, SETTINGS).double())
    assert isinstance(up, UpSampling)
    names = [name for name, _ in up.operator.named_parameters()]

    def outputs(rows: Tensor, *values: Tensor) -> Tensor:
        arguments = (rows, pyramid.levels[1].children)
        return torch.func.functional_call(up.operator, dict(zip(names, values, strict=True)), arguments)

    rows = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(outputs, (rows, *up.operator.parameters()))


@pytest.mark.parametrize(
    ("kind", "widths", "change", "message"),
    [
        ("dwpatchinvs", (4, 8), {}, "keeps the width, but 4 → 8"),
        ("pixelshuffle", (4, 4), {"kernel_size": 3}, "kernel_size 3 must equal stride 2"),
        ("pixelshuffle", (4, 4), {"dilation": 2}, "dilation 2 must be 1"),
    ],
)
def test_what_an_operation_cannot_be_is_refused(kind, widths: tuple[int, int], change, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UpSampling(*widths, kind, replace(SETTINGS, **change))
