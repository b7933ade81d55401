"""Resize, crop and normalisation of patches on a GPU in one Triton kernel, to the bit of `Transform`.

For each output pixel `(y, x)` of a channel, with `v` and `h` Pillow's weights of old rows and columns times 2²²:

    row(i) = clamp((Σ_j h[x, j] · pixel[first_v[y] + i, first_h[x] + j] + 2²¹) >> 22, 0, 255)
    grey   = clamp((Σ_i v[y, i] · row(i) + 2²¹) >> 22, 0, 255)
    output = normalised[channel, grey]

All in int32, which holds the sums (weights add up to 2²², pixels to 255). The horizontal sums are computed again for
each row that needs them: a few taps from a cache cost less than a picture of them in memory. The matrix products that
do the same elsewhere want units for float64, which most cards lack, and pass the whole chunk through memory ten times.

Under `TRITON_INTERPRET=1` the kernel runs on CPU tensors.
"""

# pyright: reportUnknownParameterType=none, reportMissingParameterType=none

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import triton
import triton.language as tl
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

_BLOCK: Final = 16
"""Edge of the square of output pixels that a program computes."""


@dataclass(frozen=True, slots=True)
class Taps:
    """The weights that are not zero, on a device.

    Attributes:
        first: int32 `[size_to]`, first old pixel of each new one.
        weights: int32 `[size_to, taps]`, of that pixel and those behind it; 0 where a pixel has fewer.
    """

    first: Tensor
    weights: Tensor

    @classmethod
    def of(cls, dense: NDArray[np.float64], device: torch.device) -> Taps:
        """From weights of every old pixel in every new one, `[size_to, size_from]`."""
        is_used = dense != 0
        first = is_used.argmax(axis=1)
        num_taps = int((is_used.shape[1] - is_used[:, ::-1].argmax(axis=1) - first).max())
        first = np.minimum(first, is_used.shape[1] - num_taps)  # so that no tap lies outside
        weights = np.take_along_axis(dense, first[:, None] + np.arange(num_taps), axis=1)
        return cls(*(torch.from_numpy(values.astype(np.int32)).to(device) for values in (first, weights)))


def resize(
    patches: UInt8[Tensor, "patches edge edge 3"],
    taps: Taps,
    crop_px: int,
    normalised: Float[Tensor, "3 256"],
) -> Float[Tensor, "patches 3 crop_px crop_px"]:
    """Resize, crop the centre of, and normalise square patches.

    Args:
        patches: contiguous.
        taps: of the resize.
        crop_px: edge of the centre.
        normalised: what each grey level of each channel becomes.
    """
    num_patches, edge = patches.shape[:2]
    size_to, num_taps = taps.weights.shape
    output = torch.empty((num_patches, 3, crop_px, crop_px), dtype=torch.float32, device=patches.device)
    blocks = triton.cdiv(crop_px, _BLOCK)
    launch: Any = _resize
    launch[(num_patches * 3, blocks, blocks)](
        patches, taps.first, taps.weights, normalised, output,
        edge, crop_px, round((size_to - crop_px) / 2), num_taps, _BLOCK,
    )  # fmt: skip
    return output


@triton.jit
def _resize(
    pixels, first, weights, normalised, output, edge, crop_px, start, num_taps: tl.constexpr, block: tl.constexpr
):
    """One program: a square of output pixels of one channel of one patch."""
    plane = tl.program_id(0).to(tl.int64)
    patch, channel = plane // 3, plane % 3
    y = tl.program_id(1) * block + tl.arange(0, block)
    x = tl.program_id(2) * block + tl.arange(0, block)
    inside_y, inside_x = y < crop_px, x < crop_px
    first_y = tl.load(first + start + y, mask=inside_y, other=0)
    first_x = tl.load(first + start + x, mask=inside_x, other=0)
    source = pixels + patch * edge * edge * 3 + channel
    grey = tl.full((block, block), 1 << 21, tl.int32)
    for i in range(num_taps):
        row = tl.full((block, block), 1 << 21, tl.int32)
        for j in range(num_taps):
            weight_x = tl.load(weights + (start + x) * num_taps + j, mask=inside_x, other=0)
            place = ((first_y + i) * edge)[:, None] + (first_x + j)[None, :]
            row += weight_x[None, :] * tl.load(source + place * 3).to(tl.int32)
        row = tl.minimum(tl.maximum(row >> 22, 0), 255)
        weight_y = tl.load(weights + (start + y) * num_taps + i, mask=inside_y, other=0)
        grey += weight_y[:, None] * row
    grey = tl.minimum(tl.maximum(grey >> 22, 0), 255)
    place = (plane * crop_px + y[:, None]) * crop_px + x[None, :]
    value = tl.load(normalised + channel * 256 + grey)
    tl.store(output + place, value, mask=inside_y[:, None] & inside_x[None, :])
