"""Encoders with a stream, and what readers do while it is busy."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest

from span_sparse.extract.feeding import Feeder
from span_sparse.extract.slide_work import SlideWork
from span_sparse.extract.workers import Lane, WorkerPool
from span_sparse.store import FeatureStore

from .conftest import STEP_PX0, DeviceEncoder, Places, colours


def expected(record) -> np.ndarray:
    """The mean colour of a cell of `colours`."""
    picture = colours(60, 60)
    return np.array([picture[row * STEP_PX0, col * STEP_PX0] for row, col in record.grid], np.float32)


class Stream:
    """A device that takes batches at once and finishes one whenever it is asked a few times."""

    def __init__(self, encoder: StreamedEncoder) -> None:
        self.encoder, self.batches, self.asked = encoder, [], 0

    def prepare(self) -> None:
        self.encoder.events.append("loading")
        time.sleep(self.encoder.load_s)
        self.encoder.events.append("loaded")

    def submit(self, patches: np.ndarray) -> None:
        self.encoder.events.append("batch")
        self.batches.append(patches.mean(axis=(1, 2)).astype(np.float32))
        self.encoder.most = max(self.encoder.most, len(self.batches))
        self.asked = 0

    def ready(self) -> bool:
        self.asked += 1
        return bool(self.batches) and self.asked > 3

    def collect(self) -> np.ndarray:
        if self.encoder.fail_after and self.encoder.events.count("batch") > self.encoder.fail_after:
            self.batches.pop(0)
            raise RuntimeError("CUDA error: unspecified launch failure")
        return self.batches.pop(0)


@dataclass
class StreamedEncoder(DeviceEncoder):
    load_s: float = 0.0
    fail_after: int = 0
    most: int = 0
    events: list[str] = field(default_factory=list)

    def encoding_stream(self) -> Stream:
        return Stream(self)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_overlap_in_the_stream_of_an_encoder(places: Places, workers):
    for name in ("a", "b"):
        places.slide(name, 8, 9)
    encoder = StreamedEncoder()
    statuses = places.extract("a", "b", encoder=encoder, workers=workers)
    assert [(status.status, status.num_patches) for status in statuses] == [("done", 72)] * 2
    assert encoder.most == 2, "one is computed, one follows"
    assert encoder.callers == [], "a stream is not called besides"
    for name in ("a", "b"):
        record = FeatureStore(places.store).read(name)
        np.testing.assert_allclose(record.features, expected(record), atol=0.01)


def test_slides_are_read_while_the_encoder_loads(places: Places, monkeypatch):
    for name in ("a", "b"):
        places.slide(name, 8, 9)
    encoder = StreamedEncoder(load_s=0.6)
    add = Feeder.add

    def noted(self, lane, request, batch):
        encoder.events.append("read")
        add(self, lane, request, batch)

    monkeypatch.setattr(Feeder, "add", noted)
    assert [status.status for status in places.extract("a", "b", encoder=encoder, workers=0)] == ["done"] * 2
    before = encoder.events[: encoder.events.index("loaded")]
    assert before.count("loading") == 1
    assert before.count("read") == 2, "both slots of the one reader are full"
    assert "batch" not in before


def test_an_error_of_the_device_fails_slides_and_ends(places: Places):
    for name in ("a", "b"):
        places.slide(name, 8, 9)
    statuses = places.extract("a", "b", encoder=StreamedEncoder(fail_after=12), workers=2)
    failed = [status for status in statuses if status.status == "failed"]
    assert failed
    assert all("CUDA error: unspecified launch failure" in status.error for status in failed)


class Asked(WorkerPool):
    """Two workers in this process, and what each was asked."""

    log: ClassVar[list[tuple[int, str, str]]] = []

    def __init__(self, work, num_workers, slot_shape):
        super().__init__(work, 0, slot_shape)
        self.turn = 0

    def start(self):
        super().start()
        self.lanes.append(Lane(np.empty_like(self.lanes[0].slots)))

    def give(self, lane, request):
        self.log.append((self.lanes.index(lane), type(request).__name__, request.task.slide_id))
        super().give(lane, request)

    def receive(self, timeout_s):
        self.turn = 1 - self.turn
        lane = self.lanes[self.turn]
        if lane.outstanding:
            yield lane, lane.outstanding[0], self._work(lane.outstanding.popleft(), lane.slots)


def test_tissue_is_found_while_the_encoder_is_busy(places: Places, monkeypatch):
    """Readers that are ahead of the encoder plan the next slides before theirs are read to the end."""
    names = ("a", "b", "c", "d")
    for name in names:
        places.slide(name, 16, 16)
    monkeypatch.setattr("span_sparse.extract.pipeline.WorkerPool", Asked)
    Asked.log.clear()
    statuses = places.extract(*names, encoder=StreamedEncoder(), workers=2)
    assert [status.status for status in statuses] == ["done"] * 4
    kinds = [(kind, slide_id) for _, kind, slide_id in Asked.log]
    last_read_of_the_first_two = max(kinds.index(("ReadRequest", "a")), kinds.index(("ReadRequest", "b")))
    third = kinds.index(("PlanRequest", "c"))
    assert third < len(kinds) - 1 - kinds[::-1].index(("ReadRequest", "a"))
    assert third > last_read_of_the_first_two
    described = [(lane, slide_id) for lane, kind, slide_id in Asked.log if kind == "DescribeRequest"]
    planned = [(lane, slide_id) for lane, kind, slide_id in Asked.log if kind == "PlanRequest"]
    assert sorted(described) == sorted(planned), "who found the tissue draws it, once"


def test_a_slide_is_described_by_another_when_its_planner_has_died(places: Places, monkeypatch):
    places.slide("a", 12, 12)
    places.slide("b", 4, 5)
    places.extract("a", "b", workers=0)
    whole = (places.store.parent / "store.tissue" / "a.geojson").read_bytes()
    checksum = FeatureStore(places.store).metadata("a").slide_checksum
    monkeypatch.setattr(SlideWork, "_keep", lambda *_: None)  # as in a worker that did not plan it
    places.extract("a", "b", workers=0, overwrite=True)
    assert (places.store.parent / "store.tissue" / "a.geojson").read_bytes() == whole
    assert FeatureStore(places.store).metadata("a").slide_checksum == checksum
