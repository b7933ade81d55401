"""Triton kernels that fill the tables of the geometry."""

# pyright: reportUnknownParameterType=none, reportMissingParameterType=none

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from span_sparse.sparse.launching import launch

_BLOCK = 256


@triton.jit(do_not_specialize=["num_outputs", "num_inputs", "num_slides"])
def _pair_table(
    coords, pairs, table, offsets, num_outputs, num_inputs, num_slides, TAPS: tl.constexpr, BLOCK: tl.constexpr
):
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = entry < TAPS * num_inputs
    source = tl.load(pairs + entry, mask=valid, other=-1)
    target = tl.load(pairs + TAPS * num_inputs + entry, mask=valid, other=-1)
    tl.store(table + target * TAPS + entry // num_inputs, source, mask=target >= 0)
    valid = entry < num_outputs
    slide = tl.load(coords + 3 * entry, mask=valid, other=0)
    before = tl.load(coords + 3 * entry - 3, mask=valid & (entry > 0), other=-1)
    tl.store(offsets + slide, entry, mask=valid & (slide != before))  # every slide has an output
    tl.store(offsets + num_slides + 0 * entry, num_outputs + 0 * entry, mask=entry == 0)


@triton.jit(do_not_specialize=["num_cells"])
def _seen_tokens(
    cells, tokens, neighbours, seen, num_cells, SLOTS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr
):  # pyright: ignore[reportUnknownParameterType]
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = entry < num_cells * COLUMNS
    cell, column = entry // COLUMNS, entry % COLUMNS
    part, slot = column // SLOTS, column % SLOTS
    down = 1 - 2 * (tl.load(cells + 3 * cell + 1, mask=valid, other=0) % 2)
    right = 1 - 2 * (tl.load(cells + 3 * cell + 2, mask=valid, other=0) % 2)
    rows = ((part == 1) | (part == 3)).to(tl.int32) - ((part == 4) | (part == 6)).to(tl.int32)
    cols = ((part == 2) | (part == 3)).to(tl.int32) - ((part == 5) | (part == 6)).to(tl.int32)
    tap = 4 + 3 * down * rows + right * cols
    # spconv's layout: one row of cells a tap
    other = tl.load(neighbours + tap * num_cells + cell, mask=valid, other=-1)
    token = tl.load(tokens + other * SLOTS + slot, mask=valid & (other >= 0), other=-1)
    tl.store(seen + entry, token, mask=valid)


def launch_pair_table(coords: Tensor, pairs: Tensor, num_slides: int) -> tuple[Tensor, Tensor]:
    """`device_tables.pair_table`."""
    (_, taps, inputs), outputs = pairs.shape, len(coords)
    table, offsets = pairs.new_full((outputs, taps), -1), pairs.new_empty(num_slides + 1)
    grid = (triton.cdiv(max(taps * inputs, outputs), _BLOCK),)
    arguments = coords, pairs, table, offsets, outputs, inputs, num_slides
    launch(_pair_table, grid, arguments, {"TAPS": taps, "BLOCK": _BLOCK})
    return table, offsets


def launch_seen_tokens(cells: Tensor, tokens: Tensor, neighbours: Tensor) -> Tensor:
    """`device_tables.seen_tokens`."""
    num_cells, slots = tokens.shape
    seen = tokens.new_empty(num_cells, 7 * slots)
    grid = (triton.cdiv(seen.numel(), _BLOCK),)
    constants = {"SLOTS": slots, "COLUMNS": 7 * slots, "BLOCK": _BLOCK}
    launch(_seen_tokens, grid, (cells, tokens, neighbours, seen, num_cells), constants)
    return seen
