"""How do several processes share slides when any of them may crash?

Each worker has a pipe of its own and one slide at a time, so the parent knows which slide a dead worker was on: that
slide is reported as lost, a new worker takes the place, the others never notice. In `ProcessPoolExecutor` one crash
breaks the pool and every slide in flight.

Workers are spawned, not forked: a fork in the middle of OpenSlide's caches, of a progress bar's thread or of OpenMP
copies locks that nobody will ever release. A worker whose parent has died ends before it writes another slide.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final, Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
Report = Callable[[int], None]
"""Called by the work with the number of patches just finished; also with 0, as a sign of life before it writes."""

THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class WorkerDeath:
    """A worker ended without an answer.

    Attributes:
        reason: the signal's name or the exit code.
    """

    reason: str


def run_tasks(
    work: Callable[[Task, Report], Result], tasks: Sequence[Task], num_workers: int, on_progress: Report
) -> Iterator[tuple[Task, Result | WorkerDeath]]:
    """Work on every task, and yield each with its result as soon as it is there.

    Args:
        work: picklable; must not raise.
        tasks: picklable.
        num_workers: processes; 0 and 1 mean this process, where a crash is everybody's.
        on_progress: receives what the work reports, in this process.
    """
    if num_workers <= 1:
        for task in tasks:
            yield task, work(task, on_progress)
        return
    waiting = list(reversed(tasks))
    lanes: list[_Lane[Task]] = []
    try:
        while waiting and len(lanes) < num_workers:
            lanes.append(_Lane.start(work, waiting.pop()))
        while lanes:
            for lane in _ready(lanes):
                answer = lane.receive()
                if isinstance(answer, int):
                    on_progress(answer)
                    continue
                lanes.remove(lane)
                yield lane.task, answer
                if not waiting:
                    lane.stop()
                elif isinstance(answer, WorkerDeath):
                    lanes.append(_Lane.start(work, waiting.pop()))
                else:
                    lanes.append(lane.give(waiting.pop()))
    finally:
        for lane in lanes:
            lane.process.terminate()
            lane.stop()


@dataclass(frozen=True, slots=True)
class _Lane(Generic[Task]):
    """One worker process, its pipe, and the task it has."""

    process: BaseProcess
    connection: Connection
    task: Task

    @classmethod
    def start(cls, work: Callable[[Task, Report], Any], task: Task) -> _Lane[Task]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, work), daemon=True)
        with _one_thread_each():
            process.start()
        theirs.close()
        return cls(process, ours, task).give(task)

    def give(self, task: Task) -> _Lane[Task]:
        with suppress(OSError):  # the worker is dead already; `receive` will find out and say so
            self.connection.send(task)
        return _Lane(self.process, self.connection, task)

    def receive(self) -> Any:
        """Progress (an int), a result, or the news of the worker's death."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode or 0
            reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return WorkerDeath(reason)

    def stop(self) -> None:
        self.connection.close()
        self.process.join()


def _ready(lanes: list[_Lane[Task]]) -> list[_Lane[Task]]:
    readable = wait([lane.connection for lane in lanes])
    return [lane for lane in lanes if lane.connection in readable]


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


def _serve(connection: Connection, work: Callable[[Any, Report], Any]) -> None:
    """A worker's life: take a task, work, answer, until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers

    def report(num_patches: int) -> None:
        try:
            connection.send(num_patches)
        except OSError:
            os._exit(1)  # the parent is gone: leave this slide unwritten, a resumed run has it

    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            return
        answer = work(task, report)
        try:
            connection.send(answer)
        except OSError:
            return
