"""Batches between the workers' slots and an encoder on a device.

The encoder loads in a thread of its own while workers open the first slides. Then there are always two batches in its
stream as long as there are two: it computes one while the other is copied, and the engine, which is never made to wait
for either, looks after workers and writer in the meantime.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from threading import Thread
from typing import Final

from span_sparse.extract.encoder import PatchEncoder
from span_sparse.extract.encoding_stream import stream_of
from span_sparse.extract.slide_work import Batch, ReadRequest, Request, checked
from span_sparse.extract.workers import Lane

MAX_BATCHES: Final = 2
"""In the stream: one that is computed, one that follows without a gap."""

LOAD_POLL_S: Final = 0.02
BATCH_POLL_S: Final = 0.002
"""How often it is asked whether the encoder has loaded, or has finished a batch; a batch takes ten times as long."""


class Feeder:
    """Feeds one encoder; see the module.

    Args:
        encoder: it.
        wanted: whether batches of a slide are still of use.

    Attributes:
        loaded_s: `time.perf_counter()` when the encoder was ready; None before.
        first_s: when the first batch was submitted; None before.
        idle_s: seconds after the first batch in which the stream had none.
    """

    def __init__(self, encoder: PatchEncoder, wanted: Callable[[str], bool]) -> None:
        self._identity, self._stream, self._wanted = encoder.identity, stream_of(encoder), wanted
        self._ready: deque[tuple[Lane[Request], ReadRequest, Batch]] = deque()
        self._in_stream: deque[tuple[ReadRequest, Batch]] = deque()
        self._loader = Thread(target=self._load, name="encoder", daemon=True)
        self.loaded_s: float | None = None
        self.first_s: float | None = None
        self.idle_s = 0.0
        self._idle_since_s = 0.0

    def start(self) -> None:
        """Let the encoder load, in its own thread."""
        self._loader.start()

    def add(self, lane: Lane[Request], request: ReadRequest, batch: Batch) -> None:
        """Take a batch that lies in a slot of the lane."""
        self._ready.append((lane, request, batch))

    @property
    def has_work(self) -> bool:
        """Whether a batch waits or is in the stream."""
        return bool(self._ready or self._in_stream)

    def timeout_s(self) -> float | None:
        """How long workers may be waited for before the next `step`; None: as long as one likes."""
        if self._ready and self.loaded_s is None:
            return LOAD_POLL_S
        if self._ready and len(self._in_stream) < MAX_BATCHES:
            return 0.0
        return BATCH_POLL_S if self._in_stream else None

    def step(self) -> Iterator[tuple[ReadRequest, Batch]]:
        """Batches that are finished; then the next goes into the stream."""
        while self._in_stream and self._stream.ready():
            yield self._finish()
        if self._ready and self.loaded_s is not None and len(self._in_stream) < MAX_BATCHES:
            failure = self._submit(*self._ready.popleft())
            if failure is not None:
                yield failure

    def _load(self) -> None:
        with suppress(Exception):  # the first batch meets the same error, and then it belongs to a slide
            self._stream.prepare()
        self.loaded_s = time.perf_counter()

    def _submit(self, lane: Lane[Request], request: ReadRequest, batch: Batch) -> tuple[ReadRequest, Batch] | None:
        """Give a batch to the stream; the batch again when that is refused."""
        assert batch.good is not None
        try:
            if not self._wanted(request.task.slide_id):
                return None
            now_s = time.perf_counter()
            if self.first_s is None:
                self.first_s = now_s
            elif not self._in_stream:
                self.idle_s += now_s - self._idle_since_s
            self._stream.submit(lane.slots[request.slot][: int(batch.good.sum())])
        except Exception as error:  # whatever an encoder raises
            return request, _failed(request, error)
        finally:
            lane.free_slots.append(request.slot)
        self._in_stream.append((request, batch))
        return None

    def _finish(self) -> tuple[ReadRequest, Batch]:
        request, batch = self._in_stream.popleft()
        assert batch.good is not None
        try:
            features = checked(self._identity, self._stream.collect(), int(batch.good.sum()))
        except Exception as error:  # whatever an encoder raises
            batch = _failed(request, error)
        else:
            batch = replace(batch, features=features)
        if not self._in_stream:
            self._idle_since_s = time.perf_counter()
        return request, batch


def _failed(request: ReadRequest, error: Exception) -> Batch:
    return Batch(None, error=f"{request.task.path}: {type(error).__name__}: {error}")
