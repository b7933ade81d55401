"""Switches of TensorFloat-32, by which a GPU computes "float32" products with 10 bits of mantissa instead of 23.

torch leaves them off for matrix products and **on** for cuDNN's convolutions. Here float32 means float32: commands turn
cuDNN's switch off before anything else runs (`off_by_default`), and what must not depend on switches at all runs inside
`exact_convolutions`. Whoever wants TF32 turns torch's own switches on afterwards.

torch 2.9 gave every operation a precision of its own (`fp32_precision`) beside the old `allow_tf32`. Reading the old
one raises as soon as the two disagree, so each function goes by the one that is in use.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch


def switches() -> dict[str, bool]:
    """Whether torch computes float32 with TF32 on CUDA: `matmul` (cuBLAS) and `cudnn` (convolutions)."""
    convolution: Any = getattr(torch.backends.cudnn, "conv", None)
    return {
        "matmul": product_precision() == "tf32",
        "cudnn": bool(_allow_tf32()) if convolution is None else convolution.fp32_precision == "tf32",
    }


def product_precision() -> Literal["tf32", "ieee"]:
    """How float32 matrix products are computed on CUDA; our kernels follow it."""
    matmul: Any = torch.backends.cuda.matmul
    by_name = hasattr(matmul, "fp32_precision")  # torch 2.9 and newer
    return "tf32" if (matmul.fp32_precision == "tf32" if by_name else matmul.allow_tf32) else "ieee"


def off_by_default() -> None:
    """Turns cuDNN's TF32 off, unless it was asked for through a newer switch of all of torch or of cuDNN."""
    above = (getattr(level, "fp32_precision", "none") for level in (torch.backends, torch.backends.cudnn))
    if _allow_tf32() and "tf32" not in above:
        _set_allow_tf32(False)


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Within it cuDNN computes float32 convolutions without TF32, whatever the switches say; they come back after."""
    operations: list[Any] = [getattr(torch.backends.cudnn, name, None) for name in ("conv", "rnn")]
    operations = [operation for operation in operations if operation is not None]
    before, precisions = _allow_tf32(), [operation.fp32_precision for operation in operations]
    try:
        if before is not None:
            _set_allow_tf32(False)
        for operation in operations:
            if operation.fp32_precision == "tf32":  # still: it inherits it
                operation.fp32_precision = "ieee"
        yield
    finally:
        if before is not None:
            _set_allow_tf32(before)  # first: it sets the operations too
        for operation, precision in zip(operations, precisions, strict=True):
            if operation.fp32_precision != precision:
                operation.fp32_precision = precision


def _allow_tf32() -> bool | None:
    """The old switch of cuDNN; None where the newer ones contradict it, and torch refuses to read it."""
    try:
        with _old_switch():
            return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return None


def _set_allow_tf32(value: bool) -> None:
    with _old_switch():
        torch.backends.cudnn.allow_tf32 = value


@contextmanager
def _old_switch() -> Iterator[None]:
    # torch 2.9 to 2.12 warn of every use of the old switch, yet its newer ones alone leave the old one unreadable
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use the new API settings to control TF32 behavior", UserWarning)
        yield
