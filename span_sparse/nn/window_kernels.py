"""Triton kernels of the window attention: one program per cell and head.

A program holds the up to w² tokens of a cell and the up to 7·w² tokens they may see (`WindowMaps.seen`) in registers,
so a pass over the scores is one tile: no loop over keys, no merging. Statistics are float32 whatever the tokens are.

Seeing is mutual: token j is a key of i exactly when i is a key of j, and both through the same seven cells. So the
gradients of a cell's queries, and of its keys and values, are gathered through the same table by one program each, and
no two programs write to the same row: results are the same from run to run. Only the position bias is shared by all
cells; its gradient is summed per group of cells and parity in the order of the cells, and the groups afterwards.

Without a bias to train, the query kernel takes one cell a program.
"""

# pyright: reportUnknownParameterType=none, reportMissingParameterType=none
# pyright: reportArgumentType=none, reportCallIssue=none

from __future__ import annotations

import triton
import triton.language as tl

REACHES = {"union": 0, "regular": 1, "shifted": 2}


@triton.jit
def _seen_places(part):
    """Rows and columns of the seven seen cells, see `windows.SEEN_CELLS`."""
    rows = ((part == 1) | (part == 3)).to(tl.int32) - ((part == 4) | (part == 6)).to(tl.int32)
    cols = ((part == 2) | (part == 3)).to(tl.int32) - ((part == 5) | (part == 6)).to(tl.int32)
    return rows, cols


@triton.jit
def _displacements(cells, cell, own, column, SIDE: tl.constexpr, DIRECTION: tl.constexpr):
    """Entry of the bias for every (own slot, seen column); `DIRECTION` is 1 where the seen tokens are the keys."""
    part, slot = column // (SIDE * SIDE), column % (SIDE * SIDE)
    rows, cols = _seen_places(part)
    down = 1 - 2 * (tl.load(cells + 3 * cell + 1) % 2)
    right = 1 - 2 * (tl.load(cells + 3 * cell + 2) % 2)
    row = (down * rows * SIDE + slot // SIDE)[None, :] - (own // SIDE)[:, None]
    col = (right * cols * SIDE + slot % SIDE)[None, :] - (own % SIDE)[:, None]
    return (DIRECTION * row + 2 * SIDE - 1) * (4 * SIDE - 1) + DIRECTION * col + 2 * SIDE - 1


@triton.jit
def _load_cell(
    tokens, seen, cell, SIDE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, REACH: tl.constexpr
):
    """Slots, columns and rows of a cell's own and seen tokens, -1 where there is none or it is out of reach."""
    own = tl.arange(0, BLOCK_Q)
    column = tl.arange(0, BLOCK_K)
    token = tl.load(tokens + cell * (SIDE * SIDE) + own, mask=own < SIDE * SIDE, other=-1)
    part = column // (SIDE * SIDE)
    reached = part < 7
    if REACH == 1:
        reached = part < 4
    if REACH == 2:
        reached = (part == 0) | ((part >= 4) & (part < 7))
    other = tl.load(seen + cell * (7 * SIDE * SIDE) + column, mask=reached, other=-1)
    return own, column, token, other


@triton.jit
def _rows(pointer, token, stride, CHANNELS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of some tokens, zeros for absent ones."""
    channel = tl.arange(0, BLOCK_D)
    places = token.to(tl.int64)[:, None] * stride + channel[None, :]
    return tl.load(pointer + places, mask=(token >= 0)[:, None] & (channel < CHANNELS)[None, :], other=0.0)


@triton.jit
def _store_rows(pointer, token, stride, values, CHANNELS: tl.constexpr, BLOCK_D: tl.constexpr):
    channel = tl.arange(0, BLOCK_D)
    places = token.to(tl.int64)[:, None] * stride + channel[None, :]
    values = values.to(pointer.dtype.element_ty)
    tl.store(pointer + places, values, mask=(token >= 0)[:, None] & (channel < CHANNELS)[None, :])


@triton.jit(do_not_specialize=["num_cells"])
def forward_kernel(
    qkv, bias, tokens, seen, cells, output, log_sums, scale, num_cells,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, SIDE: tl.constexpr, REACH: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`output` and `log_sums` of the queries of one cell and head."""
    cell, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    width: tl.constexpr = HEADS * CHANNELS
    own, column, token, other = _load_cell(tokens, seen, cell, SIDE, BLOCK_Q, BLOCK_K, REACH)
    q = _rows(qkv + head * CHANNELS, token, 3 * width, CHANNELS, BLOCK_D)
    k = _rows(qkv + width + head * CHANNELS, other, 3 * width, CHANNELS, BLOCK_D)
    v = _rows(qkv + 2 * width + head * CHANNELS, other, 3 * width, CHANNELS, BLOCK_D)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    if HAS_BIAS:
        entry = _displacements(cells, cell, own, column, SIDE, 1)
        used = (token >= 0)[:, None] & (other >= 0)[None, :]
        scores += tl.load(bias + head * (4 * SIDE - 1) * (4 * SIDE - 1) + entry, mask=used, other=0.0).to(tl.float32)
    scores = tl.where((other >= 0)[None, :], scores, float("-inf"))
    top = tl.max(scores, 1)
    weights = tl.exp(scores - top[:, None])
    total = tl.sum(weights, 1)
    read = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION) / total[:, None]
    _store_rows(output + head * CHANNELS, token, width, read, CHANNELS, BLOCK_D)
    tl.store(log_sums + token * HEADS + head, top + tl.log(total), mask=token >= 0)


@triton.jit(do_not_specialize=["num_cells", "group"])
def query_gradient_kernel(
    grad, qkv, bias, tokens, seen, cells, output, log_sums, dqkv, mean_grads, dbias, scale, num_cells, group,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, SIDE: tl.constexpr, REACH: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
    TRAIN_BIAS: tl.constexpr,
):  # fmt: skip
    """Gradients of the queries of a group of cells, `mean_grads = Σ_c grad · output`, and of the bias, by parity."""
    head, parity = tl.program_id(1) % HEADS, tl.program_id(1) // HEADS
    width: tl.constexpr = HEADS * CHANNELS
    total = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
    for position in range(group):
        cell = tl.program_id(0) * group + position
        mine = cell < num_cells
        if TRAIN_BIAS:
            row = tl.load(cells + 3 * cell + 1, mask=mine, other=0)
            col = tl.load(cells + 3 * cell + 2, mask=mine, other=0)
            mine = mine & (2 * (row % 2) + col % 2 == parity)
        if mine:
            own, column, token, other = _load_cell(tokens, seen, cell, SIDE, BLOCK_Q, BLOCK_K, REACH)
            q = _rows(qkv + head * CHANNELS, token, 3 * width, CHANNELS, BLOCK_D)
            k = _rows(qkv + width + head * CHANNELS, other, 3 * width, CHANNELS, BLOCK_D)
            v = _rows(qkv + 2 * width + head * CHANNELS, other, 3 * width, CHANNELS, BLOCK_D)
            dy = _rows(grad + head * CHANNELS, token, width, CHANNELS, BLOCK_D)
            y = _rows(output + head * CHANNELS, token, width, CHANNELS, BLOCK_D)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
            used = (token >= 0)[:, None] & (other >= 0)[None, :]
            if HAS_BIAS:
                entry = _displacements(cells, cell, own, column, SIDE, 1)
                table = bias + head * (4 * SIDE - 1) * (4 * SIDE - 1)
                scores += tl.load(table + entry, mask=used, other=0.0).to(tl.float32)
            log_sum = tl.load(log_sums + token * HEADS + head, mask=token >= 0, other=0.0)
            weights = tl.where(used, tl.exp(scores - log_sum[:, None]), 0.0)
            mean_grad = tl.sum(dy.to(tl.float32) * y.to(tl.float32), 1)
            dscores = weights * (tl.dot(dy, tl.trans(v), input_precision=PRECISION) - mean_grad[:, None])
            dq = tl.dot(dscores.to(k.dtype), k, input_precision=PRECISION) * scale
            _store_rows(dqkv + head * CHANNELS, token, 3 * width, dq, CHANNELS, BLOCK_D)
            tl.store(mean_grads + token * HEADS + head, mean_grad, mask=token >= 0)
            total += dscores
    if TRAIN_BIAS:
        own = tl.arange(0, BLOCK_Q)[:, None]
        column = tl.arange(0, BLOCK_K)[None, :]
        slots: tl.constexpr = SIDE * SIDE
        block = (tl.program_id(0) * 4 + parity) * HEADS + head
        place = block * (7 * slots * slots) + own * (7 * slots) + column
        tl.store(dbias + place, total, mask=(own < slots) & (column < 7 * slots))


@triton.jit(do_not_specialize=["num_cells"])
def key_gradient_kernel(
    grad, qkv, bias, tokens, seen, cells, log_sums, mean_grads, dqkv, scale, num_cells,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, SIDE: tl.constexpr, REACH: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the keys and values of one cell and head; the seen tokens are the queries."""
    cell, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    width: tl.constexpr = HEADS * CHANNELS
    own, column, token, other = _load_cell(tokens, seen, cell, SIDE, BLOCK_Q, BLOCK_K, REACH)
    q = _rows(qkv + head * CHANNELS, other, 3 * width, CHANNELS, BLOCK_D)
    k = _rows(qkv + width + head * CHANNELS, token, 3 * width, CHANNELS, BLOCK_D)
    v = _rows(qkv + 2 * width + head * CHANNELS, token, 3 * width, CHANNELS, BLOCK_D)
    dy = _rows(grad + head * CHANNELS, other, width, CHANNELS, BLOCK_D)
    scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
    used = (token >= 0)[:, None] & (other >= 0)[None, :]
    if HAS_BIAS:
        entry = _displacements(cells, cell, own, column, SIDE, -1)
        table = bias + head * (4 * SIDE - 1) * (4 * SIDE - 1)
        scores += tl.load(table + entry, mask=used, other=0.0).to(tl.float32)
    log_sum = tl.load(log_sums + other * HEADS + head, mask=other >= 0, other=0.0)
    mean_grad = tl.load(mean_grads + other * HEADS + head, mask=other >= 0, other=0.0)
    weights = tl.where(used, tl.exp(scores - log_sum[None, :]), 0.0)
    dv = tl.dot(weights.to(dy.dtype), dy, input_precision=PRECISION)
    dscores = weights * (tl.dot(v, tl.trans(dy), input_precision=PRECISION) - mean_grad[None, :])
    dk = tl.dot(dscores.to(q.dtype), q, input_precision=PRECISION) * scale
    _store_rows(dqkv + width + head * CHANNELS, token, 3 * width, dk, CHANNELS, BLOCK_D)
    _store_rows(dqkv + 2 * width + head * CHANNELS, token, 3 * width, dv, CHANNELS, BLOCK_D)
