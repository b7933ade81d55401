"""Transformer layer with local and global tokens as rows of one tensor, for GPUs.

Both kinds of tokens pass the same LayerNorms, output projection and feed-forward network. As rows of one tensor
`U = [X; G]` they share the launches, for which a GPU waits longer than for the few rows of the globals. Residual sums
are part of the LayerNorm that follows (`add_norm`), and rows keep the dtype of the products.

Kept for the backward pass per layer: the sums before both LayerNorms, their results, q, k, v, the attention's output
and log-sum-exp, and the hidden units.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from span_sparse.nn.add_norm import add_norm
from span_sparse.nn.execution import current_execution
from span_sparse.sparse import Level

if TYPE_CHECKING:
    from span_sparse.nn.transformer import LayerOutput, TransformerLayer


def takes_joint_rows(layer: TransformerLayer, local_tokens: Tensor) -> bool:
    """Whether a layer is computed this way: on a GPU, unless DropPath treats the slides differently."""
    drops_paths = layer.training and layer.drop_path > 0
    operators = current_execution(local_tokens.device).operators
    return operators and not drops_paths and local_tokens.dtype != torch.float64


def joint_layer(
    layer: TransformerLayer, local_tokens: Tensor, global_tokens: Tensor, level: Level, *, locals_needed: bool
) -> LayerOutput:
    """`TransformerLayer.forward`."""
    from span_sparse.nn.transformer import LayerOutput

    sizes = [len(local_tokens), global_tokens.shape[0] * global_tokens.shape[1]]
    rows = torch.cat([local_tokens, global_tokens.flatten(0, 1).to(local_tokens.dtype)])
    _, normed = add_norm(rows, None, layer.attention_norm)
    normed_local, normed_global = normed.split(sizes)
    exchange = layer.exchange(normed_local, normed_global.view(global_tokens.shape), level, locals_needed)
    for_globals = rows.new_zeros(sizes[1], rows.shape[1]) if exchange is None else exchange.for_globals.flatten(0, 1)
    attention = None if exchange is None else exchange.weights
    if not locals_needed:
        refined = _refine(layer, rows[sizes[0] :], for_globals)
        return LayerOutput(local_tokens, refined.view(global_tokens.shape), attention)
    attended = layer.windows(normed_local, level)
    for_locals = None if exchange is None else exchange.for_locals
    refined = _refine(layer, rows, _Assembled.apply(attended, for_locals, for_globals))  # pyright: ignore[reportArgumentType]
    local_rows, global_rows = refined.split(sizes)
    return LayerOutput(local_rows, global_rows.view(global_tokens.shape), attention)


def _refine(layer: TransformerLayer, rows: Tensor, attended: Tensor) -> Tensor:
    """Both residual branches."""
    branch = layer.dropout(layer.output(attended))
    total, normed = add_norm(rows, branch, layer.feed_forward_norm)
    widen, activation, *rest = layer.feed_forward
    hidden = widen(normed)
    hidden = hidden.relu_() if isinstance(activation, nn.ReLU) else activation(hidden)
    for module in rest:
        hidden = module(hidden)
    return total + hidden


class _Assembled(torch.autograd.Function):
    """What the locals read in windows and from the globals, and below it what the globals read."""

    @staticmethod
    def forward(ctx: Any, attended: Tensor, for_locals: Tensor | None, for_globals: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.dtypes = attended.dtype, None if for_locals is None else for_locals.dtype, for_globals.dtype
        ctx.num_locals = len(attended)
        rows = attended.new_empty(len(attended) + len(for_globals), attended.shape[1])
        top = rows[: len(attended)]
        if for_locals is None:
            top.copy_(attended)
        else:
            torch.add(attended, for_locals.to(attended.dtype), out=top)
        rows[len(attended) :] = for_globals
        return rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        local, other = grad[: ctx.num_locals], grad[ctx.num_locals :]
        attended, for_locals, for_globals = ctx.dtypes
        return local.to(attended), None if for_locals is None else local.to(for_locals), other.to(for_globals)
