"""Triton kernels over the rows of slides that lie one after the other in a batch.

Rows are handled in blocks. Along the order of the rows, block `b` and slide `s` form a staircase, so `b + s` numbers the
pieces of slides in blocks without a gap: where a sum over a slide is split, piece `b + s` holds the part of slide `s` in
block `b`, and the parts of a slide are added in their order. Nothing is written twice; results repeat bit for bit.
"""

# pyright: reportUnknownParameterType=none, reportMissingParameterType=none

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS = 64
_MAX_BLOCKS = 96
"""Blocks of rows whose sums are added one after the other, at most for one slide."""


@triton.jit(do_not_specialize=["num_rows"])
def _matmul(
    rows, matrices, slides, output, num_rows, width, columns,
    stride_row, stride_slide, stride_column, stride_width, slide_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    valid = row < num_rows
    slide = tl.load(slides + row * slide_stride, mask=valid, other=-1)
    last = min(tl.program_id(0) * ROWS + ROWS, num_rows) - 1
    output_rows = row.to(tl.int64)[:, None]
    result = tl.zeros([ROWS, COLUMNS], tl.float32)
    for number in range(
        tl.load(slides + tl.program_id(0) * ROWS * slide_stride), tl.load(slides + last * slide_stride) + 1
    ):
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, width, WIDTH):
            inner = start + tl.arange(0, WIDTH)
            left = tl.load(
                rows + output_rows * stride_row + inner[None, :],
                mask=valid[:, None] & (inner < width)[None, :], other=0.0,
            )  # fmt: skip
            right = tl.load(
                matrices + number.to(tl.int64) * stride_slide + inner[:, None] * stride_width
                + column[None, :] * stride_column,
                mask=(inner < width)[:, None] & (column < columns)[None, :], other=0.0,
            )  # fmt: skip
            total += tl.dot(left, right.to(left.dtype), input_precision=PRECISION)
        result = tl.where((slide == number)[:, None], total, result)
    tl.store(
        output + output_rows * columns + column[None, :], result.to(output.dtype.element_ty),
        mask=valid[:, None] & (column < columns)[None, :],
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows", "block"])
def _outer(
    weights, rows, slides, offsets, parts, num_rows, block, num_weights, width, stride_row, slide_stride,
    ROWS: tl.constexpr, WEIGHTS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * block
    end = min(first + block, num_rows)
    channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    weight = tl.program_id(2) * WEIGHTS + tl.arange(0, WEIGHTS)
    for number in range(tl.load(slides + first * slide_stride), tl.load(slides + (end - 1) * slide_stride) + 1):
        begin = max(first, tl.load(offsets + number))
        stop = min(end, tl.load(offsets + number + 1))
        total = tl.zeros([WEIGHTS, WIDTH], tl.float32)
        for start in range(begin, stop, ROWS):
            row = start + tl.arange(0, ROWS)
            valid = row < stop
            values = tl.load(
                rows + row.to(tl.int64)[:, None] * stride_row + channel[None, :],
                mask=valid[:, None] & (channel < width)[None, :], other=0.0,
            )  # fmt: skip
            factors = tl.load(
                weights + row.to(tl.int64)[:, None] * num_weights + weight[None, :],
                mask=valid[:, None] & (weight < num_weights)[None, :], other=0.0,
            )  # fmt: skip
            total += tl.dot(tl.trans(factors).to(values.dtype), values, input_precision=PRECISION)
        place = (tl.program_id(0) + number).to(tl.int64) * num_weights
        tl.store(
            parts + (place + weight[:, None]) * width + channel[None, :], total,
            mask=(weight < num_weights)[:, None] & (channel < width)[None, :],
        )  # fmt: skip


@triton.jit(do_not_specialize=["block"])
def _add_parts(parts, offsets, output, block, entries, PARTS: tl.constexpr, ENTRIES: tl.constexpr):
    slide = tl.program_id(0)
    entry = tl.program_id(1) * ENTRIES + tl.arange(0, ENTRIES)
    first = tl.load(offsets + slide) // block + slide
    last = (tl.load(offsets + slide + 1) - 1) // block + slide
    total = tl.zeros([ENTRIES], tl.float32)
    for start in range(first, last + 1, PARTS):
        part = start + tl.arange(0, PARTS)
        values = tl.load(
            parts + part.to(tl.int64)[:, None] * entries + entry[None, :],
            mask=(part <= last)[:, None] & (entry < entries)[None, :], other=0.0,
        )  # fmt: skip
        total += tl.sum(values, 0)
    tl.store(output + slide.to(tl.int64) * entries + entry, total.to(output.dtype.element_ty), mask=entry < entries)


@triton.jit(do_not_specialize=["num_rows", "block"])
def _statistics(
    scores, slides, offsets, tops, sums, num_rows, block, columns, slide_stride, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * block
    end = min(first + block, num_rows)
    column = tl.arange(0, COLUMNS)
    for number in range(tl.load(slides + first * slide_stride), tl.load(slides + (end - 1) * slide_stride) + 1):
        begin = max(first, tl.load(offsets + number))
        stop = min(end, tl.load(offsets + number + 1))
        top = tl.full([COLUMNS], float("-inf"), tl.float32)
        total = tl.zeros([COLUMNS], tl.float32)
        for start in range(begin, stop, ROWS):
            row = start + tl.arange(0, ROWS)
            values = tl.load(
                scores + row[:, None] * columns + column[None, :],
                mask=(row < stop)[:, None] & (column < columns)[None, :], other=float("-inf"),
            )  # fmt: skip
            higher = tl.maximum(top, tl.max(values, 0))
            safe = tl.where(higher == float("-inf"), 0.0, higher)
            total = total * tl.exp(top - safe) + tl.sum(tl.exp(values - safe[None, :]), 0)
            top = higher
        place = (tl.program_id(0) + number) * columns + column
        tl.store(tops + place, top, mask=column < columns)
        tl.store(sums + place, total, mask=column < columns)


@triton.jit(do_not_specialize=["block", "num_others"])
def _log_sums(
    tops, sums, others, offsets, output, block, columns, num_others, PARTS: tl.constexpr, COLUMNS: tl.constexpr
):
    slide = tl.program_id(0)
    column = tl.arange(0, COLUMNS)
    first = tl.load(offsets + slide) // block + slide
    last = (tl.load(offsets + slide + 1) - 1) // block + slide
    top = tl.full([COLUMNS], float("-inf"), tl.float32)
    total = tl.zeros([COLUMNS], tl.float32)
    for start in range(first, last + 1, PARTS):
        part = start + tl.arange(0, PARTS)
        valid = (part <= last)[:, None] & (column < columns)[None, :]
        part_tops = tl.load(tops + part[:, None] * columns + column[None, :], mask=valid, other=float("-inf"))
        part_sums = tl.load(sums + part[:, None] * columns + column[None, :], mask=valid, other=0.0)
        higher = tl.maximum(top, tl.max(part_tops, 0))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(top - safe) + tl.sum(part_sums * tl.exp(part_tops - safe[None, :]), 0)
        top = higher
    for number in range(num_others):
        other = tl.load(
            others + (slide * num_others + number) * columns + column, mask=column < columns, other=float("-inf")
        )
        higher = tl.maximum(top, other)
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(top - safe) + tl.exp(other - safe)
        top = higher
    tl.store(output + slide * columns + column, top + tl.log(total), mask=column < columns)


@triton.jit(do_not_specialize=["num_rows"])
def _normalise(
    scores, log_sums, slides, output, num_rows, columns, slide_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    slide = tl.load(slides + row * slide_stride, mask=row < num_rows, other=0)
    valid = (row < num_rows)[:, None] & (column < columns)[None, :]
    values = tl.load(scores + row[:, None] * columns + column[None, :], mask=valid, other=0.0)
    log_sum = tl.load(log_sums + slide[:, None] * columns + column[None, :], mask=valid, other=0.0)
    tl.store(output + row[:, None] * columns + column[None, :], tl.exp(values - log_sum), mask=valid)


def launch_matmul(rows: Tensor, matrices: Tensor, slides: Tensor, dtype: torch.dtype) -> Tensor:
    """`slides.slide_matmul`; `slides` holds the slide of every row, in any stride."""
    rows = _unit_stride(rows)
    num_rows, width = rows.shape
    columns = matrices.shape[1]
    output = torch.empty(num_rows, columns, dtype=dtype, device=rows.device)
    block = _block(columns, 128)
    grid = triton.cdiv(num_rows, _ROWS), triton.cdiv(columns, block)
    stride_slide, stride_column, stride_width = matrices.stride()
    _matmul[grid](
        rows, matrices, slides, output, num_rows, width, columns,
        rows.stride(0), stride_slide, stride_column, stride_width, slides.stride(0),
        ROWS=_ROWS, COLUMNS=block, WIDTH=_block(width, 64), PRECISION=precision(),
    )  # fmt: skip
    return output


def launch_outer(weights: Tensor, rows: Tensor, slides: Tensor, offsets: Tensor, dtype: torch.dtype) -> Tensor:
    """`slides.slide_outer`."""
    weights, rows = weights.contiguous(), _unit_stride(rows)
    (num_rows, width), num_weights, num_slides = rows.shape, weights.shape[1], len(offsets) - 1
    block = _rows_of_block(num_rows)
    num_blocks = triton.cdiv(num_rows, block)
    parts = torch.empty(num_blocks + num_slides, num_weights * width, dtype=torch.float32, device=rows.device)
    columns, depth = _block(num_weights, 64), _block(width, 64)
    _outer[num_blocks, triton.cdiv(width, depth), triton.cdiv(num_weights, columns)](
        weights, rows, slides, offsets, parts, num_rows, block, num_weights, width, rows.stride(0), slides.stride(0),
        ROWS=_ROWS, WEIGHTS=columns, WIDTH=depth, PRECISION=precision(),
    )  # fmt: skip
    output = torch.empty(num_slides, num_weights, width, dtype=dtype, device=rows.device)
    grid = num_slides, triton.cdiv(num_weights * width, 128)
    _add_parts[grid](parts, offsets, output, block, num_weights * width, PARTS=16, ENTRIES=128)
    return output


def launch_log_sums(scores: Tensor, others: Tensor, slides: Tensor, offsets: Tensor) -> Tensor:
    """Log-sum-exp of every slide's rows of `scores` and its `others`, float32 `[slides, columns]`."""
    (num_rows, columns), num_slides = scores.shape, len(offsets) - 1
    block = _rows_of_block(num_rows)
    num_blocks = triton.cdiv(num_rows, block)
    tops, sums = (scores.new_empty(num_blocks + num_slides, columns) for _ in range(2))
    size = triton.next_power_of_2(columns)
    _statistics[(num_blocks,)](
        scores, slides, offsets, tops, sums, num_rows, block, columns, slides.stride(0), ROWS=_ROWS, COLUMNS=size
    )
    output = scores.new_empty(num_slides, columns)
    _log_sums[(num_slides,)](
        tops, sums, others, offsets, output, block, columns, others.shape[1], PARTS=16, COLUMNS=size
    )
    return output


def launch_normalise(scores: Tensor, log_sums: Tensor, slides: Tensor) -> Tensor:
    """`exp(scores − log_sums[slide])`."""
    num_rows, columns = scores.shape
    output = torch.empty_like(scores)
    _normalise[(triton.cdiv(num_rows, _ROWS),)](
        scores, log_sums, slides, output, num_rows, columns, slides.stride(0), ROWS=_ROWS,
        COLUMNS=triton.next_power_of_2(columns),
    )  # fmt: skip
    return output


def precision() -> str:
    """How products of float32 are rounded: as torch's own switch says."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


def _unit_stride(rows: Tensor) -> Tensor:
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _block(size: int, most: int) -> Any:
    return min(most, max(16, triton.next_power_of_2(size)))


def _rows_of_block(num_rows: int) -> int:
    return _ROWS * triton.cdiv(num_rows, _ROWS * _MAX_BLOCKS)
