"""Tables of the geometry on a GPU, each written by one kernel.

In plain torch the same tables are a handful of lines each (`sites`, `indice_maps`, `windows`), and a hundred kernel
launches for three levels. Nothing here waits for the device: sizes are those of the arguments.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Int, Int32, Int64
from torch import Tensor

_BLOCK = 256


@triton.jit(do_not_specialize=["num_sites", "rows", "cols"])
def _site_keys(coords, keys, num_sites, rows, cols, BLOCK: tl.constexpr):  # pyright: ignore[reportUnknownParameterType]
    site = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = site < num_sites
    slide = tl.load(coords + 3 * site, mask=valid, other=0).to(tl.int64)
    row = tl.load(coords + 3 * site + 1, mask=valid, other=0)
    col = tl.load(coords + 3 * site + 2, mask=valid, other=0)
    tl.store(keys + site, (slide * rows + row) * cols + col, mask=valid)


@triton.jit(do_not_specialize=["num_sites", "num_slides"])
def _reorder(
    coords, pairs, order, ordered, table, offsets, num_sites, num_slides, TAPS: tl.constexpr, BLOCK: tl.constexpr
):  # pyright: ignore[reportUnknownParameterType]
    site = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = site < num_sites
    source = tl.load(order + site, mask=valid, other=0)
    before = tl.load(order + site - 1, mask=valid & (site > 0), other=0)
    slide = tl.load(coords + 3 * source, mask=valid, other=0)
    first = (slide != tl.load(coords + 3 * before, mask=valid, other=0)) | (site == 0)
    tl.store(offsets + slide, site, mask=valid & first)  # every slide has a row
    tl.store(offsets + num_slides, num_sites, mask=tl.program_id(0) == 0)
    tl.store(ordered + 3 * site, slide, mask=valid)
    for axis in tl.static_range(1, 3):
        tl.store(ordered + 3 * site + axis, tl.load(coords + 3 * source + axis, mask=valid), mask=valid)
    for tap in range(TAPS):
        entry = tl.load(pairs + tap * num_sites + source, mask=valid, other=-1)
        tl.store(table + site * TAPS + tap, entry, mask=valid)


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


def site_keys(coords: Int32[Tensor, "tokens 3"], extents: tuple[int, int]) -> Int64[Tensor, " tokens"]:
    """`sites.site_keys`."""
    keys = torch.empty(len(coords), dtype=torch.int64, device=coords.device)
    _site_keys[_programs(len(coords))](coords, keys, len(coords), *extents, BLOCK=_BLOCK)
    return keys


def reorder(
    coords: Int32[Tensor, "outputs 3"],
    pairs: Int32[Tensor, "taps outputs"],
    order: Int64[Tensor, " outputs"],
    num_slides: int,
) -> tuple[Int32[Tensor, "outputs 3"], Int32[Tensor, "outputs taps"], Int[Tensor, " bounds"]]:
    """Coordinates and table of an indice map in the order `order`, and the first row of every slide.

    Args:
        coords: of the outputs, as spconv returns them.
        pairs: input that tap `k` of output `o` reads at `[k, o]`, or -1.
        order: permutation that sorts the outputs by (slide, row, col).
        num_slides: slides in the batch, each with an output.
    """
    taps, outputs = pairs.shape
    ordered, table = torch.empty_like(coords), pairs.new_empty(outputs, taps)
    offsets = coords.new_empty(num_slides + 1)
    _reorder[_programs(outputs)](
        coords, pairs, order, ordered, table, offsets, outputs, num_slides, TAPS=taps, BLOCK=_BLOCK
    )
    return ordered, table, offsets


def seen_tokens(
    cells: Int32[Tensor, "cells 3"], tokens: Int32[Tensor, "cells slots"], neighbours: Int32[Tensor, "taps cells"]
) -> Int32[Tensor, "cells seen"]:
    """`windows.WindowMaps.seen`, see there.

    Args:
        cells: `(slide, row, col)` of the cells.
        tokens: of every cell, -1 where there is none.
        neighbours: of the 3 × 3 submanifold map, one row a tap as spconv returns it.
    """
    num_cells, slots = tokens.shape
    seen = tokens.new_empty(num_cells, 7 * slots)
    _seen_tokens[_programs(seen.numel())](
        cells, tokens, neighbours, seen, num_cells, SLOTS=slots, COLUMNS=7 * slots, BLOCK=_BLOCK
    )
    return seen


def _programs(entries: int) -> Any:
    return (-(-entries // _BLOCK),)
