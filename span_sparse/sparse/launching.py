"""Launches of Triton kernels without the bookkeeping of every launch.

`kernel[grid](...)` looks at every argument anew and takes 60 to 80 µs of the host (Triton 3.6), longer than most of our
kernels run. Here what a kernel was compiled for is kept by dtype, alignment and compile-time values, and the compiled
kernel is launched itself. For that the kernels leave run-time integers unspecialised.
"""

from __future__ import annotations

from typing import Any, Final

import triton
from torch import Tensor

_LAUNCHES_COMPILED: Final = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 6)
"""Earlier versions want other arguments of a compiled kernel; they take the long way."""

_compiled: dict[tuple[Any, ...], Any] = {}


def launch(
    kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any], *, num_warps: int = 4
) -> None:
    """Runs a kernel on the current stream.

    Args:
        kernel: a `triton.jit` function; run-time arguments first, then the compile-time ones.
        grid: programs along up to three axes.
        arguments: tensors on one device, floats, and integers that the kernel does not specialise on.
        constants: compile-time values by name, in the order of the kernel's parameters.
        num_warps: of a program.
    """
    if not isinstance(kernel, triton.JITFunction):  # the interpreter
        kernel[grid](*arguments, **constants)
        return
    kinds = tuple(
        (argument.dtype, argument.data_ptr() % 16 == 0) if isinstance(argument, Tensor) else type(argument)
        for argument in arguments
    )
    key = (id(kernel), arguments[0].get_device(), num_warps, tuple(constants.values()), kinds)
    compiled = _compiled.get(key)
    if compiled is None:
        compiled = kernel[grid](*arguments, **constants, num_warps=num_warps)
        if _LAUNCHES_COMPILED:
            _compiled[key] = compiled
        return
    compiled[(*grid, 1, 1)[:3]](*arguments, *constants.values())
