"""How do slides of 200 and of 100,000 patches train together, without running out of memory or waiting for each other?

A batch is as many slides as fit into a budget of tokens, instead of a number of slides. One epoch:

1. The slides are shuffled by (seed, epoch) and dealt, in that order, each into the first open batch with room for it.
   A slide above the budget is a batch of its own.
2. The number of batches is the same in every epoch (Lightning asks once): that of the worst of a few fixed orders,
   rounded up to a multiple of the processes. An order that needs more is drawn again, one that needs fewer has batches
   split. Should there be fewer slides than that, some are repeated.
3. Batches are sorted by tokens and neighbours become one step, a batch for each process: DDP waits for the slowest, so
   the processes of a step should have as much to do. The steps, and the processes within one, are shuffled.

Batch k of epoch e depends on (seed, epoch, token counts, budget, processes) alone, and a run can go on at any step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch.utils.data import Sampler

from span_sparse.datasets.slide_dataset import EpochIndex
from span_sparse.errors import ConfigError

NUM_REFERENCE_ORDERS: Final = 8
NUM_TRIES: Final = 64
NUM_OPEN_BATCHES: Final = 64
"""Batches that are tried for a slide; the fullest are closed first, so that dealing n slides takes no n² steps."""

EVALUATION_TOKENS_ON_GPU: Final = 200_000
"""Patches of a batch that is only looked at, on a GPU, unless somebody says otherwise: enough to keep it busy."""

TRAINING_TOKENS_ON_GPU: Final = 100_000
"""Patches of a training step on a GPU where neither `batch_size` nor `max_tokens` is given."""

Batch = list[int]
"""Positions of slides in the data set."""


class TokenBudgetSampler(Sampler[list[EpochIndex]]):
    """Batches of one process, for `DataLoader(batch_sampler=...)`; Lightning calls `set_epoch` through `sampler`.

    Args:
        num_tokens: patches of every slide, as trained on (after subsampling).
        max_tokens: most tokens of a batch.
        seed: of the orders.
        rank: this process.
        world_size: number of processes.

    Raises:
        ConfigError: the budget is below 1.
    """

    def __init__(
        self, num_tokens: Sequence[int], *, max_tokens: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if max_tokens < 1:
            raise ConfigError(f"max_tokens is {max_tokens}, expected at least 1")
        self.num_tokens, self.max_tokens = tuple(num_tokens), max_tokens
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = 0
        needed = max(len(self._packed(_order(len(num_tokens), 0, draw))) for draw in range(NUM_REFERENCE_ORDERS))
        self.num_steps = -(-needed // world_size)

    @property
    def sampler(self) -> TokenBudgetSampler:
        """Itself: Lightning tells the epoch to `batch_sampler.sampler`, never to a batch sampler."""
        return self

    @property
    def too_large(self) -> list[int]:
        """Slides above the budget, which travel alone."""
        return [slide for slide, tokens in enumerate(self.num_tokens) if tokens > self.max_tokens]

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's batches."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[list[EpochIndex]]:
        return iter([[EpochIndex(slide, self.epoch) for slide in step[self.rank]] for step in self.steps(self.epoch)])

    def steps(self, epoch: int) -> list[list[Batch]]:
        """Every step of an epoch: the batch of each process."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        batches = self._dealt(epoch)
        batches.sort(key=self._size)
        size = self.world_size
        steps = [batches[first : first + size] for first in range(0, len(batches), size)]
        return [
            [steps[step][rank] for rank in torch.randperm(size, generator=generator).tolist()]
            for step in torch.randperm(len(steps), generator=generator).tolist()
        ]

    def _dealt(self, epoch: int) -> list[Batch]:
        wanted = self.num_steps * self.world_size
        for draw in range(NUM_TRIES):
            batches = self._packed(_order(len(self.num_tokens), self.seed * 1_000_003 + epoch, draw))
            if len(batches) <= wanted:
                break
        else:
            batches = self._packed(_order(len(self.num_tokens), 0, 0))  # a reference order fits
        while len(batches) < wanted:
            longest = max(batches, key=len)
            if len(longest) == 1:
                batches += [list(batch) for batch in batches[: wanted - len(batches)]]
            else:
                batches.remove(longest)
                batches += [longest[::2], longest[1::2]]
        return batches

    def _packed(self, order: Sequence[int]) -> list[Batch]:
        """Each slide into the first open batch that has room."""
        batches: list[Batch] = []
        open_batches: list[tuple[Batch, int]] = []
        for slide in order:
            tokens = self.num_tokens[slide]
            for position, (batch, room) in enumerate(open_batches):
                if tokens <= room:
                    batch.append(slide)
                    open_batches[position] = batch, room - tokens
                    break
            else:
                batches.append([slide])
                open_batches.append((batches[-1], self.max_tokens - tokens))
                if len(open_batches) > NUM_OPEN_BATCHES:
                    open_batches.remove(min(open_batches, key=lambda entry: entry[1]))
        return batches

    def _size(self, batch: Batch) -> int:
        return sum(self.num_tokens[slide] for slide in batch)


class OrderedBatches(Sampler[Batch]):
    """Slides in their order, as many a batch as fit into a budget of tokens; a slide above it is a batch of its own.

    Args:
        num_tokens: patches of every slide, by position.
        max_tokens: most tokens of a batch.
        slides: positions in the data set, in order; by default all.

    Raises:
        ConfigError: the budget is below 1.
    """

    def __init__(self, num_tokens: Sequence[int], *, max_tokens: int, slides: Sequence[int] | None = None) -> None:
        if max_tokens < 1:
            raise ConfigError(f"max_tokens is {max_tokens}, expected at least 1")
        self.batches: list[Batch] = []
        room = 0
        for slide in range(len(num_tokens)) if slides is None else slides:
            if not self.batches or num_tokens[slide] > room:
                self.batches.append([])
                room = max_tokens
            self.batches[-1].append(slide)
            room -= num_tokens[slide]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def _order(num_slides: int, seed: int, draw: int) -> list[int]:
    generator = torch.Generator().manual_seed(hash((seed, draw)) % 2**63)
    return torch.randperm(num_slides, generator=generator).tolist()
