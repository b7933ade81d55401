"""Errors of the strided convolution in float32 on a device, against dense float64 on the CPU.

    forward           y = conv(x)
    input gradient    ∂⟨y, g⟩ / ∂x   for a random g
    weight gradient   ∂⟨y, g⟩ / ∂W   the worst layer of a chain

Each is the largest difference over the largest entry. The reference never runs on the device: cuDNN computes float32
with TF32 by torch's default, and a reference with 10 bits cannot judge anything. Several widths, because spconv chooses
another kernel for each; a chain, because one wrong gradient hides behind the next layer's; several draws, because an
input gradient was seen to be wrong in one of ten (kernel 2, stride 2).
"""

from __future__ import annotations

import importlib
import itertools
import math
from typing import Final

import torch
from torch import Tensor

CHAINS: Final = ((8, 16), (64, 128), (256, 512), (128, 128, 128, 128))
"""Channel widths of the layers that follow each other."""

NUM_DRAWS: Final = 3

_EXTENTS: Final = (24, 16)
"""Rows and columns: they can be halved as often as the longest chain does."""

_NUM_SLIDES: Final = 2


def convolution_errors(device: torch.device) -> dict[str, dict[str, float]]:
    """Relative errors by chain, `8→16`, and by quantity; infinite where a result is not finite or of another shape."""
    errors: dict[str, dict[str, float]] = {}
    for widths in CHAINS:
        draws = [_errors_of_chain(widths, device, seed) for seed in range(NUM_DRAWS)]
        errors["→".join(map(str, widths))] = {name: max(draw[name] for draw in draws) for name in draws[0]}
    return errors


def dense_errors(device: torch.device) -> dict[str, float]:
    """Relative errors of torch's own float32 `matmul` and `convolution` on the device: whether TF32 is at work."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=generator) for _ in range(2))
    image, kernel = torch.randn(2, 32, 24, 24, generator=generator), torch.randn(64, 32, 3, 3, generator=generator)
    conv2d = torch.nn.functional.conv2d
    with torch.no_grad():
        return {
            "matmul": _relative(left.to(device) @ right.to(device), left.double() @ right.double()),
            "convolution": _relative(
                conv2d(image.to(device), kernel.to(device)), conv2d(image.double(), kernel.double())
            ),
        }


def spconv_tf32() -> bool:
    """The switch of spconv itself, `spconv.constants.SPCONV_ALLOW_TF32`; off unless somebody sets it."""
    return bool(importlib.import_module("spconv.constants").SPCONV_ALLOW_TF32)


def _errors_of_chain(widths: tuple[int, ...], device: torch.device, seed: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    occupied = torch.rand(_NUM_SLIDES, *_EXTENTS, generator=generator) < 0.4
    levels = [occupied.nonzero().int()]
    for _ in widths[1:]:
        places = levels[-1]
        levels.append(torch.cat([places[:, :1], places[:, 1:] // 2], dim=1).unique(dim=0))
    inputs = torch.randn(len(levels[0]), widths[0], generator=generator)
    cotangent = torch.randn(len(levels[-1]), widths[-1], generator=generator)
    weights = [
        torch.randn(wide, 2, 2, narrow, generator=generator) * (4 * narrow) ** -0.5
        for narrow, wide in itertools.pairwise(widths)
    ]
    ours = _sparse(inputs, weights, levels, cotangent, device)
    expected = _dense(inputs.double(), [weight.double() for weight in weights], levels, cotangent.double())
    names = ("forward", "input gradient", *("weight gradient" for _ in weights))
    errors = dict.fromkeys(names, 0.0)
    for name, mine, theirs in zip(names, ours, expected, strict=True):
        errors[name] = max(errors[name], _relative(mine, theirs))
    return errors


def _sparse(
    inputs: Tensor, weights: list[Tensor], levels: list[Tensor], cotangent: Tensor, device: torch.device
) -> tuple[Tensor, ...]:
    """Outputs, input gradient and weight gradients of our layers on the device."""
    from span_sparse.sparse.convolution import StridedConvolution
    from span_sparse.sparse.sites import make_sites

    with torch.random.fork_rng(devices=[]):  # layers are initialised from torch's global generator
        layers = [
            StridedConvolution(weight.shape[-1], weight.shape[0], kernel_size=2, stride=2).to(device)
            for weight in weights
        ]
    leaf = rows = inputs.to(device, copy=True).requires_grad_()
    for layer, weight, coords in zip(layers, weights, levels[:-1], strict=True):
        with torch.no_grad():
            layer.weight.copy_(weight)
        rows = layer.convolve(rows, make_sites(coords.to(device), _NUM_SLIDES, multiple_of=2)[0])[2]
    gradients = torch.autograd.grad((rows * cotangent.to(device)).sum(), [leaf, *(layer.weight for layer in layers)])
    return rows, *gradients


def _dense(inputs: Tensor, weights: list[Tensor], levels: list[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    """The same from dense convolutions of the whole rectangle, zero where no patch lies."""
    leaves = [rows.clone().requires_grad_() for rows in (inputs, *weights)]
    first, last = (coords.long().unbind(1) for coords in (levels[0], levels[-1]))
    image = inputs.new_zeros(_NUM_SLIDES, *_EXTENTS, inputs.shape[1]).index_put(first, leaves[0]).permute(0, 3, 1, 2)
    for kernel in leaves[1:]:
        image = torch.nn.functional.conv2d(image, kernel.permute(0, 3, 1, 2), stride=2)
    outputs = image.permute(0, 2, 3, 1)[last]
    return outputs, *torch.autograd.grad((outputs * cotangent).sum(), leaves)


def _relative(ours: Tensor, expected: Tensor) -> float:
    if ours.shape != expected.shape:
        return math.inf
    error = ((ours.detach().cpu().double() - expected).abs().max() / expected.detach().abs().max()).item()
    return error if math.isfinite(error) else math.inf
