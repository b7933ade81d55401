"""What happens to a patch before the network sees it?

uint8 → resize → centre crop → [0, 1] → subtract the mean, divide by the standard deviation: the four steps of a model
card, on the device where the network is.

The resize is the delicate one. Model cards resize PIL images, so their networks have seen Pillow's arithmetic: a filter
that widens when it shrinks, a horizontal pass rounded to whole grey levels, then a vertical pass rounded again. The
naive `interpolate(size)` neither widens (aliasing) nor rounds. Here the two passes are two calls of torch's widening
interpolation with a rounding after each; what remains are pixels that fall on the other side of .5, one level apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Interpolation = Literal["bilinear", "bicubic"]


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

    def __call__(self, patches: Tensor) -> Tensor:
        """Prepare a batch.

        Args:
            patches: uint8 `[batch, edge, edge, 3]`, `edge` of at least `crop_px` unless it is resized.

        Returns:
            float32 `[batch, 3, crop_px, crop_px]`, contiguous, on the same device.
        """
        pixels = patches.permute(0, 3, 1, 2).float()  # (batch, 3, edge, edge)
        if self.resize_px is not None and self.resize_px != pixels.shape[-1]:
            pixels = self._resize(pixels, (pixels.shape[-2], self.resize_px))
            pixels = self._resize(pixels, (self.resize_px, self.resize_px))
        start = round((pixels.shape[-1] - self.crop_px) / 2)
        pixels = pixels[..., start : start + self.crop_px, start : start + self.crop_px]
        mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (self.mean, self.std))
        return ((pixels / 255 - mean) / std).contiguous()

    def _resize(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        resized = functional.interpolate(pixels, size, mode=self.interpolation, antialias=True, align_corners=False)
        return resized.add_(0.5).floor_().clamp_(0, 255)
