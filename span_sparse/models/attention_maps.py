"""Where did the global tokens look? The attention of every stage and head, carried back to the slide's patches.

In a stage's last layer each global token reads the local tokens with weights that, with those of the globals among
themselves, sum to one over a slide. A coarse cell's weight belongs to all patches it was made of, so every patch gets
the weight of its cell (the mean over its cells where kernels overlap): maps of all stages have one value a patch and
can be laid side by side.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from span_sparse.models.mil import SpanMilOutput
from span_sparse.models.unet import SpanUnetOutput
from span_sparse.sparse import KernelMap


def attention_maps(output: SpanMilOutput | SpanUnetOutput) -> list[Float[Tensor, "globals heads tokens"] | None]:
    """The attention of every encoder stage, one value a patch.

    Args:
        output: of `SpanMil.run` or `SpanUnet.run`.

    Returns:
        One map a stage, patches in the order in which the caller gave them; None for a stage without layers or whose
        attention never writes the global tokens.
    """
    pyramid = output.pyramid
    stages = output.stages if isinstance(output, SpanMilOutput) else output.encoded
    maps: list[Tensor | None] = []
    for index, stage in enumerate(stages):
        if stage.attention is None:
            maps.append(None)
            continue
        values = stage.attention.movedim(-1, 0)  # (tokens, globals, heads)
        for level in reversed(pyramid.levels[1 : index + 1]):
            assert level.children is not None
            values = to_children(values, level.children)
        in_order = values if pyramid.order is None else torch.empty_like(values).index_copy(0, pyramid.order, values)
        maps.append(in_order.movedim(0, -1))
    return maps


def to_children(values: Float[Tensor, "outputs ..."], children: KernelMap) -> Float[Tensor, "inputs ..."]:
    """Gives every input the value of the output that read it, the mean where several did, zero where none."""
    parents = children.transposed.table
    present = (parents >= 0).to(values.dtype)
    shaped = present.reshape(*present.shape, *[1] * (values.ndim - 1))
    total = (values[parents.clamp(min=0)] * shaped).sum(dim=1)
    return total / shaped.sum(dim=1).clamp(min=1)
