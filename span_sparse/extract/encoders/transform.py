"""From a patch to the input of a network.

uint8 → resize → centre crop → [0, 1] → subtract the mean, divide by the standard deviation: the four steps of a model
card, on the device where the network is.

The resize is the delicate one. Model cards resize PIL images, so their networks have seen Pillow's arithmetic: a filter
that widens when it shrinks, weights of 22 bits, a horizontal pass rounded to whole grey levels, then a vertical pass
rounded again. `torch.nn.functional.interpolate` does not widen unless asked and does not round; even asked and rounded
it is up to two grey levels off, because common sizes (256 to 224) make ties of exactly one half. Here each pass is a
matrix product of whole numbers, which float64 adds without error in any order: the same bits as Pillow on any device.
On a GPU one kernel computes the same whole numbers as integers (`resize_kernel`).
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from span_sparse.extract.encoders.resize_kernel import Taps

Interpolation = Literal["bilinear", "bicubic"]

_WEIGHT_BITS: Final = 22
"""Fraction bits of Pillow's weights for 8-bit pictures."""


@dataclass(frozen=True, slots=True)
class Transform:
    """Resize, centre crop and normalisation of square patches.

    Attributes:
        resize_px: edge after the resize; None leaves the patch as it is.
        crop_px: edge of the centre that the network sees; the edge of its input.
        interpolation: filter of the resize, Pillow's of that name.
        mean: of red, green and blue, on the scale [0, 1].
        std: standard deviation, likewise.
    """

    resize_px: int | None
    crop_px: int
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def input_px(self, patch_px: int) -> int:
        """Edge of the network's input for patches of `patch_px` pixels; below `crop_px` if they are too small."""
        return min(self.crop_px, self.resize_px or patch_px)

    def __call__(self, patches: UInt8[Tensor, "patches height width 3"]) -> Float[Tensor, "patches 3 crop_px crop_px"]:
        """Prepare a batch.

        Args:
            patches: uint8 `[batch, edge, edge, 3]`, `edge` of at least `crop_px` unless it is resized.

        Returns:
            float32 `[batch, 3, crop_px, crop_px]`, contiguous, on the same device.
        """
        edge = patches.shape[1]
        if patches.is_cuda and self.resize_px not in (None, edge) and _has_triton():
            return self._in_one_kernel(patches, self.resize_px or edge)
        pixels = patches.permute(0, 3, 1, 2).float()  # (batch, 3, edge, edge)
        if self.resize_px is not None and self.resize_px != pixels.shape[-1]:
            weights = torch.from_numpy(_weights(pixels.shape[-1], self.resize_px, self.interpolation)).to(pixels.device)
            pixels = _rounded(pixels.double() @ weights.T)
            pixels = _rounded(weights @ pixels).float()
        start = round((pixels.shape[-1] - self.crop_px) / 2)
        pixels = pixels[..., start : start + self.crop_px, start : start + self.crop_px]
        mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (self.mean, self.std))
        return ((pixels / 255 - mean) / std).contiguous()

    def _in_one_kernel(self, patches: UInt8[Tensor, "patches height width 3"], resize_px: int) -> Tensor:
        from span_sparse.extract.encoders.resize_kernel import resize

        taps = _taps(patches.shape[1], resize_px, self.interpolation, patches.device)
        return resize(patches.contiguous(), taps, self.crop_px, _normalised(self.mean, self.std, patches.device))


@cache
def _has_triton() -> bool:
    """Whether kernels can be compiled; torch for CUDA brings Triton along on Linux."""
    return importlib.util.find_spec("triton") is not None


@cache
def _taps(size_from: int, size_to: int, interpolation: Interpolation, device: torch.device) -> Taps:
    from span_sparse.extract.encoders.resize_kernel import Taps

    return Taps.of(_weights(size_from, size_to, interpolation), device)


@cache
def _normalised(
    mean: tuple[float, float, float], std: tuple[float, float, float], device: torch.device
) -> Float[Tensor, "3 256"]:
    """What each grey level of each channel becomes."""
    grey = torch.arange(256, device=device).float().expand(3, 256)
    means, stds = (torch.tensor(values, device=device)[:, None] for values in (mean, std))
    return (grey / 255 - means) / stds


def _rounded(sums: Tensor) -> Tensor:
    """Sums of pixels times fixed-point weights as grey levels; halves go up."""
    return ((sums + 2 ** (_WEIGHT_BITS - 1)) / 2**_WEIGHT_BITS).floor_().clamp_(0, 255)


@cache
def _weights(size_from: int, size_to: int, interpolation: Interpolation) -> NDArray[np.float64]:
    """Pillow's weights of every old pixel in every new one, times 2²², whole numbers `[size_to, size_from]`.

    The filter (a triangle; or Keys' cubic with a = -1/2) is centred on the new pixel, widened by the factor of a
    reduction, cut off where it ends rounded to pixels, and its weights are scaled to a sum of one.
    """
    factor = size_from / size_to
    width = max(factor, 1.0)
    reach = (1 if interpolation == "bilinear" else 2) * width
    centres = (np.arange(size_to)[:, None] + 0.5) * factor
    pixels = np.arange(size_from)[None]
    inside = (pixels >= np.floor(centres - reach + 0.5)) & (pixels < np.floor(centres + reach + 0.5))
    distance = np.abs((pixels + 0.5 - centres) / width)
    values = np.maximum(1 - distance, 0) if interpolation == "bilinear" else _cubic(distance)
    values = np.where(inside, values, 0)
    values *= 2**_WEIGHT_BITS / values.sum(axis=1, keepdims=True)
    return np.trunc(values + np.copysign(0.5, values))


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0))
