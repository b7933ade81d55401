"""Registration of our operators with torch, so that autograd, autocast, checkpointing, export and profilers know them.

`torch.library.custom_op` does the same, and imports torch's compiler (four seconds) at the first call. An operator that
nobody watches is called without torch's dispatcher, whose detour through Python takes longer than most of the kernels.

Where kernels run is decided in one place, `on_device`. `simulated_device` sends CPU tensors the same way: everything is
computed as on a GPU, by Triton's interpreter where it is on (`TRITON_INTERPRET=1`), else by plain torch. Slow, and for
tests and counts.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

NAMESPACE: Final = "span_sparse"

_simulated: ContextVar[bool] = ContextVar("simulated device", default=False)


@dataclass(frozen=True, slots=True)
class Registered:
    """What is known of an operator besides torch's own record.

    Attributes:
        fake: the operator on tensors without values.
        launches: kernels it starts on a GPU.
    """

    fake: Callable[..., Any]
    launches: int


OPERATORS: Final[dict[str, Registered]] = {}
"""Every operator by name."""


def operator(
    name: str,
    schema: str,
    *,
    fake: Callable[..., Any],
    launches: int,
    gradient: Callable[..., Any] | None = None,
    context: Callable[..., None] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function of tensors as the operator `span_sparse::name`, for every device.

    Args:
        name: of the operator.
        schema: its signature, for example `"(Tensor rows) -> Tensor"`.
        fake: the same on tensors without values: shapes and dtypes of the results.
        launches: kernels it starts on a GPU.
        gradient: the backward pass, `(ctx, *gradients of the results) -> gradients of the arguments`.
        context: keeps what it needs, `(ctx, inputs, output)`.

    Returns:
        A decorator; what it returns calls the operator.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        qualified = f"{NAMESPACE}::{name}"
        torch.library.define(qualified, schema)
        torch.library.impl(qualified, "CompositeExplicitAutograd")(function)
        torch.library.register_fake(qualified)(fake)
        if gradient is not None:
            torch.library.register_autograd(qualified, gradient, setup_context=context)
        OPERATORS[name] = Registered(fake, launches)
        registered = getattr(getattr(torch.ops, NAMESPACE), name).default
        differentiable = None if gradient is None else _differentiable(name, function, gradient, context)

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            if _watched():
                return registered(*arguments)
            if differentiable is None or not torch.is_grad_enabled():
                return function(*arguments)
            return differentiable.apply(*arguments)

        return call

    return register


def _differentiable(
    name: str, function: Callable[..., Any], gradient: Callable[..., Any], context: Callable[..., None] | None
) -> type[torch.autograd.Function]:
    """The operator as a function of autograd: what torch's registration does, in a fifth of the host's time."""
    members = {
        "forward": staticmethod(function),
        "setup_context": staticmethod(context or (lambda ctx, inputs, output: None)),
        "backward": staticmethod(torch.autograd.function.once_differentiable(gradient)),
    }
    return type(name, (torch.autograd.Function,), members)


def _watched() -> bool:
    """Whether somebody looks at the operators themselves: an export, a dispatch mode, a profiler."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._autograd._profiler_enabled()  # pyright: ignore[reportAttributeAccessIssue]
    )


def is_device(device: torch.device) -> bool:
    """Whether tensors there are treated as a GPU's; without Triton as a CPU's, which is slow and right."""
    return (device.type == "cuda" and triton_is_there()) or _simulated.get()


def on_device(tensor: Tensor) -> bool:
    """Whether a tensor is treated as a GPU's."""
    return is_device(tensor.device)


def has_kernels(tensor: Tensor) -> bool:
    """Whether Triton can run kernels on a tensor: on CUDA, or by its interpreter; there is none for float64."""
    if tensor.dtype == torch.float64 or not triton_is_there():
        return False
    return tensor.is_cuda or (_simulated.get() and _interpreted())


@contextmanager
def simulated_device() -> Iterator[None]:
    """Treats CPU tensors as a GPU's inside a block."""
    token = _simulated.set(True)
    try:
        yield
    finally:
        _simulated.reset(token)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@functools.cache
def triton_is_there() -> bool:
    """Whether Triton is installed; torch's CUDA build brings it."""
    return importlib.util.find_spec("triton") is not None
