"""Readers, encoder and writer of an extraction, none of which waits for another.

Workers read; an encoder on the CPU runs in each of them, one on a GPU runs here, in the one process that owns the
device, on batches that workers left in shared memory (`feeding`). Features come together here, and a thread writes
whole slides.

1. A worker goes on with the slides it planned while they have cells; then it takes the next slide; when none is left it
   helps with the slide that has most to read. So a slide is opened by few processes, a cohort of one slide has all
   workers, and nobody is idle at the end of a run.
2. Tissue is found ahead: a worker plans the next slide, and describes the last, while both of its batches wait for the
   encoder, and some plan as soon as fewer cells wait than all workers read at a time. Else all workers come to the end
   of their slides together, and the encoder waits while they all look for tissue.
3. Each worker has two requests at most, one slot of pixels for each: while a batch is encoded the next is read.
4. Memory is bounded by workers × (two batches of pixels + the features of two slides), whatever the size of a slide.

A worker that dies costs the slide it was on; what else it was asked goes to others.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import SpanError, StoreError
from span_sparse.extract.encoder import PatchEncoder
from span_sparse.extract.feeding import Feeder
from span_sparse.extract.process_list import DONE, FAILED, SlideStatus
from span_sparse.extract.settings import ExtractionSettings, SlideTask
from span_sparse.extract.slide_work import Batch, DescribeRequest, Description, Plan, PlanRequest, ReadRequest, Request
from span_sparse.extract.workers import NUM_SLOTS, Lane, WorkerDeath, WorkerPool
from span_sparse.store import SlideRecord

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
        planner: the worker that planned it.
        record: all of it but checksum, features and failed cells.
        features: of all its cells; rows of failed cells are meaningless.
        good: cells that have features.
        waiting: first cells of the batches that nobody has been asked for yet.
        num_missing: cells that have not come back.
        num_failed: cells that could not be read.
        error: why the first of them could not.
        is_asked: whether its description has been asked for.
        description: what is written besides; None until it is there.
        failure: why the slide has failed; empty while it has not.
    """

    task: SlideTask
    planner: Lane[Request] | None
    record: SlideRecord
    features: NDArray[np.floating[Any]]
    good: NDArray[np.bool_]
    waiting: deque[int]
    num_missing: int
    num_failed: int = 0
    error: str = ""
    is_asked: bool = False
    description: Description | None = None
    failure: str = ""


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
        feeder: feeds the encoder here; None when the workers encode.
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
        self._pool, self._tasks, self._write, self._check = pool, deque(tasks), write, check
        self._batch_size, self._failure_limit = settings.batch_size, settings.failure_limit
        self._slides: dict[str, _Slide] = {}
        self._starts_s: dict[str, float] = {}
        self._planners: dict[str, Lane[Request]] = {}
        self.feeder = None if encoder is None else Feeder(encoder, self._is_wanted)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._writes: dict[Future[None], SlideStatus] = {}

    def run(self) -> Iterator[SlideStatus]:
        """Outcomes, each as soon as it is there, until all slides have one; `stop` must follow, also after an error.

        Raises:
            StoreError: the disk is full, or the store cannot be written for another reason that stays.
        """
        if self.feeder is not None and self._tasks:
            self.feeder.start()
        while self._has_work():
            self._check()
            self._top_up()
            for lane, request, answer in self._pool.receive(self._timeout_s()):
                self._handle(lane, request, answer)
            for request, batch in () if self.feeder is None else self.feeder.step():
                self._collect(request, batch)
            yield from self._written()

    def stop(self) -> list[SlideStatus]:
        """Finish the slide that is being written and forget the others; outcomes that `run` had not told yet."""
        self._writer.shutdown(cancel_futures=True)
        return [self._outcome(write) for write in list(self._writes) if not write.cancelled()]

    def activities(self) -> list[str]:
        """What each worker does, in a few words."""
        return [self._activity(lane.outstanding[0] if lane.outstanding else None) for lane in list(self._pool.lanes)]

    def _has_work(self) -> bool:
        at_work = self._tasks or self._slides or self._writes or any(lane.outstanding for lane in self._pool.lanes)
        return bool(at_work) or (self.feeder is not None and self.feeder.has_work)

    def _activity(self, request: Request | None) -> str:
        if request is None:
            return "waits"
        slide = self._slides.get(request.task.slide_id)
        if isinstance(request, DescribeRequest):
            return f"{request.task.slide_id}: draws"
        if isinstance(request, PlanRequest) or slide is None:
            return f"{request.task.slide_id}: finds tissue"
        return f"{request.task.slide_id}: patch {request.start} of {len(slide.good)}"

    def _timeout_s(self) -> float:
        feeder_s = None if self.feeder is None else self.feeder.timeout_s()
        longest_s = WRITE_POLL_S if self._writes else CHECK_S
        return longest_s if feeder_s is None else min(feeder_s, longest_s)

    def _top_up(self) -> None:
        for lane in self._pool.lanes:
            while (request := self._next(lane)) is not None:
                self._pool.give(lane, request)

    def _next(self, lane: Lane[Request]) -> Request | None:
        """What a worker is to do next; nothing as long as it has enough, or a plan that will tell."""
        if len(lane.outstanding) >= NUM_SLOTS or any(isinstance(known, PlanRequest) for known in lane.outstanding):
            return None
        own = [slide for slide in self._slides.values() if slide.planner is lane]
        begun = next((slide for slide in own if slide.waiting), None)
        if not lane.outstanding and not lane.free_slots:  # the encoder has both of its batches: time to spare
            return self._describe_request(own) or self._plan_request(lane)
        if self._is_short_of_cells() and (request := self._plan_request(lane)) is not None:
            return request
        half_read = [slide for slide in own if 2 * len(slide.waiting) * self._batch_size <= len(slide.good)]
        if (request := self._describe_request(half_read)) is not None:  # earlier than last, so that nobody waits for it
            return request
        if begun is not None:
            return self._read_request(lane, begun)
        if (request := self._plan_request(lane)) is not None:
            return request
        longest = max(self._slides.values(), key=lambda slide: len(slide.waiting), default=None)
        if longest is not None and longest.waiting:
            return self._read_request(lane, longest)
        lanes = self._pool.lanes
        return self._describe_request(slide for slide in self._slides.values() if slide.planner not in lanes)

    def _is_short_of_cells(self) -> bool:
        """Whether somebody should look for tissue now, although there are cells to read."""
        num_waiting = sum(len(slide.waiting) for slide in self._slides.values())
        return num_waiting < NUM_SLOTS * len(self._pool.lanes) and self._num_plans() < len(self._pool.lanes) // 2

    def _num_plans(self) -> int:
        """Plans that are being made."""
        return sum(isinstance(known, PlanRequest) for lane in self._pool.lanes for known in lane.outstanding)

    def _plan_request(self, lane: Lane[Request]) -> PlanRequest | None:
        num_slides = len(self._slides) + len(self._writes) + self._num_plans()
        if not self._tasks or num_slides >= 2 * len(self._pool.lanes):
            return None
        task = self._tasks.popleft()
        self._planners[task.slide_id] = lane
        self._starts_s.setdefault(task.slide_id, time.perf_counter())
        return PlanRequest(task)

    def _describe_request(self, slides: Iterable[_Slide]) -> DescribeRequest | None:
        slide = next((slide for slide in slides if not slide.is_asked), None)
        if slide is None:
            return None
        slide.is_asked = True
        return DescribeRequest(slide.task, slide.record.lattice, slide.record.grid)

    def _read_request(self, lane: Lane[Request], slide: _Slide) -> ReadRequest | None:
        if not lane.free_slots:
            return None
        start = slide.waiting.popleft()
        cells = slide.record.grid[start : start + self._batch_size]
        return ReadRequest(slide.task, slide.record.lattice, cells, start, lane.free_slots.pop())

    def _handle(self, lane: Lane[Request], request: Request, answer: Plan | Batch | Description | WorkerDeath) -> None:
        if isinstance(answer, WorkerDeath):
            self._bury(lane, request, answer)
        elif isinstance(answer, Plan):
            self._handle_plan(request.task, answer)
        elif isinstance(answer, Description):
            self._handle_description(request.task, answer)
        elif isinstance(request, ReadRequest):
            if answer.good is not None and answer.features is None and self.feeder is not None:
                self.feeder.add(lane, request, answer)
                return
            lane.free_slots.append(request.slot)
            self._collect(request, answer)

    def _handle_plan(self, task: SlideTask, plan: Plan) -> None:
        planner = self._planners.pop(task.slide_id, None)
        if isinstance(plan.outcome, SlideStatus):
            self._submit(plan.outcome, plan.pictures, None)
            return
        record = plan.outcome
        shape = len(record.grid), record.encoder.dimension
        self._slides[task.slide_id] = _Slide(
            task=task,
            planner=planner,
            record=record,
            features=np.empty(shape, record.encoder.precision),
            good=np.zeros(len(record.grid), np.bool_),
            waiting=deque(range(0, len(record.grid), self._batch_size)),
            num_missing=len(record.grid),
        )

    def _handle_description(self, task: SlideTask, description: Description) -> None:
        slide = self._slides.get(task.slide_id)
        if slide is None:
            return
        slide.description = description
        if description.error:
            self._fail(slide, description.error)
        self._end_if_complete(slide)

    def _is_wanted(self, slide_id: str) -> bool:
        """Whether a slide still needs features."""
        slide = self._slides.get(slide_id)
        return slide is not None and not slide.failure

    def _collect(self, request: ReadRequest, batch: Batch) -> None:
        """Put a batch where it belongs; that may end the slide, well or not."""
        slide = self._slides.get(request.task.slide_id)
        if slide is None or slide.failure:  # it has failed meanwhile
            return
        if batch.good is None:
            self._fail(slide, batch.error)
        else:
            rows = request.start + np.flatnonzero(batch.good)
            slide.features[rows] = batch.features
            slide.good[rows] = True
            slide.num_missing -= len(batch.good)
            slide.num_failed += len(batch.good) - len(rows)
            slide.error = slide.error or batch.error
            self.on_patches(len(rows))
            if not self._failure_limit.allows(slide.num_failed, len(slide.good)):
                self._fail(slide, self._too_many(slide))
        self._end_if_complete(slide)

    def _too_many(self, slide: _Slide) -> str:
        return (
            f"{slide.num_failed} of {len(slide.good)} patches or more cannot be read, --max-failed-patches is "
            f"{self._failure_limit}; the first: {slide.error}"
        )

    def _fail(self, slide: _Slide, reason: str) -> None:
        """Read nothing more of it; it is told when its pictures, which may show why, are there."""
        slide.failure = slide.failure or reason
        slide.waiting.clear()

    def _end_if_complete(self, slide: _Slide) -> None:
        """Let a slide be written that lacks nothing any more."""
        if slide.description is None or not (slide.failure or not slide.num_missing):
            return
        del self._slides[slide.task.slide_id]
        if slide.failure:
            status = SlideStatus(slide.task.slide_id, FAILED, slide.failure, failed_patches=slide.num_failed)
            self._submit(status, slide.description.pictures, None)
            return
        record, good = replace(slide.record, slide_checksum=slide.description.checksum), slide.good
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
        self._submit(status, slide.description.pictures, record)

    def _bury(self, lane: Lane[Request], request: Request, death: WorkerDeath) -> None:
        """The slide a worker died on has failed; what else it had been asked is given back."""
        reason = (
            f"{request.task.path}: the process that worked on it died ({death.reason}); the file crashes a library or "
            "memory ran out: try it alone with `span inspect`, or fewer --workers"
        )
        if isinstance(request, PlanRequest):
            self._submit(SlideStatus(request.task.slide_id, FAILED, reason), {}, None)
        elif request.task.slide_id in self._slides:
            slide = self._slides[request.task.slide_id]
            slide.description = slide.description or Description("", {})  # not asked for again: the file kills workers
            self._fail(slide, reason)
            self._end_if_complete(slide)
        for other in lane.outstanding:
            slide = self._slides.get(other.task.slide_id)
            if isinstance(other, PlanRequest):
                self._tasks.appendleft(other.task)
            elif isinstance(other, DescribeRequest) and slide is not None:
                slide.is_asked = False
            elif isinstance(other, ReadRequest) and slide is not None and not slide.failure:
                slide.waiting.appendleft(other.start)

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
