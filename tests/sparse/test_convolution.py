"""spconv's convolutions, wrapped, against torch's dense ones on the active sites, and their gradients."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d

from span_sparse.errors import BatchError
from span_sparse.sparse import (
    InverseConvolution,
    SparseSites,
    StridedConvolution,
    depthwise_convolution,
    make_sites,
    strided_map,
)
from span_sparse.sparse import convolution as convolution_module

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
import random_slides

SHAPES = [(2, 2, 1), (3, 2, 1), (3, 1, 1), (3, 3, 1), (2, 2, 2), (3, 2, 2), (3, 1, 2)]
"""Kernel, stride, dilation."""


def sites_of(*num_patches: int, side: int = 9) -> SparseSites:
    slides = [random_slides.random_slide(count, side, seed) for seed, count in enumerate(num_patches)]
    return make_sites(random_slides.batch_of(*slides), len(slides))[0]


def densely(rows: Tensor, sites: SparseSites, extents: tuple[int, int]) -> Tensor:
    """`[slides, channels, rows, cols]`, zeros where no site is."""
    dense = rows.new_zeros(sites.num_slides, *extents, rows.shape[1])
    return dense.index_put(tuple(sites.coords.long().T), rows).permute(0, 3, 1, 2)


def at_sites(dense: Tensor, sites: SparseSites) -> Tensor:
    return dense.permute(0, 2, 3, 1)[tuple(sites.coords.long().T)]


def same_gradients(ours: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(ours, expected)
    probe = torch.randn_like(ours)
    gradients = (torch.autograd.grad((result * probe).sum(), leaves) for result in (ours, expected))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("kernel", "stride", "dilation"), SHAPES)
def test_strided_equals_conv2d(kernel: int, stride: int, dilation: int) -> None:
    sites = sites_of(31, 12)
    layer = StridedConvolution(3, 5, kernel_size=kernel, stride=stride, dilation=dilation, bias=True).double()
    random_slides.shake(layer)
    rows = torch.randn(43, 3, dtype=torch.float64, requires_grad=True)
    outputs, table, ours = layer.convolve(rows, sites)
    weight = layer.weight.permute(0, 3, 1, 2)
    dense = conv2d(densely(rows, sites, (24, 24)), weight, layer.bias, stride=stride, dilation=dilation)
    same_gradients(ours, at_sites(dense, outputs), [rows, layer.weight, *layer.parameters()])
    assert torch.equal(table.table, strided_map(sites, kernel, stride, dilation)[1].table)
    reached = conv2d(densely(torch.ones(43, 1), sites, (24, 24)), torch.ones(1, 1, kernel, kernel), stride=stride,
                     dilation=dilation)[:, 0].nonzero()  # fmt: skip
    assert torch.equal(outputs.coords.long(), reached)


@pytest.mark.parametrize(("kernel", "stride", "dilation"), SHAPES)
def test_inverse_equals_conv_transpose2d_on_the_sites(kernel: int, stride: int, dilation: int) -> None:
    sites = sites_of(31, 12)
    outputs, children = strided_map(sites, kernel, stride, dilation)
    layer = InverseConvolution(4, 3, kernel_size=kernel, bias=True).double()
    random_slides.shake(layer)
    rows = torch.randn(len(outputs), 4, dtype=torch.float64, requires_grad=True)
    weight = layer.weight.permute(3, 0, 1, 2)  # (in, out, kernel, kernel)
    dense = densely(rows, outputs, outputs.extents)
    dense = conv_transpose2d(dense, weight, layer.bias, stride=stride, dilation=dilation)
    same_gradients(layer(rows, children), at_sites(dense, sites), [rows, *layer.parameters()])


@pytest.mark.parametrize(("kernel", "stride", "dilation"), SHAPES)
def test_depthwise_and_its_inverse_equal_grouped_convolutions(kernel: int, stride: int, dilation: int) -> None:
    sites = sites_of(31, 12)
    outputs, children = strided_map(sites, kernel, stride, dilation)
    weight = torch.randn(kernel**2, 3, dtype=torch.float64, requires_grad=True)
    grouped = weight.T.reshape(3, 1, kernel, kernel)
    rows = torch.randn(43, 3, dtype=torch.float64, requires_grad=True)
    dense = conv2d(densely(rows, sites, (24, 24)), grouped, stride=stride, dilation=dilation, groups=3)
    same_gradients(depthwise_convolution(rows, weight, children), at_sites(dense, outputs), [rows, weight])

    rows = torch.randn(len(outputs), 3, dtype=torch.float64, requires_grad=True)
    dense = densely(rows, outputs, outputs.extents)
    dense = conv_transpose2d(dense, grouped, stride=stride, dilation=dilation, groups=3)
    ours = depthwise_convolution(rows, weight, children.transposed)
    same_gradients(ours, at_sites(dense, sites), [rows, weight])


@pytest.mark.parametrize(("kernel", "dilation"), [(2, 1), (3, 2)])
def test_gradcheck(kernel: int, dilation: int) -> None:
    sites = sites_of(5, 3, side=4)
    outputs, children = strided_map(sites, kernel, 2, dilation)
    strided = StridedConvolution(2, 3, kernel_size=kernel, stride=2, dilation=dilation, bias=True).double()
    inverse = InverseConvolution(2, 3, kernel_size=kernel, bias=True).double()
    fine, coarse = (torch.randn(n, 2, dtype=torch.float64, requires_grad=True) for n in (8, len(outputs)))
    weight = torch.randn(kernel**2, 2, dtype=torch.float64, requires_grad=True)

    def call(layer: torch.nn.Module, *arguments: object):
        names = [name for name, _ in layer.named_parameters()]
        return lambda rows, *values: torch.func.functional_call(
            layer, dict(zip(names, values, strict=True)), (rows, *arguments)
        )

    for layer, rows, arguments in ((strided, fine, children), (inverse, coarse, children)):
        assert torch.autograd.gradcheck(call(layer, arguments), (rows, *layer.parameters()))
    back = children.transposed
    assert torch.autograd.gradcheck(lambda x, w: depthwise_convolution(x, w, children), (fine, weight))
    assert torch.autograd.gradcheck(lambda x, w: depthwise_convolution(x, w, back), (coarse, weight))


def test_constant_is_the_value_inside_a_full_neighbourhood() -> None:
    coords = torch.cartesian_prod(torch.arange(1), torch.arange(6), torch.arange(6)).int()
    sites, _ = make_sites(coords, 1)
    row = torch.randn(1, 3, dtype=torch.float64)
    strided = StridedConvolution(3, 5, kernel_size=2, stride=2, bias=True).double()
    random_slides.shake(strided)
    outputs, children, everywhere = strided.convolve(row.expand(36, 3), sites)
    torch.testing.assert_close(everywhere, strided.constant(row).expand(9, 5))
    magnitudes = strided.weight.abs().sum(dim=-1)
    for tap in range(4):
        assert torch.equal(strided.tap_magnitudes()[tap], magnitudes[:, tap // 2, tap % 2])
    inverse = InverseConvolution(3, 5, kernel_size=2, bias=True).double()
    random_slides.shake(inverse)
    spread = inverse(row.expand(len(outputs), 3), children)
    torch.testing.assert_close(inverse.constant(row)[0], spread.mean(dim=0))


def test_a_tensor_beyond_spconvs_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution_module, "MAX_TENSOR_BYTES", 8 * 3 * 4 - 1)
    sites = sites_of(8)
    _, children = strided_map(sites, 2, 2)
    with pytest.raises(BatchError, match="8 tokens of 3 channels exceed spconv's limit"):
        StridedConvolution(3, 3, kernel_size=2, stride=2)(torch.randn(8, 3), children)
    monkeypatch.setattr(convolution_module, "MAX_TENSOR_BYTES", 1)
    with pytest.raises(BatchError, match="exceed spconv's limit"):
        InverseConvolution(3, 3, kernel_size=2)(torch.randn(children.num_outputs, 3), children)
