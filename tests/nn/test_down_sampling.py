"""Down-sampling against loops over outputs and taps, for every operation, norm, edge mode and kernel."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from span_sparse.errors import ConfigError
from span_sparse.nn import DownSampling, SamplingSettings
from span_sparse.sparse import Pyramid, build_pyramid

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
KERNELS = [(2, 2, 1), (3, 2, 1), (3, 2, 2), (3, 3, 1)]


def pyramid_of(settings: SamplingSettings) -> Pyramid:
    slides = [random_slides.random_slide(23, 8, 23), torch.tensor([[0, 0], [5, 3], [4, 3], [2, 6]])]
    return build_pyramid(
        random_slides.batch_of(*slides),
        2,
        num_levels=2,
        window_size=2,
        kernel_size=settings.kernel_size,
        stride=settings.stride,
        dilation=settings.dilation,
    )


def kernel_of(operator: nn.Module, kind: str, kernel_size: int) -> Tensor:
    """`[taps, out, in]` of every operation: depthwise ones are diagonal, a Linear has its slots side by side."""
    if kind == "patchconv":
        return operator.convolution.weight.permute(1, 2, 0, 3).flatten(0, 1)
    if kind == "dwpatchconv":
        return torch.stack([tap.diag() for tap in operator.convolution.weight])
    weight = operator.linear.weight
    return torch.stack(weight.split(weight.shape[1] // kernel_size**2, dim=1))


def expected_rows(
    operator: nn.Module, kind: str, settings: SamplingSettings, rows: Tensor, pyramid: Pyramid
) -> list[Tensor]:
    """The formula, output by output."""
    sites = {tuple(site): i for i, site in enumerate(pyramid.levels[0].sites.coords.tolist())}
    weight = kernel_of(operator, kind, settings.kernel_size)
    bias = (operator.linear if kind == "patchmerge" else operator.convolution).bias
    bias = torch.zeros(len(weight[0]), dtype=rows.dtype) if bias is None else bias
    outputs = []
    for slide, row, col in pyramid.levels[1].sites.coords.tolist():
        taps = itertools.product(range(settings.kernel_size), repeat=2)
        reads = [(slide, settings.stride * row + settings.dilation * y, settings.stride * col + settings.dilation * x)
                 for y, x in taps]  # fmt: skip
        active = {tap: rows[sites[site]] for tap, site in enumerate(reads) if site in sites}
        if kind == "patchmerge":
            merged = torch.cat([active.get(tap, torch.zeros_like(rows[0])) for tap in range(len(reads))])
            merged = merged if settings.edge_mode == "none" else merged / len(active)
            output = operator.linear(operator.input_norm(merged))
        else:
            output = bias + sum(weight[tap] @ operator.input_norm(child) for tap, child in active.items())
            if settings.edge_mode == "count":
                output = output / len(active)
            if settings.edge_mode == "partial":
                output = output / sum(weight[tap].abs().sum(dim=1) for tap in active).clamp(min=settings.edge_eps)
        outputs.append(operator.output_norm(output))
    return outputs


CASES = [
    (kind, norm, edge_mode, KERNELS[0])
    for kind in ("patchconv", "dwpatchconv", "patchmerge")
    for norm in ("pre", "post")
    for edge_mode in ("none", "count", "partial")
] + [
    (kind, "pre", edge_mode, kernel)
    for kind in ("patchconv", "dwpatchconv")
    for edge_mode in ("count", "partial")
    for kernel in KERNELS[1:]
]


@pytest.mark.parametrize(("kind", "norm", "edge_mode", "kernel"), CASES)
def test_equals_the_formula(kind, norm, edge_mode, kernel: tuple[int, int, int]) -> None:
    size, stride, dilation = kernel
    settings = replace(
        SETTINGS, norm=norm, edge_mode=edge_mode, kernel_size=size, stride=stride, dilation=dilation, edge_eps=0.2
    )
    pyramid = pyramid_of(settings)
    down = random_slides.shake(DownSampling(4, 4, kind, settings).double())
    assert isinstance(down, DownSampling)
    rows = torch.randn(27, 4).double()
    ours, _ = down(rows, torch.randn(2, 1, 4).double(), pyramid.levels[1])
    torch.testing.assert_close(ours, torch.stack(expected_rows(down.operator, kind, settings, rows, pyramid)))


@pytest.mark.parametrize("bias", [False, True])
def test_the_bias_is_optional_and_starts_at_zero(bias: bool) -> None:
    for kind in ("patchconv", "dwpatchconv"):
        operator = DownSampling(4, 4, kind, replace(SETTINGS, bias=bias)).operator  # pyright: ignore[reportArgumentType]
        named = dict(operator.named_parameters())
        assert ("convolution.bias" in named) == bias
        assert not bias or not named["convolution.bias"].any()


@pytest.mark.parametrize("edge_mode", ["none", "count", "partial"])
@pytest.mark.parametrize("kind", ["patchconv", "dwpatchconv", "patchmerge"])
def test_gradcheck(kind, edge_mode) -> None:
    settings = replace(SETTINGS, edge_mode=edge_mode)
    coords = torch.tensor([[0, 0, 0], [0, 1, 1], [0, 2, 1], [0, 3, 0], [0, 3, 1]], dtype=torch.int32)
    pyramid = build_pyramid(coords, 1, num_levels=2, window_size=1)
    down = random_slides.shake(DownSampling(2, 2, kind, settings).double())
    names = [name for name, _ in down.operator.named_parameters()]
    assert isinstance(down, DownSampling)

    def outputs(rows: Tensor, *values: Tensor) -> Tensor:
        arguments = (rows, pyramid.levels[1].children)
        return torch.func.functional_call(down.operator, dict(zip(names, values, strict=True)), arguments)

    rows = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(outputs, (rows, *down.operator.parameters()))


@pytest.mark.parametrize(
    ("kind", "widths", "change", "message"),
    [
        ("dwpatchconv", (4, 8), {}, "keeps the width, but 4 → 8"),
        ("patchmerge", (4, 4), {"kernel_size": 3}, "kernel_size 3 must equal stride 2"),
        ("patchmerge", (4, 4), {"dilation": 2}, "dilation 2 must be 1"),
    ],
)
def test_what_an_operation_cannot_be_is_refused(kind, widths: tuple[int, int], change, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DownSampling(*widths, kind, replace(SETTINGS, **change))
