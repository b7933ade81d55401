"""Registration of our operators with torch, so that autograd, autocast, checkpointing, export and profilers know them.

`torch.library.custom_op` does the same, and imports torch's compiler (four seconds) at the first call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "span_sparse"


def operator(
    name: str,
    schema: str,
    *,
    fake: Callable[..., Any],
    gradient: Callable[..., Any] | None = None,
    context: Callable[..., None] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function of tensors as the operator `span_sparse::name`, for every device.

    Args:
        name: of the operator.
        schema: its signature, for example `"(Tensor rows) -> Tensor"`.
        fake: the same on tensors without values: shapes and dtypes of the results.
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
        return getattr(getattr(torch.ops, NAMESPACE), name).default

    return register
