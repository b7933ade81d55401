"""How do several processes share work when any of them may crash?

Each worker has a pipe of its own and answers its requests in order, so the parent knows what a dead worker was on. In
`ProcessPoolExecutor` one crash breaks the pool and everything in flight.

A request carries little, an answer little; pixels go through memory that both processes map. Each worker has a few
slots of it, so that it fills one while the parent still reads the other. The memory belongs to no file system
(`memfd`): a container's small `/dev/shm` does not limit it, and it goes with the last process that has it, also after
SIGKILL.

Workers are spawned, not forked: a fork in the middle of OpenSlide's caches, of a progress bar's thread or of OpenMP
copies locks that nobody will ever release. They are born with SIGINT and SIGTERM blocked, which a terminal and a
cluster send to whole groups: the parent ends them. One whose parent has died ends at its next step. A worker writes no
file, so that killing it leaves nothing behind.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from typing import Any, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from span_sparse.signals import blocked

Request = TypeVar("Request")
Work = Callable[[Any, NDArray[np.uint8]], Any]
"""`work(request, slots)` → answer; must not raise. `slots` is uint8 `[slots, *slot_shape]`, shared with the parent."""

NUM_SLOTS: Final = 2
"""One is filled while the other is read."""

READY: Final = "ready"
"""The first message of a worker, before any answer."""

THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class WorkerDeath:
    """A worker ended without an answer.

    Attributes:
        reason: the signal's name or the exit code.
    """

    reason: str


@dataclass(slots=True, eq=False)
class Lane(Generic[Request]):
    """One worker as the parent sees it.

    Attributes:
        slots: memory shared with it.
        free_slots: the slots that nobody uses; kept by the caller.
        outstanding: what it was asked and has not answered, oldest first.
        process: None when the work is done in this process.
        connection: None as well.
        ready_s: `time.perf_counter()` when it was known to have loaded its libraries; None before.
    """

    slots: NDArray[np.uint8]
    free_slots: list[int] = field(default_factory=lambda: list(range(NUM_SLOTS)))
    outstanding: deque[Request] = field(default_factory=deque)
    process: BaseProcess | None = None
    connection: Connection | None = None
    ready_s: float | None = None


class WorkerPool(Generic[Request]):
    """Workers and their lanes.

    Args:
        work: picklable unless the work is done here.
        num_workers: processes; 0 does the work in this process, where a crash is everybody's.
        slot_shape: shape of a slot.

    Attributes:
        lanes: of the living workers; a dead one is replaced.
    """

    def __init__(self, work: Work, num_workers: int, slot_shape: tuple[int, ...]) -> None:
        self._work, self._num_workers, self._shape = work, num_workers, (NUM_SLOTS, *slot_shape)
        self.lanes: list[Lane[Request]] = []

    def start(self) -> None:
        """Start the workers; `close` must follow."""
        for _ in range(self._num_workers):
            self.lanes.append(self._start())
        if not self._num_workers:
            self.lanes.append(Lane(np.empty(self._shape, np.uint8)))

    def give(self, lane: Lane[Request], request: Request) -> None:
        """Ask a worker; it answers what it was asked before first."""
        lane.outstanding.append(request)
        if lane.connection is not None:
            with suppress(OSError):  # the worker is dead already; `receive` will find out and say so
                lane.connection.send(request)

    def receive(self, timeout_s: float) -> Iterator[tuple[Lane[Request], Request, Any]]:
        """Answers that are there, at least one unless the time runs out; a dead worker's is a `WorkerDeath`.

        The request of a death is the one it was on. Its others stay in `lane.outstanding`, for the caller to give to
        somebody else; the lane is no longer one of `lanes`.
        """
        busy = {lane.connection: lane for lane in self.lanes if lane.outstanding}
        if None in busy:
            lane = busy[None]
            yield lane, lane.outstanding[0], self._work(lane.outstanding.popleft(), lane.slots)
            return
        for connection in wait([connection for connection in busy if connection is not None], timeout_s):
            lane = busy[connection]  # pyright: ignore[reportArgumentType]  # `wait` gives back what it got
            answer = _receive(lane)
            if answer == READY:
                lane.ready_s = time.perf_counter()
                continue
            if isinstance(answer, WorkerDeath):
                self.lanes[self.lanes.index(lane)] = self._start()
            yield lane, lane.outstanding.popleft(), answer

    def close(self) -> None:
        """End the workers at once, whatever they are doing."""
        for lane in self.lanes:
            if lane.process is not None and lane.connection is not None:
                lane.process.kill()
                lane.connection.close()
        for lane in self.lanes:
            if lane.process is not None:
                lane.process.join()

    def _start(self) -> Lane[Request]:
        context = multiprocessing.get_context("spawn")
        size = int(np.prod(self._shape))
        descriptor = _shared_memory(size)
        try:
            slots = np.frombuffer(mmap.mmap(descriptor, size), np.uint8).reshape(self._shape)
            ours, theirs = context.Pipe()
            arguments = (_Descriptor(descriptor), self._shape, theirs, self._work)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            with _one_thread_each(), blocked():
                process.start()
            theirs.close()
        finally:
            os.close(descriptor)
        return Lane(slots, process=process, connection=ours)


class _Descriptor:
    """A file descriptor that is duplicated into a process when it starts."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _detached, (DupFd(self.number),)


def _detached(duplicate: Any) -> int:
    return duplicate.detach()


def _shared_memory(size: int) -> int:
    """A descriptor of `size` bytes that any process can map and no folder lists."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("patches")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def _receive(lane: Lane[Any]) -> Any:
    assert lane.connection is not None
    assert lane.process is not None
    try:
        return lane.connection.recv()
    except (EOFError, OSError):
        lane.connection.close()
        lane.process.join()
        code = lane.process.exitcode or 0
        return WorkerDeath(signal.Signals(-code).name if code < 0 else f"exit code {code}")


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Numerical libraries read these once, when a worker loads them; N workers times N threads only queue up."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(descriptor: int, shape: tuple[int, ...], connection: Connection, work: Work) -> None:
    """A worker's life: take a request, work, answer, until the parent closes the pipe."""
    slots = np.frombuffer(mmap.mmap(descriptor, int(np.prod(shape))), np.uint8).reshape(shape)
    os.close(descriptor)
    with suppress(EOFError, OSError):  # the parent is gone or done
        connection.send(READY)
        while True:
            connection.send(work(connection.recv(), slots))
