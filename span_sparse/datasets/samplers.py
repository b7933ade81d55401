"""Which slides does each process see, and in which order?

Training: a permutation that depends on (seed, epoch) alone, padded by repetition so that every process takes the same
number of steps (an uneven number deadlocks DDP). Evaluation: every slide exactly once over all processes, without
padding; a process without a slide repeats one, because skipping the loop would leave the others waiting, and the
gathered predictions drop the repetition by its index.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from span_sparse.datasets.slide_dataset import EpochIndex


class TrainingSampler(Sampler[EpochIndex]):
    """A shuffled share of the slides for one process; Lightning calls `set_epoch`."""

    def __init__(self, num_slides: int, *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.num_slides, self.seed, self.rank, self.world_size = num_slides, seed, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's permutation."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.num_slides // self.world_size)

    def __iter__(self) -> Iterator[EpochIndex]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.num_slides, generator=generator).tolist()
        order += order[: len(self) * self.world_size - self.num_slides]
        return (EpochIndex(index, self.epoch) for index in order[self.rank :: self.world_size])


class EvaluationSampler(Sampler[int]):
    """An unpadded share of the slides, in order."""

    def __init__(self, num_slides: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.indices = list(range(num_slides))[rank::world_size] or [num_slides - 1]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
