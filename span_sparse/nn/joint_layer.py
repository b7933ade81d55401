"""Transformer layer with local and global tokens as rows of one tensor, for GPUs.

Both kinds of tokens pass the same LayerNorms, output projection and feed-forward network. As rows of one tensor
`U = [X; G]` they share the launches, for which a GPU waits longer than for the few rows of the globals. Residual sums
are part of the LayerNorm that follows (`add_norm`), and rows keep the dtype of the products.

Kept for the backward pass per layer: the sums before both LayerNorms, their results, q, k, v, the attention's output
and log-sum-exp, and the hidden units; 10 widths of a token with `ff_ratio` 2. Without gradients sums and
norms overwrite what they are made of, and at most q, k, v, their output and the residual stream are held at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from span_sparse.nn.add_norm import add_norm, add_norm_
from span_sparse.nn.execution import current_execution
from span_sparse.nn.slides import to_rows
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

    shape, sizes = global_tokens.shape, [len(local_tokens), global_tokens.shape[0] * global_tokens.shape[1]]
    rows = joined_rows(local_tokens, global_tokens)
    _, normed = add_norm(rows, None, layer.attention_norm)
    normed_local, normed_global = normed.split(sizes)
    exchange = layer.exchange(normed_local, normed_global.view(shape), level, locals_needed)
    for_globals = rows.new_zeros(sizes[1], rows.shape[1]) if exchange is None else exchange.for_globals.flatten(0, 1)
    attention = None if exchange is None else exchange.weights
    if not locals_needed:
        refined = _refine(layer, rows[sizes[0] :].clone(), layer.dropout(layer.output(for_globals)))
        return LayerOutput(local_tokens, refined.view(shape), attention)
    products = layer.window_products(normed_local, level)
    for_locals = None if exchange is None else exchange.for_locals
    del normed, normed_local, normed_global, exchange  # the attention needs the products only
    attended = layer.attend(products, level)
    del products
    branch = _branch(layer, attended, for_locals, for_globals, level)
    del attended
    local_rows, global_rows = _refine(layer, rows, branch).split(sizes)
    return LayerOutput(local_rows, global_rows.view(shape), attention)


def joined_rows(local_tokens: Tensor, global_tokens: Tensor) -> Tensor:
    """Local tokens and, below them, the global ones; without a copy where they lie like this already.

    Without gradients the rows are overwritten: whoever lays tokens out like this gives them away.
    """
    num_rows, width = len(local_tokens) + global_tokens.numel() // local_tokens.shape[1], local_tokens.shape[1]
    adjacent = (
        not torch.is_grad_enabled()
        and local_tokens.dtype == global_tokens.dtype
        and local_tokens.is_contiguous()
        and global_tokens.is_contiguous()
        and local_tokens.untyped_storage().data_ptr() == global_tokens.untyped_storage().data_ptr()
        and local_tokens.storage_offset() + local_tokens.numel() == global_tokens.storage_offset()
    )
    if adjacent:
        return local_tokens.as_strided((num_rows, width), (width, 1))
    return torch.cat([local_tokens, global_tokens.flatten(0, 1).to(local_tokens.dtype)])


def _branch(
    layer: TransformerLayer, attended: Tensor, for_locals: Tensor | None, for_globals: Tensor, level: Level
) -> Tensor:
    """The attention's residual branch; what is the same for all locals of a slide is added after the projection."""
    if for_locals is not None and len(for_locals) == len(attended):
        attended, for_locals = attended + for_locals, None
    local_branch = layer.output(attended)
    if for_locals is not None:
        for_locals = to_rows(F.linear(for_locals, layer.output.weight).to(local_branch.dtype), level.sites)
    return layer.dropout(_Assembled.apply(local_branch, for_locals, layer.output(for_globals)))  # pyright: ignore[reportArgumentType]


def _refine(layer: TransformerLayer, rows: Tensor, branch: Tensor) -> Tensor:
    """The sum with the first branch, and the second one."""
    keep = torch.is_grad_enabled()
    total, normed = (add_norm if keep else add_norm_)(rows, branch, layer.feed_forward_norm)
    widen, activation, *rest = layer.feed_forward
    hidden = widen(normed)
    hidden = hidden.relu_() if isinstance(activation, nn.ReLU) else activation(hidden)
    for module in rest:
        hidden = module(hidden)
    return total + hidden if keep else hidden.add_(total)


class _Assembled(torch.autograd.Function):
    """The locals' branch, with what every local of a slide gets, and below it the globals' branch."""

    @staticmethod
    def forward(ctx: Any, local_branch: Tensor, for_locals: Tensor | None, global_branch: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.dtypes = local_branch.dtype, None if for_locals is None else for_locals.dtype, global_branch.dtype
        ctx.num_locals = len(local_branch)
        rows = local_branch.new_empty(len(local_branch) + len(global_branch), local_branch.shape[1])
        top = rows[: len(local_branch)]
        if for_locals is None:
            top.copy_(local_branch)
        else:
            torch.add(local_branch, for_locals, out=top)
        rows[len(local_branch) :] = global_branch
        return rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        local, other = grad[: ctx.num_locals], grad[ctx.num_locals :]
        local_branch, for_locals, global_branch = ctx.dtypes
        return local.to(local_branch), None if for_locals is None else local.to(for_locals), other.to(global_branch)
