"""Loaders whose workers outlive a signal, that place batches on a device, and that go on in the middle of an epoch.

The order of an epoch depends on (seed, epoch) alone, so the number of batches that were taken says where to go on. The
loader counts them and keeps the count in the checkpoint (Lightning asks for `state_dict`); the next start skips that
many batches without reading a slide. With a plain DataLoader the epoch would begin anew: some slides seen twice, others
never.

With a `Placement` the batches come on the device, made ready ahead (`prefetch`). The workers then read slides instead
of batches: a batch for a GPU holds dozens, and the worker that has the last one would be waited for. Slides are joined
by the thread that looks ahead, straight into the page-locked memory that the device copies from.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Iterable, Iterator
from itertools import islice
from multiprocessing import active_children
from typing import Any, Final

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from span_sparse.datasets.batch import SlideBatch, SlideSample, collate
from span_sparse.datasets.prefetch import BatchesAhead, Placement, placed
from span_sparse.errors import CheckpointError
from span_sparse.signals import blocked

SLIDES_AHEAD: Final = 4
"""Slides that each worker may have read before they are wanted: enough to go on while a batch is joined."""


class SlideLoader(DataLoader[SlideSample]):
    """A loader whose workers never see the signals sent to a whole job: the training ends them when it is ready to.

    Args:
        dataset: slides.
        num_workers: processes that read ahead.
        placement: the batches come on this device; None: on the CPU, features in float32.
        batches: what says which slides come together: `batch_sampler`, or `batch_size` and `sampler`.
    """

    def __init__(
        self, dataset: Dataset[SlideSample], num_workers: int, *, placement: Placement | None = None, **batches: Any
    ) -> None:
        super().__init__(dataset, collate_fn=collate, **_worker_settings(num_workers), **batches)
        self.placement = placement
        self._slides = None if placement is None else _SlideBySlide(dataset, num_workers)
        self._last: weakref.ref[Any] | None = None

    def __iter__(self) -> Iterator[SlideBatch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self._slides is None or self.placement is None:
            return _started(super().__iter__)
        last = None if self._last is None else self._last()
        if isinstance(last, BatchesAhead):
            last.close()  # two threads must not read from the same workers
        batches: list[list[Any]] = list(self.batch_sampler or ())
        slides = self._slides.started([slide for batch in batches for slide in batch])
        joined = _joined(slides, [len(batch) for batch in batches], pinned=self.placement.pinned)
        iterator = placed(joined, self.placement)
        self._last = weakref.ref(iterator)
        return iterator


class _SlideBySlide(DataLoader[SlideSample]):
    """Single slides in the order that is asked for."""

    def __init__(self, dataset: Dataset[SlideSample], num_workers: int) -> None:
        self._wanted = _Wanted()
        settings: dict[str, Any] = {"batch_size": None, "collate_fn": _as_it_is, **_worker_settings(num_workers)}
        if num_workers:
            settings["prefetch_factor"] = SLIDES_AHEAD
        super().__init__(dataset, sampler=self._wanted, **settings)

    def started(self, wanted: list[Any]) -> Iterator[SlideSample]:
        """The slides, each being read from now on."""
        self._wanted.slides = wanted
        return _started(super().__iter__)


class _Wanted(Sampler[Any]):
    """Slides that are written down before each iteration."""

    def __init__(self) -> None:
        self.slides: list[Any] = []

    def __len__(self) -> int:
        return len(self.slides)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.slides)


def _worker_settings(num_workers: int) -> dict[str, Any]:
    return {
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        # starting workers draws a number; from the global generator, dropout would be another one after a restart
        "generator": torch.Generator(),
    }


def _started(start: Any) -> Iterator[Any]:
    """An iteration with workers that sleep through signals and end with this process."""
    others = set(active_children())
    with blocked():
        iterator = start()
    for worker in set(active_children()) - others:
        atexit.register(worker.kill)  # Python's way to end what is left is SIGTERM, and to wait for ever
    return iterator


def _as_it_is(sample: SlideSample) -> SlideSample:
    return sample


def _joined(slides: Iterable[SlideSample], sizes: list[int], *, pinned: bool) -> Iterator[SlideBatch]:
    """Batches of so many slides each, features as the store has them."""
    slides = iter(slides)
    for size in sizes:
        batch = collate(list(islice(slides, size)), as_stored=True, pinned=pinned)
        yield batch.pin_memory() if pinned else batch  # what is pinned already is not copied again


class _RestOfEpoch(Sampler[list[Any]]):
    """The batches of an epoch from `start` on; as long as the whole epoch, which is what Lightning counts."""

    def __init__(self, batches: Any) -> None:
        self.batches, self.sampler, self.start = batches, batches.sampler, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Any]]:
        return islice(self.batches, self.start, None)


class TrainingLoader(SlideLoader):
    """A loader that can start in the middle of an epoch.

    Args:
        dataset: slides.
        num_workers: processes that read ahead.
        batches: of an epoch; Lightning tells the epoch to their `sampler`.
        order: everything the order depends on but the epoch, as plain values; a checkpoint of another order is refused.
        placement: the batches come on this device; None: on the CPU.
    """

    def __init__(
        self,
        dataset: Dataset[SlideSample],
        num_workers: int,
        *,
        batches: Any,
        order: dict[str, Any],
        placement: Placement | None = None,
    ) -> None:
        self._rest = _RestOfEpoch(batches)
        super().__init__(dataset, num_workers, placement=placement, batch_sampler=self._rest)
        self.order = order
        self._num_taken = 0

    def __iter__(self) -> Iterator[SlideBatch]:
        self._num_taken = self._rest.start
        iterator = super().__iter__()  # now, not with the first batch; asks for the batches once or twice
        self._rest.start = 0
        return self._counted(iterator)

    def _counted(self, iterator: Iterator[SlideBatch]) -> Iterator[SlideBatch]:
        for batch in iterator:
            self._num_taken += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where this epoch's iteration stands; the same in every process."""
        return {"batches_taken": self._num_taken, "batches": len(self), "order": self.order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration goes on where the state was taken.

        Raises:
            CheckpointError: in the middle of an epoch of another order.
        """
        taken = int(state["batches_taken"])
        if taken == state["batches"]:
            taken = len(self)
        elif state["order"] != self.order:
            names = [name for name in self.order if state["order"].get(name) != self.order[name]]
            differences = "; ".join(f"{name}: {self.order[name]} != {state['order'].get(name)}" for name in names)
            raise CheckpointError(
                f"the checkpoint was written after batch {taken} of {state['batches']} of an epoch whose order was "
                f"another (now != checkpoint): {differences}. Go on with the same settings, or start a new run"
            )
        self._rest.start = self._num_taken = taken
