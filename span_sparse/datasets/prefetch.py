"""Batches on the device, with their geometry, while the batch before is computed.

A thread of its own, with a CUDA stream of its own, takes the next batch out of the loader, copies it from page-locked
memory without blocking, converts the features there and lets the network build its geometry. The consumer's stream
waits for an event, the consumer itself for nothing.

1. No more than `depth` batches are taken out of the loader before they are given: who counts what was given (a training
   that is interrupted) is right.
2. A batch is taken to the device when all batches but the last one given are computed, so that a consumer that never
   waits for its device does not fill it with batches.
3. Every tensor is recorded on the consumer's stream: its memory was allocated on the other one, which would use it
   again while it is still read.
4. What fails in the thread is raised in the consumer, where the batch was asked for. When the consumer stops early, the
   thread ends with it.

On the CPU there is nothing to overtake: a loader gives its batches as they are.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from span_sparse.datasets.batch import SlideBatch
from span_sparse.signals import blocked
from span_sparse.sparse import ValidCoords

_END_S: Final = 10.0
"""Longest wait for a thread that shall end; it looks up after each batch that it reads."""


@runtime_checkable
class Lane(Protocol):
    """A stream of work beside the consumer's, and what ties the two together; `CudaLane`, or a test's."""

    def enter(self) -> None:
        """Makes the calling thread one that works for the device."""
        ...

    def working(self) -> AbstractContextManager[Any]:
        """Within it, what is asked of the device is asked on this lane."""
        ...

    def mark(self) -> Any:
        """An event after everything that was asked so far on the calling thread's current stream."""
        ...

    def wait(self, event: Any) -> None:
        """The calling thread waits for an event."""
        ...

    def hand_over(self, event: Any, tensors: Iterable[Tensor]) -> None:
        """The current stream waits for an event; the tensors live until what is asked on it from now on is done."""
        ...


class CudaLane:
    """A side stream of a CUDA device; of higher priority, since what it does is little and the next batch needs it."""

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        self.stream = torch.cuda.Stream(self.device, priority=-1)

    def enter(self) -> None:
        """Every thread has a current device of its own, 0 at first; spconv launches on it."""
        torch.cuda.set_device(self.device)

    def working(self) -> AbstractContextManager[Any]:
        """Within it, the side stream is the current one."""
        return torch.cuda.stream(self.stream)

    def mark(self) -> torch.cuda.Event:
        """An event on the current stream; who waits for it sleeps instead of spinning."""
        event = torch.cuda.Event(blocking=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self, event: torch.cuda.Event) -> None:
        """The calling thread waits for an event; others go on."""
        event.synchronize()

    def hand_over(self, event: torch.cuda.Event, tensors: Iterable[Tensor]) -> None:
        """The current stream waits for an event and owns the tensors too."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(event)
        for tensor in tensors:
            tensor.record_stream(current)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where batches are wanted, and what is made of them on the way.

    Attributes:
        device: the consumer's device.
        prepare: makes a network's geometry of a batch's coordinates, on the device, and the number of slides; None: the
            network needs none.
        depth: batches that are ready, or being made so, beside the one that is computed.
        background: in a thread. Without, the consumer's own thread does it all when it asks for a batch: overlapping
            for a consumer that has not waited for its device meanwhile.
        lane: makes the side stream.
    """

    device: torch.device
    prepare: Callable[[ValidCoords, int], Any] | None = None
    depth: int = 1
    background: bool = True
    lane: Callable[[torch.device], Lane] = CudaLane

    @property
    def pinned(self) -> bool:
        """Whether batches should be collated into page-locked memory."""
        return self.device.type == "cuda"


def placement_for(device: torch.device | str, network: Any = None) -> Placement | None:
    """How batches are placed; None on the CPU, where they need no placing.

    Args:
        device: of the network.
        network: its `prepare`, if it has one, makes the geometry; None: nobody needs one.
    """
    device = torch.device(device)
    return Placement(device, getattr(network, "prepare", None)) if device.type == "cuda" else None


def placed(batches: Iterable[SlideBatch], placement: Placement | None) -> Iterator[SlideBatch]:
    """The batches on the device with their geometry, in their order; as they are without a placement.

    Args:
        batches: on the CPU; a copy does not block if they are in page-locked memory. Iterated in another thread.
        placement: where to.
    """
    if placement is None:
        return iter(batches)
    return BatchesAhead(iter(batches), placement) if placement.background else _in_line(iter(batches), placement)


def geometry_tensors(geometry: Any) -> Iterator[Tensor]:
    """All tensors of a geometry, or of several."""
    if isinstance(geometry, tuple):
        for one in geometry:
            yield from geometry_tensors(one)
    elif geometry is not None:
        yield from geometry.tensors()


class _Staged(NamedTuple):
    batch: SlideBatch
    event: Any


class _End(NamedTuple):
    error: BaseException | None


class _Shared:
    """What consumer and thread tell each other.

    Attributes:
        free: for every batch that may be taken, an event to wait for before it goes to the device, or None.
        ready: batches on the device, then the end.
        stopped: nobody wants more.
    """

    def __init__(self, depth: int) -> None:
        self.free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.ready: queue.SimpleQueue[_Staged | _End] = queue.SimpleQueue()
        self.stopped = threading.Event()
        for _ in range(depth):
            self.free.put(None)


class BatchesAhead(Iterator[SlideBatch]):
    """Batches that a thread takes to the device; see the module.

    Args:
        batches: on the CPU.
        placement: where to.
    """

    def __init__(self, batches: Iterator[SlideBatch], placement: Placement) -> None:
        self._lane, self._shared = placement.lane(placement.device), _Shared(placement.depth)
        self._has_ended = False
        arguments = (self._shared, batches, placement, self._lane)  # not self: who forgets it ends the thread
        thread = threading.Thread(target=_work, args=arguments, name="batches-ahead", daemon=True)
        with blocked():  # a stop signal that arrives in this thread would wake nobody who waits in the main one
            thread.start()
        self._end = weakref.finalize(self, _stop, self._shared, thread)

    def __next__(self) -> SlideBatch:
        if self._has_ended:
            raise StopIteration
        done = self._lane.mark()
        staged = self._shared.ready.get()
        if isinstance(staged, _End):
            self.close()
            if staged.error is not None:
                raise staged.error
            raise StopIteration
        self._shared.free.put(done)
        self._lane.hand_over(staged.event, _tensors(staged.batch))
        return staged.batch

    def close(self) -> None:
        """Ends the thread; there are no more batches."""
        self._has_ended = True
        self._end()


def _work(shared: _Shared, batches: Iterator[SlideBatch], placement: Placement, lane: Lane) -> None:
    error = None
    try:
        lane.enter()
        while True:
            before = shared.free.get()
            if shared.stopped.is_set() or (batch := next(batches, None)) is None:
                break
            if before is not None:
                lane.wait(before)
            shared.ready.put(_stage(batch, placement, lane))
            del batch
    except BaseException as caught:
        error = caught
    shared.ready.put(_End(error))


def _stop(shared: _Shared, thread: threading.Thread) -> None:
    shared.stopped.set()
    shared.free.put(None)
    if thread is not threading.current_thread():  # garbage is collected anywhere
        thread.join(_END_S)


def _in_line(batches: Iterator[SlideBatch], placement: Placement) -> Iterator[SlideBatch]:
    lane = placement.lane(placement.device)
    before = None
    for batch in batches:
        now = lane.mark()
        if before is not None:
            lane.wait(before)
        before = now
        staged = _stage(batch, placement, lane)
        lane.hand_over(staged.event, _tensors(staged.batch))
        yield staged.batch


def _stage(batch: SlideBatch, placement: Placement, lane: Lane) -> _Staged:
    with torch.no_grad(), lane.working():
        moved = batch.to(placement.device, non_blocking=True)
        valid = moved.valid
        if placement.prepare is not None and valid is not None:
            moved = replace(moved, geometry=placement.prepare(valid, valid.num_slides))
        return _Staged(moved, lane.mark())


def _tensors(batch: SlideBatch) -> Iterator[Tensor]:
    yield from batch.tensors().values()
    yield from geometry_tensors(batch.geometry)
