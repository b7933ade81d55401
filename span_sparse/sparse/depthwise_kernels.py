"""Triton kernels of the depthwise sparse convolution."""

# pyright: reportUnknownParameterType=none, reportMissingParameterType=none

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from span_sparse.sparse.launching import launch

_ROWS, _CHANNELS = 16, 128
_MAX_GROUPS = 512
"""Groups of outputs whose weight gradients are summed apart, at most."""


@triton.jit(do_not_specialize=["num_outputs"])
def _gather(
    features, weight, table, output, num_outputs,
    channels: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    for tap in tl.static_range(TAPS):  # pyright: ignore[reportGeneralTypeIssues]
        source = tl.load(table + row * TAPS + tap, mask=row < num_outputs, other=-1)
        present = (source >= 0)[:, None] & (channel < channels)[None, :]
        values = tl.load(features + source.to(tl.int64)[:, None] * channels + channel, mask=present, other=0.0)
        factor = tl.load(weight + tap * channels + channel, mask=channel < channels, other=0.0)
        total += values.to(tl.float32) * factor.to(tl.float32)[None, :]
    places = row.to(tl.int64)[:, None] * channels + channel
    valid = (row < num_outputs)[:, None] & (channel < channels)[None, :]
    tl.store(output + places, total.to(output.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=["num_outputs", "group"])
def _tap_gradients(
    features, grad, table, parts, num_outputs, group,
    channels: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    tap = tl.program_id(2)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([CHANNELS], tl.float32)
    first = tl.program_id(0) * group
    for start in range(first, min(first + group, num_outputs), ROWS):
        row = start + tl.arange(0, ROWS)
        valid = row < min(first + group, num_outputs)
        source = tl.load(table + row * TAPS + tap, mask=valid, other=-1)
        present = (source >= 0)[:, None] & (channel < channels)[None, :]
        values = tl.load(features + source.to(tl.int64)[:, None] * channels + channel, mask=present, other=0.0)
        factors = tl.load(grad + row.to(tl.int64)[:, None] * channels + channel, mask=present, other=0.0)
        total += tl.sum(values.to(tl.float32) * factors.to(tl.float32), 0)
    place = (tl.program_id(0) * TAPS + tap) * channels + channel
    tl.store(parts + place, total, mask=channel < channels)


def launch_gather(features: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """`depthwise.gather_taps` of contiguous tensors."""
    outputs, channels = table.shape[0], features.shape[1]
    output = features.new_empty(outputs, channels)
    grid = triton.cdiv(outputs, _ROWS), triton.cdiv(channels, _CHANNELS)
    constants = {"channels": channels, "TAPS": table.shape[1], "ROWS": _ROWS, "CHANNELS": _CHANNELS}
    launch(_gather, grid, (features, weight, table, output, outputs), constants)
    return output


def launch_tap_gradients(features: Tensor, grad: Tensor, table: Tensor) -> Tensor:
    """`depthwise.tap_gradients` of contiguous tensors."""
    (outputs, taps), channels = table.shape, features.shape[1]
    group = _ROWS * triton.cdiv(outputs, _ROWS * _MAX_GROUPS)
    num_groups = triton.cdiv(outputs, group)
    parts = torch.empty(num_groups, taps, channels, dtype=torch.float32, device=features.device)
    grid = num_groups, triton.cdiv(channels, _CHANNELS), taps
    constants = {"channels": channels, "TAPS": taps, "ROWS": _ROWS, "CHANNELS": _CHANNELS}
    launch(_tap_gradients, grid, (features, grad, table, parts, outputs, group), constants)
    return parts.sum(dim=0)
