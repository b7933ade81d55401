"""Who reads, who encodes, who writes, so that none waits for another?

Workers read; an encoder on the CPU runs in each of them, one on a GPU runs here, in the one process that owns the
device, on batches that workers left in shared memory. Features come together here, and a thread writes whole slides.

1. A worker goes on with the slide it planned while that has cells; then it takes the next slide; when none is left it
   helps with the slide that has most to read. So a slide is opened by few processes, a cohort of one slide has all
   workers, and nobody is idle at the end of a run.
2. Each worker has two requests at most, one slot of pixels for each: while a batch is encoded the next is read.
3. Memory is bounded by workers × (two batches of pixels + the features of two slides), whatever the size of a slide.

A worker that dies costs the slide it was on; what else it was asked goes to others.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import SpanError, StoreError
from span_sparse.extract.encoder import PatchEncoder
from span_sparse.extract.process_list import DONE, FAILED, SlideStatus
from span_sparse.extract.settings import ExtractionSettings, SlideTask
from span_sparse.extract.slide_work import Batch, Plan, PlanRequest, ReadRequest, encode
from span_sparse.extract.workers import NUM_SLOTS, Lane, WorkerDeath, WorkerPool
from span_sparse.store import SlideRecord

Request = PlanRequest | ReadRequest
Write = Callable[[str, dict[str, bytes], SlideRecord | None], None]
"""`write(slide_id, pictures, record)`, once per slide, in a thread; no record when it failed or is there already."""

WRITE_POLL_S: Final = 0.02
"""How often finished writes are looked for while nothing else happens."""

CHECK_S: Final = 0.2
"""How often at least it is asked whether the run is to end."""

DISK_ERRORS: Final = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
)
"""Errors on writing that the next slide would meet as well."""


@dataclass(slots=True, eq=False)
class _Slide:
    """A slide that is being read.

    Attributes:
        task: the slide.
        pictures: see `Plan`.
        record: all of it but features and failed cells.
        features: of all its cells; rows of failed cells are meaningless.
        good: cells that have features.
        waiting: first cells of the batches that nobody has been asked for yet.
        num_missing: cells that have not come back.
        num_failed: cells that could not be read.
        error: why the first of them could not.
    """

    task: SlideTask
    pictures: dict[str, bytes]
    record: SlideRecord
    features: NDArray[np.floating[Any]]
    good: NDArray[np.bool_]
    waiting: deque[int]
    num_missing: int
    num_failed: int = 0
    error: str = ""


class Engine:
    """Works on slides; see the module.

    Args:
        pool: the workers; closed by the caller.
        tasks: the slides.
        encoder: what encodes here; None when the workers do.
        settings: see there.
        write: keeps a finished slide.
        check: raises when the run is to end.

    Attributes:
        on_patches: told how many patches were finished.
    """

    def __init__(
        self,
        pool: WorkerPool[Request],
        tasks: list[SlideTask],
        encoder: PatchEncoder | None,
        settings: ExtractionSettings,
        write: Write,
        check: Callable[[], None],
    ) -> None:
        self.on_patches: Callable[[int], None] = lambda count: None
        self._pool, self._tasks, self._encoder, self._write, self._check = pool, deque(tasks), encoder, write, check
        self._batch_size, self._failure_limit = settings.batch_size, settings.failure_limit
        self._slides: dict[str, _Slide] = {}
        self._starts_s: dict[str, float] = {}
        self._own: dict[Lane[Request], str] = {}
        self._ready: deque[tuple[Lane[Request], ReadRequest, Batch]] = deque()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._writes: dict[Future[None], SlideStatus] = {}

    def run(self) -> Iterator[SlideStatus]:
        """Outcomes, each as soon as it is there, until all slides have one; `stop` must follow, also after an error.

        Raises:
            StoreError: the disk is full, or the store cannot be written for another reason that stays.
        """
        while self._tasks or self._slides or self._writes or any(lane.outstanding for lane in self._pool.lanes):
            self._check()
            self._top_up()
            for lane, request, answer in self._pool.receive(self._timeout_s()):
                self._handle(lane, request, answer)
            if self._ready:
                self._encode(*self._ready.popleft())
            yield from self._written()

    def stop(self) -> list[SlideStatus]:
        """Finish the slide that is being written and forget the others; outcomes that `run` had not told yet."""
        self._writer.shutdown(cancel_futures=True)
        return [self._outcome(write) for write in list(self._writes) if not write.cancelled()]

    def activities(self) -> list[str]:
        """What each worker does, in a few words."""
        return [self._activity(lane.outstanding[0] if lane.outstanding else None) for lane in list(self._pool.lanes)]

    def _activity(self, request: Request | None) -> str:
        if request is None:
            return "waits"
        slide = self._slides.get(request.task.slide_id)
        if isinstance(request, PlanRequest) or slide is None:
            return f"{request.task.slide_id}: finds tissue"
        return f"{request.task.slide_id}: patch {request.start} of {len(slide.good)}"

    def _timeout_s(self) -> float:
        if self._ready:
            return 0.0
        return WRITE_POLL_S if self._writes else CHECK_S

    def _top_up(self) -> None:
        for lane in self._pool.lanes:
            while (request := self._next(lane)) is not None:
                self._pool.give(lane, request)

    def _next(self, lane: Lane[Request]) -> Request | None:
        """What a worker is to do next; nothing as long as it has enough, or a plan that will tell."""
        if len(lane.outstanding) >= NUM_SLOTS or any(isinstance(known, PlanRequest) for known in lane.outstanding):
            return None
        own = self._slides.get(self._own.get(lane, ""))
        if own is not None and own.waiting:
            return self._read_request(lane, own)
        plans = sum(isinstance(known, PlanRequest) for other in self._pool.lanes for known in other.outstanding)
        if self._tasks and len(self._slides) + len(self._writes) + plans < 2 * len(self._pool.lanes):
            task = self._tasks.popleft()
            self._own[lane] = task.slide_id
            self._starts_s.setdefault(task.slide_id, time.perf_counter())
            return PlanRequest(task)
        longest = max(self._slides.values(), key=lambda slide: len(slide.waiting), default=None)
        return None if longest is None or not longest.waiting else self._read_request(lane, longest)

    def _read_request(self, lane: Lane[Request], slide: _Slide) -> ReadRequest | None:
        if not lane.free_slots:
            return None
        start = slide.waiting.popleft()
        cells = slide.record.grid[start : start + self._batch_size]
        return ReadRequest(slide.task, slide.record.lattice, cells, start, lane.free_slots.pop())

    def _handle(self, lane: Lane[Request], request: Request, answer: Plan | Batch | WorkerDeath) -> None:
        if isinstance(answer, WorkerDeath):
            self._bury(lane, request, answer)
        elif isinstance(answer, Plan):
            self._handle_plan(request.task, answer)
        elif isinstance(request, ReadRequest):
            if answer.good is not None and answer.features is None and request.task.slide_id in self._slides:
                self._ready.append((lane, request, answer))
                return
            lane.free_slots.append(request.slot)
            self._collect(request, answer)

    def _handle_plan(self, task: SlideTask, plan: Plan) -> None:
        if isinstance(plan.outcome, SlideStatus):
            self._submit(plan.outcome, plan.pictures, None)
            return
        record = plan.outcome
        shape = len(record.grid), record.encoder.dimension
        self._slides[task.slide_id] = _Slide(
            task=task,
            pictures=plan.pictures,
            record=record,
            features=np.empty(shape, record.encoder.precision),
            good=np.zeros(len(record.grid), np.bool_),
            waiting=deque(range(0, len(record.grid), self._batch_size)),
            num_missing=len(record.grid),
        )

    def _encode(self, lane: Lane[Request], request: ReadRequest, batch: Batch) -> None:
        """Turn the pixels in a slot into features, here."""
        assert self._encoder is not None
        assert batch.good is not None
        try:
            features = encode(self._encoder, lane.slots[request.slot][: int(batch.good.sum())])
        except Exception as error:  # whatever an encoder raises
            batch = Batch(None, error=f"{request.task.path}: {type(error).__name__}: {error}")
        else:
            batch = replace(batch, features=features)
        lane.free_slots.append(request.slot)
        self._collect(request, batch)

    def _collect(self, request: ReadRequest, batch: Batch) -> None:
        """Put a batch where it belongs; that may end the slide, well or not."""
        slide = self._slides.get(request.task.slide_id)
        if slide is None:  # it has failed meanwhile
            return
        if batch.good is None:
            self._fail(slide, batch.error)
            return
        rows = request.start + np.flatnonzero(batch.good)
        slide.features[rows] = batch.features
        slide.good[rows] = True
        slide.num_missing -= len(batch.good)
        slide.num_failed += len(batch.good) - len(rows)
        slide.error = slide.error or batch.error
        self.on_patches(len(rows))
        if not self._failure_limit.allows(slide.num_failed, len(slide.good)):
            self._fail(slide, self._too_many(slide))
        elif not slide.num_missing:
            self._finish(slide)

    def _too_many(self, slide: _Slide) -> str:
        return (
            f"{slide.num_failed} of {len(slide.good)} patches or more cannot be read, --max-failed-patches is "
            f"{self._failure_limit}; the first: {slide.error}"
        )

    def _finish(self, slide: _Slide) -> None:
        record, good = slide.record, slide.good
        if slide.num_failed:
            record = replace(
                record,
                features=slide.features[good],
                grid=record.grid[good],
                coords=record.coords[good],
                failed_grid=record.grid[~good],
                provenance=record.provenance | {"num_failed_patches": slide.num_failed},
            )
        else:
            record = replace(record, features=slide.features)
        status = SlideStatus(record.slide_id, DONE, num_patches=len(record.grid), failed_patches=slide.num_failed)
        del self._slides[record.slide_id]
        self._submit(status, slide.pictures, record)

    def _fail(self, slide: _Slide, reason: str) -> None:
        del self._slides[slide.task.slide_id]
        status = SlideStatus(slide.task.slide_id, FAILED, reason, failed_patches=slide.num_failed)
        self._submit(status, slide.pictures, None)

    def _bury(self, lane: Lane[Request], request: Request, death: WorkerDeath) -> None:
        """The slide a worker died on has failed; what else it had been asked is given back."""
        reason = (
            f"{request.task.path}: the process that worked on it died ({death.reason}); the file crashes a library or "
            "memory ran out: try it alone with `span inspect`, or fewer --workers"
        )
        self._own.pop(lane, None)
        if isinstance(request, PlanRequest):
            self._submit(SlideStatus(request.task.slide_id, FAILED, reason), {}, None)
        elif request.task.slide_id in self._slides:
            self._fail(self._slides[request.task.slide_id], reason)
        for other in lane.outstanding:
            if isinstance(other, PlanRequest):
                self._tasks.appendleft(other.task)
            elif other.task.slide_id in self._slides:
                self._slides[other.task.slide_id].waiting.appendleft(other.start)

    def _submit(self, status: SlideStatus, pictures: dict[str, bytes], record: SlideRecord | None) -> None:
        self._writes[self._writer.submit(self._write, status.slide_id, pictures, record)] = status

    def _written(self) -> Iterator[SlideStatus]:
        for write in [write for write in self._writes if write.done()]:
            yield self._outcome(write)
            error = write.exception()
            cause = error if isinstance(error, OSError) else getattr(error, "__cause__", None)
            if isinstance(cause, OSError) and cause.errno in DISK_ERRORS:
                raise StoreError(f"{error}; stopped, since no slide can be written; run the same command again later")

    def _outcome(self, write: Future[None]) -> SlideStatus:
        """The status of a slide, which a write that failed makes a failure."""
        status = self._writes.pop(write)
        seconds = time.perf_counter() - self._starts_s.pop(status.slide_id)
        error = write.exception()
        if error is None:
            return replace(status, seconds=seconds)
        reason = str(error) if isinstance(error, SpanError) else f"{type(error).__name__}: {error}"
        return SlideStatus(status.slide_id, FAILED, reason, seconds, failed_patches=status.failed_patches)
