"""Which parameters decay, and how does the learning rate move?

AdamW with a cosine over epochs, as in the authors' recipes; ours besides: no weight decay on what is not a matrix of a
Linear or convolution (norms, biases, position tables, global tokens), and a linear warm-up.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn, optim

_NEVER_DECAYS = ("positions.table", "tokens.learned")


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups, with and without weight decay."""
    decays: list[nn.Parameter] = []
    rests: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or any(part in name for part in _NEVER_DECAYS)
            (rests if plain else decays).append(parameter)
    return [{"params": decays, "weight_decay": weight_decay}, {"params": rests, "weight_decay": 0.0}]


def warm_up_cosine(optimizer: optim.Optimizer, *, warm_up_epochs: int, max_epochs: int) -> optim.lr_scheduler.LambdaLR:
    """Learning rate by epoch: linear from `1 / (warm_up_epochs + 1)`, then half a cosine down to zero."""

    def factor(epoch: int) -> float:
        if epoch < warm_up_epochs:
            return (epoch + 1) / (warm_up_epochs + 1)
        progress = (epoch - warm_up_epochs) / max(1, max_epochs - warm_up_epochs)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return optim.lr_scheduler.LambdaLR(optimizer, factor)
