"""Triton kernels over the rows of slides that lie one after the other in a batch.

Rows are handled in blocks. Along the order of the rows, block `b` and slide `s` form a staircase, so `b + s` numbers
the pieces of slides in blocks without a gap: where a sum over a slide is split, piece `b + s` holds the part of slide
`s` in block `b`, and the parts of a slide are added in their order. Nothing is written twice: results repeat.
"""

# pyright: reportUnknownParameterType=none, reportMissingParameterType=none
# pyright: reportArgumentType=none, reportCallIssue=none, reportPossiblyUnboundVariable=none

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from span_sparse.float32 import product_precision
from span_sparse.sparse.launching import launch

_ROWS = 64
_MAX_BLOCKS = 96
"""Blocks of rows whose sums are added one after the other, at most for one slide."""


@triton.jit(do_not_specialize=["num_rows"])
def _matmul(
    rows, matrices, slides, output, num_rows,
    width: tl.constexpr, columns: tl.constexpr, stride_row: tl.constexpr, stride_slide: tl.constexpr,
    stride_column: tl.constexpr, stride_width: tl.constexpr, slide_stride: tl.constexpr,
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
                matrices + number * stride_slide + inner[:, None] * stride_width
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
    weights, log_sums, rows, slides, offsets, parts, num_rows, block,
    num_weights: tl.constexpr, width: tl.constexpr, stride_row: tl.constexpr, slide_stride: tl.constexpr,
    SCORES: tl.constexpr, ROWS: tl.constexpr, WEIGHTS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * block
    end = min(first + block, num_rows)
    channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    weight = tl.program_id(2) * WEIGHTS + tl.arange(0, WEIGHTS)
    for number in range(tl.load(slides + first * slide_stride), tl.load(slides + (end - 1) * slide_stride) + 1):
        begin = max(first, tl.load(offsets + number))
        stop = min(end, tl.load(offsets + number + 1))
        total = tl.zeros([WEIGHTS, WIDTH], tl.float32)
        if SCORES:
            log_sum = tl.load(log_sums + number * num_weights + weight, mask=weight < num_weights, other=0.0)
        for start in range(begin, stop, ROWS):
            row = start + tl.arange(0, ROWS)
            valid = row < stop
            values = tl.load(
                rows + row.to(tl.int64)[:, None] * stride_row + channel[None, :],
                mask=valid[:, None] & (channel < width)[None, :], other=0.0,
            )  # fmt: skip
            factors = tl.load(
                weights + row.to(tl.int64)[:, None] * num_weights + weight[None, :],
                mask=valid[:, None] & (weight < num_weights)[None, :], other=float("-inf") if SCORES else 0.0,
            )  # fmt: skip
            if SCORES:
                factors = tl.exp(factors - log_sum[None, :])
            total += tl.dot(tl.trans(factors).to(values.dtype), values, input_precision=PRECISION)
        place = (tl.program_id(0) + number).to(tl.int64) * num_weights
        tl.store(
            parts + (place + weight[:, None]) * width + channel[None, :], total,
            mask=(weight < num_weights)[:, None] & (channel < width)[None, :],
        )  # fmt: skip


@triton.jit(do_not_specialize=["block", "num_others"])
def _add_parts(
    parts, others, other_scores, log_sums, offsets, output, block, num_others,
    num_weights: tl.constexpr, width: tl.constexpr, HAS_OTHERS: tl.constexpr,
    PARTS: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    slide = tl.program_id(0)
    entries = num_weights * width
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
    if HAS_OTHERS:
        weight, channel = entry // width, entry % width
        valid = entry < entries
        log_sum = tl.load(log_sums + slide * num_weights + weight, mask=valid, other=0.0)
        for number in range(num_others):
            place = slide * num_others + number
            score = tl.load(other_scores + place * num_weights + weight, mask=valid, other=float("-inf"))
            row = tl.load(others + place * width + channel, mask=valid, other=0.0).to(tl.float32)
            total += tl.exp(score - log_sum) * row
    tl.store(output + slide.to(tl.int64) * entries + entry, total.to(output.dtype.element_ty), mask=entry < entries)


@triton.jit(do_not_specialize=["num_rows"])
def _score(
    rows, queries, slides, scores, tops, sums, num_rows,
    width: tl.constexpr, columns: tl.constexpr, stride_row: tl.constexpr, slide_stride: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    slide = tl.load(slides + row * slide_stride, mask=row < num_rows, other=-1)
    last = min(tl.program_id(0) * ROWS + ROWS, num_rows) - 1
    for number in range(
        tl.load(slides + tl.program_id(0) * ROWS * slide_stride), tl.load(slides + last * slide_stride) + 1
    ):
        mine = slide == number
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, width, WIDTH):
            inner = start + tl.arange(0, WIDTH)
            left = tl.load(
                rows + row.to(tl.int64)[:, None] * stride_row + inner[None, :],
                mask=mine[:, None] & (inner < width)[None, :], other=0.0,
            )  # fmt: skip
            right = tl.load(
                queries + (number * columns + column[None, :]) * width + inner[:, None],
                mask=(inner < width)[:, None] & (column < columns)[None, :], other=0.0,
            )  # fmt: skip
            total += tl.dot(left, right, input_precision=PRECISION)
        valid = mine[:, None] & (column < columns)[None, :]
        tl.store(scores + row.to(tl.int64)[:, None] * columns + column[None, :], total, mask=valid)
        masked = tl.where(mine[:, None], total, float("-inf"))
        top = tl.max(masked, 0)
        place = (tl.program_id(0) + number) * columns + column
        tl.store(tops + place, top, mask=column < columns)
        tl.store(sums + place, tl.sum(tl.exp(masked - top[None, :]), 0), mask=column < columns)


@triton.jit(do_not_specialize=["block", "num_others"])
def _log_sums(
    tops,
    sums,
    others,
    offsets,
    output,
    block,
    num_others,
    columns: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
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
    total = tl.where(column < columns, total, 1.0)  # of padding there is no logarithm
    tl.store(output + slide * columns + column, top + tl.log(total), mask=column < columns)


@triton.jit(do_not_specialize=["num_rows"])
def _score_gradient(
    rows, grad, scores, log_sums, means, slides, both, num_rows,
    width: tl.constexpr, columns: tl.constexpr, stride_row: tl.constexpr, slide_stride: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    slide = tl.load(slides + row * slide_stride, mask=row < num_rows, other=-1)
    last = min(tl.program_id(0) * ROWS + ROWS, num_rows) - 1
    for number in range(
        tl.load(slides + tl.program_id(0) * ROWS * slide_stride), tl.load(slides + last * slide_stride) + 1
    ):
        mine = slide == number
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, width, WIDTH):
            inner = start + tl.arange(0, WIDTH)
            left = tl.load(
                rows + row.to(tl.int64)[:, None] * stride_row + inner[None, :],
                mask=mine[:, None] & (inner < width)[None, :], other=0.0,
            )  # fmt: skip
            right = tl.load(
                grad + (number * columns + column[None, :]) * width + inner[:, None],
                mask=(inner < width)[:, None] & (column < columns)[None, :], other=0.0,
            )  # fmt: skip
            total += tl.dot(left, right.to(left.dtype), input_precision=PRECISION)
        valid = mine[:, None] & (column < columns)[None, :]
        place = number * columns + column
        log_sum = tl.load(log_sums + place, mask=column < columns, other=0.0)
        mean = tl.load(means + place, mask=column < columns, other=0.0)
        score = tl.load(scores + row.to(tl.int64)[:, None] * columns + column[None, :], mask=valid, other=0.0)
        weight = tl.exp(score - log_sum[None, :])
        places = both + row.to(tl.int64)[:, None] * (2 * columns) + column[None, :]
        tl.store(places, weight.to(both.dtype.element_ty), mask=valid)
        tl.store(places + columns, (weight * (total - mean[None, :])).to(both.dtype.element_ty), mask=valid)


def launch_matmul(rows: Tensor, matrices: Tensor, slides: Tensor, dtype: torch.dtype) -> Tensor:
    """`slides.slide_matmul`; `slides` holds the slide of every row, in any stride."""
    rows = _unit_stride(rows)
    num_rows, width = rows.shape
    columns = matrices.shape[1]
    output = torch.empty(num_rows, columns, dtype=dtype, device=rows.device)
    block = _block(columns, 128)
    grid = triton.cdiv(num_rows, _ROWS), triton.cdiv(columns, block)
    stride_slide, stride_column, stride_width = matrices.stride()
    constants = {
        "width": width, "columns": columns, "stride_row": rows.stride(0), "stride_slide": stride_slide,
        "stride_column": stride_column, "stride_width": stride_width, "slide_stride": slides.stride(0),
        "ROWS": _ROWS, "COLUMNS": block, "WIDTH": _block(width, 64), "PRECISION": product_precision(),
    }  # fmt: skip
    launch(_matmul, grid, (rows, matrices, slides, output, num_rows), constants)
    return output


def launch_attention(
    rows: Tensor, others: Tensor, queries: Tensor, other_scores: Tensor, slides: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`slides.slide_attention`: what the queries read, the scores of the rows, and the log-sum-exp of all scores."""
    rows, others, queries, other_scores = (part.contiguous() for part in (rows, others, queries, other_scores))
    num_rows, (num_slides, columns) = len(rows), queries.shape[:2]
    num_blocks = triton.cdiv(num_rows, _ROWS)
    scores = torch.empty(num_rows, columns, dtype=torch.float32, device=rows.device)
    tops, sums = torch.empty(2, num_blocks + num_slides, columns, dtype=torch.float32, device=rows.device)
    constants = _shape(rows, columns, slides)
    launch(_score, (num_blocks,), (rows, queries, slides, scores, tops, sums, num_rows), constants)
    log_sums = torch.empty(num_slides, columns, dtype=torch.float32, device=rows.device)
    arguments = tops, sums, other_scores, offsets, log_sums, _ROWS, others.shape[1]
    launch(_log_sums, (num_slides,), arguments, {"columns": columns, "PARTS": 64, "COLUMNS": constants["COLUMNS"]})
    read = _summed(scores, log_sums, rows, slides, offsets, others, other_scores)
    return read, scores, log_sums


def launch_score_gradient(
    rows: Tensor, grad: Tensor, scores: Tensor, log_sums: Tensor, means: Tensor, slides: Tensor
) -> Tensor:
    """The weights of the rows and the gradients of their scores, side by side."""
    num_rows, columns = scores.shape
    both = rows.new_empty(num_rows, 2 * columns)
    arguments = rows, grad, scores, log_sums, means, slides, both, num_rows
    launch(_score_gradient, (triton.cdiv(num_rows, _ROWS),), arguments, _shape(rows, columns, slides))
    return both


def _summed(
    weights: Tensor, log_sums: Tensor | None, rows: Tensor, slides: Tensor, offsets: Tensor,
    others: Tensor | None = None, other_scores: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Weighted sums of the rows of every slide, float32; with `log_sums` the weights are scores of a softmax."""
    (num_rows, width), num_weights, num_slides = rows.shape, weights.shape[1], len(offsets) - 1
    block = _rows_of_block(num_rows)
    num_blocks = triton.cdiv(num_rows, block)
    parts = torch.empty(num_blocks + num_slides, num_weights * width, dtype=torch.float32, device=rows.device)
    columns, depth = _block(num_weights, 64), _block(width, 64)
    unused = weights if log_sums is None else log_sums
    grid = num_blocks, triton.cdiv(width, depth), triton.cdiv(num_weights, columns)
    sizes = {"num_weights": num_weights, "width": width}
    constants = sizes | {
        "stride_row": rows.stride(0), "slide_stride": slides.stride(0), "SCORES": log_sums is not None,
        "ROWS": _ROWS, "WEIGHTS": columns, "WIDTH": depth, "PRECISION": product_precision(),
    }  # fmt: skip
    launch(_outer, grid, (weights, unused, rows, slides, offsets, parts, num_rows, block), constants)
    output = torch.empty(num_slides, num_weights, width, dtype=torch.float32, device=rows.device)
    further = (unused, unused, 0) if others is None or other_scores is None else (others, other_scores, others.shape[1])
    launch(
        _add_parts, (num_slides, triton.cdiv(num_weights * width, 128)),
        (parts, *further[:2], unused, offsets, output, block, further[2]),
        sizes | {"HAS_OTHERS": others is not None, "PARTS": 16, "ENTRIES": 128},
    )  # fmt: skip
    return output


def launch_outer(weights: Tensor, rows: Tensor, slides: Tensor, offsets: Tensor) -> Tensor:
    """`slides.slide_outer`, float32."""
    return _summed(weights.contiguous(), None, _unit_stride(rows), slides, offsets)


def _shape(rows: Tensor, columns: int, slides: Tensor) -> dict[str, Any]:
    """Compile-time values of the kernels with one tile of columns."""
    width = rows.shape[1]
    return {
        "width": width, "columns": columns, "stride_row": rows.stride(0), "slide_stride": slides.stride(0),
        "ROWS": _ROWS, "COLUMNS": max(16, triton.next_power_of_2(columns)), "WIDTH": _block(width, 64),
        "PRECISION": product_precision(),
    }  # fmt: skip


def _unit_stride(rows: Tensor) -> Tensor:
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _block(size: int, most: int) -> Any:
    return min(most, max(16, triton.next_power_of_2(size)))


def _rows_of_block(num_rows: int) -> int:
    return _ROWS * triton.cdiv(num_rows, _ROWS * _MAX_BLOCKS)
