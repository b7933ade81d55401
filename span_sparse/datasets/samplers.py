"""Which slides does each process see, and in which order?

Training: a permutation that depends on (seed, epoch) alone, padded by repetition so that every process takes the same
number of steps (an uneven number deadlocks DDP). With labels the classes are drawn equally often: an epoch has as many
slides as before; a rare class repeats its slides, a frequent one leaves some out, others in every epoch.

Evaluation: every slide exactly once over all processes, without padding; a process without a slide repeats one, because
skipping the loop would leave the others waiting, and the gathered predictions drop the repetition by its index.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from span_sparse.datasets.slide_dataset import EpochIndex


class TrainingSampler(Sampler[EpochIndex]):
    """A shuffled share of the slides for one process; Lightning calls `set_epoch`.

    Args:
        num_slides: of the training set.
        seed: of the orders.
        rank: this process.
        world_size: number of processes.
        balance: class of every slide; an epoch then has the same number of each class, but for a remainder of one.
    """

    def __init__(
        self, num_slides: int, *, seed: int, rank: int = 0, world_size: int = 1, balance: Sequence[int] | None = None
    ) -> None:
        self.num_slides, self.seed, self.rank, self.world_size = num_slides, seed, rank, world_size
        self.balance = None if balance is None else torch.tensor(balance)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's permutation."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.num_slides // self.world_size)

    def __iter__(self) -> Iterator[EpochIndex]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = self._order(generator)
        order += order[: len(self) * self.world_size - self.num_slides]
        return (EpochIndex(index, self.epoch) for index in order[self.rank :: self.world_size])

    def _order(self, generator: torch.Generator) -> list[int]:
        if self.balance is None:
            return torch.randperm(self.num_slides, generator=generator).tolist()
        classes = self.balance.unique()
        share, remainder = divmod(self.num_slides, len(classes))
        extra = torch.randperm(len(classes), generator=generator) < remainder
        drawn = []
        for label, has_extra in zip(classes, extra.tolist(), strict=True):
            slides, wanted = (self.balance == label).nonzero()[:, 0], share + has_extra
            rounds = -(-wanted // len(slides))  # all slides of a class before one comes again
            orders = [slides[torch.randperm(len(slides), generator=generator)] for _ in range(rounds)]
            drawn.append(torch.cat(orders)[:wanted])
        order = torch.cat(drawn)
        return order[torch.randperm(len(order), generator=generator)].tolist()


class EvaluationSampler(Sampler[int]):
    """An unpadded share of the slides, in order."""

    def __init__(self, num_slides: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.indices = list(range(num_slides))[rank::world_size] or [num_slides - 1]

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
