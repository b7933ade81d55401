"""What do the means of an epoch, such as its training loss, consist of so far?

Lightning's checkpoints do not say, so the mean of an epoch that was interrupted would be that of the batches after the
interruption, and look like any other.
"""

from __future__ import annotations

from typing import Any

import lightning
from torch import Tensor

EpochSums = dict[str, list[Tensor]]
"""By name: the weighted sum of a figure and the sum of its weights."""


def epoch_sums(trainer: lightning.Trainer) -> EpochSums:
    """Sums of this process's training steps of this epoch, on the CPU."""
    return {name: [metric.value.cpu(), metric.cumulated_batch_size.cpu()] for name, metric in _means(trainer).items()}


def add_epoch_sums(trainer: lightning.Trainer, sums: EpochSums) -> None:
    """Adds what earlier steps of this epoch contributed; to be called after its first step since."""
    for name, metric in _means(trainer).items():
        if name in sums:
            value, weight = sums[name]
            metric.value = value.to(metric.value.device) + metric.value
            metric.cumulated_batch_size = weight.to(metric.cumulated_batch_size.device) + metric.cumulated_batch_size


def _means(trainer: lightning.Trainer) -> dict[str, Any]:
    results: dict[str, Any] = trainer.fit_loop.epoch_loop._results
    return {
        name: metric
        for name, metric in results.items()
        if metric.is_tensor and metric.meta.on_epoch and metric.meta.is_mean_reduction
    }
