"""Lower bounds of a model's time: what must be moved over bandwidth, what must be computed over the peak of products.

    floor = max(bytes / measured copy bandwidth, operations / measured peak of matrix products in the precision)

Bytes of a forward pass: the features once, in the store's float16; every parameter once; and where rows meet other rows
(attention) no kernel can go on before all have arrived, so a layer's rows and its q, k and v are written and read once
in the precision of the products. Everything between two attentions could be one kernel and counts nothing. With the
backward pass each of these tensors is read once more and its gradient written and read, parameters are read once more
and their gradients written, and the features are read again.

Operations: the dense products the model ran, forward and backward. SPAN's are those of its Linear layers alone (`mm`,
`addmm`): those of its window attention depend on how it is implemented, and no implementation may raise its own floor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from measuring import synchronise
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from span_sparse.models import span_mil

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions of the products, by name."""

WIDTH = 512
"""Channels of a token in every model but `attention_pooling`, which keeps none."""

LAYERS = 2
"""Attention layers of the peers."""

_TENSORS_PER_LAYER = 4
"""A layer's rows, q, k and v."""

_BUDGET_S = 0.5


@dataclass(frozen=True, slots=True)
class Machine:
    """What the device reached in this run.

    Attributes:
        bandwidth: bytes a second of a copy, read and written.
        peak: operations a second of a square matrix product.
    """

    bandwidth: float
    peak: float


@dataclass(frozen=True, slots=True)
class Floor:
    """Lower bound of one cell.

    Attributes:
        moved_bytes: that must cross the memory's bus.
        gflop: of the dense products.
        seconds: the larger of both over what the machine reached.
    """

    moved_bytes: float
    gflop: float
    seconds: float


class ProductRecorder(TorchDispatchMode):
    """Notes the shapes of all dense matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            left, right = args[-2:]
            self.shapes.append((left.shape[0], left.shape[1], right.shape[1]))
        return func(*args, **(kwargs or {}))


def autocast(device: torch.device, precision: str) -> Any:
    """The context in which a model runs in a precision."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype=DTYPES[precision])


def replay(shapes: list[tuple[int, int, int]], device: torch.device, precision: str) -> Callable[[], None]:
    """A call that computes products of these shapes and nothing else."""
    sizes = {size for rows, inner, columns in shapes for size in ((rows, inner), (inner, columns))}
    buffers = {size: torch.randn(size, device=device, dtype=DTYPES[precision]) for size in sizes}

    def products() -> None:
        for rows, inner, columns in shapes:
            torch.mm(buffers[rows, inner], buffers[inner, columns])

    return products


def dense_gflop(shapes: list[tuple[int, int, int]]) -> float:
    """Operations of products of these shapes, in 10⁹."""
    return sum(2e-9 * rows * inner * columns for rows, inner, columns in shapes)


def model_gflop(
    name: str, num_patches: int, mode: str, shapes: list[tuple[int, int, int]], call: Callable[[], object]
) -> float:
    """Operations a model cannot do without, in 10⁹.

    Args:
        name: of the model.
        num_patches: of the slide.
        mode: `forward` or `forward_backward`.
        shapes: of the dense products it ran.
        call: runs it once more; torch counts the batched products of TransMIL.
    """
    if name == "span":
        return dense_gflop(shapes)
    if name.startswith("full_attention"):
        # scores and weighted sum; backward twice as many. torch does not count the fused ones on a CPU
        products = 2 if mode == "forward" else 6
        return dense_gflop(shapes) + LAYERS * products * 2e-9 * num_patches**2 * WIDTH
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


@cache
def machine(device: torch.device, precision: str) -> Machine:
    """Measures copy bandwidth and the peak of products: the fastest of several within half a second each."""
    on_cuda = device.type == "cuda"
    source = torch.zeros(2**28 if on_cuda else 2**24, device=device)  # beyond every cache
    target = torch.empty_like(source)
    size = {"fp32": 4096}.get(precision, 8192) if on_cuda else 512
    left, right = (torch.randn(size, size, device=device, dtype=DTYPES[precision]) for _ in range(2))
    # on CPUs without bfloat16 units the two take different ways, one of them slow
    product = min(_fastest(call, device) for call in (lambda: left @ right, lambda: F.linear(left, right)))
    return Machine(
        bandwidth=2 * source.numel() * source.element_size() / _fastest(lambda: target.copy_(source), device),
        peak=2 * size**3 / product,
    )


def token_rows(name: str, coords: Tensor) -> list[int]:
    """Rows of every attention layer; for SPAN the occupied cells of each level, counted in plain torch."""
    if name == "attention_pooling":  # one pass over the rows gives the weighted mean
        return []
    if name != "span":
        return [len(coords)] * LAYERS
    config, places, rows = span_mil(), coords, []
    for depth in config.depths()[0]:
        rows += [len(places)] * depth
        places = (places // places.new_tensor([1, config.stride, config.stride])).unique(dim=0)
    return rows


def moved_bytes(name: str, model: nn.Module, coords: Tensor, num_features: int, mode: str, precision: str) -> float:
    """Bytes that must cross the bus in one pass; see the module's docstring."""
    features = len(coords) * num_features * torch.float16.itemsize
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    tokens = sum(token_rows(name, coords)) * _TENSORS_PER_LAYER * WIDTH * DTYPES[precision].itemsize
    if mode == "forward":
        return features + parameters + 2 * tokens
    return 2 * features + 3 * parameters + 5 * tokens


def floor(moved: float, gflop: float, reached: Machine) -> Floor:
    """The larger of both bounds."""
    return Floor(moved, gflop, max(moved / reached.bandwidth, gflop * 1e9 / reached.peak))


def _fastest(call: Callable[[], object], device: torch.device) -> float:
    call()
    synchronise(device)
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < _BUDGET_S:
        begin = time.perf_counter()
        for _ in range(3):  # together: a launch must not count
            call()
        synchronise(device)
        best = min(best, (time.perf_counter() - begin) / 3)
    return best
