"""Who reads, encodes and writes: with an encoder on a device, with failing tiles, with dying workers."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from span_sparse.errors import ConfigError, StoreError
from span_sparse.extract.engine import Engine
from span_sparse.extract.process_list import process_list_path, read_process_list
from span_sparse.extract.settings import FailureLimit
from span_sparse.extract.slide_work import ReadRequest, SlideWork
from span_sparse.extract.workers import Lane, WorkerDeath, WorkerPool
from span_sparse.store import FeatureStore, validate_store

from .conftest import STEP_PX0, TILE_PX0, DeviceEncoder, Places, colours, spoil_tiles, write_slide


def expected(record) -> np.ndarray:
    """The mean colour of a cell of `colours`."""
    picture = colours(60, 60)
    return np.array([picture[row * STEP_PX0, col * STEP_PX0] for row, col in record.grid], np.float32)


def test_readers_feed_an_encoder_that_only_this_process_may_use(places: Places):
    for name in ("a", "b", "c"):
        places.slide(name, 6, 9)
    encoder = DeviceEncoder()
    statuses = places.extract("a", "b", "c", encoder=encoder, workers=2)
    assert [(status.status, status.num_patches) for status in statuses] == [("done", 54)] * 3
    assert set(encoder.callers) == {os.getpid()}
    assert sorted(encoder.sizes) == sorted([8, 8, 8, 8, 8, 8, 6] * 3)
    for name in ("a", "b", "c"):
        record = FeatureStore(places.store).read(name)
        np.testing.assert_allclose(record.features, expected(record), atol=0.01)
    assert validate_store(places.store) == []


def test_one_slide_has_all_readers_and_the_result_is_that_of_one(places: Places, monkeypatch):
    places.slide("only", 12, 12)
    asked = []
    next_request = Engine._next

    def noted(self, lane):
        request = next_request(self, lane)
        if request is not None:
            asked.append((id(lane), type(request).__name__))
        return request

    monkeypatch.setattr(Engine, "_next", noted)
    places.extract("only", workers=3)
    assert len({lane for lane, kind in asked if kind == "ReadRequest"}) == 3
    assert [kind for _, kind in asked].count("PlanRequest") == 1
    several = FeatureStore(places.store).read("only")
    places.extract("only", workers=0, overwrite=True, batch_size=5)
    alone = FeatureStore(places.store).read("only")
    np.testing.assert_array_equal(several.features, alone.features)
    np.testing.assert_allclose(several.features, expected(several), atol=0.01)


def cells_of_tile(tile: int, tiles_across: int) -> set[tuple[int, int]]:
    row, col = divmod(tile, tiles_across)
    touched = [
        range(edge * TILE_PX0 // STEP_PX0, (edge * TILE_PX0 + TILE_PX0 - 1) // STEP_PX0 + 1) for edge in (row, col)
    ]
    return {(down, right) for down in touched[0] for right in touched[1]}


def test_a_tile_that_cannot_be_read_costs_its_patches_only(places: Places):
    """32 × 32 cells on 20 × 20 tiles."""
    path = places.slide("holed", 32, 32)
    bad_tile = 5 * 20 + 7
    spoil_tiles(path, bad_tile)
    lost = cells_of_tile(bad_tile, 20)
    (status,) = places.extract("holed")
    assert (status.status, status.num_patches, status.failed_patches) == ("done", 1024 - len(lost), len(lost))
    record = FeatureStore(places.store).read("holed")
    assert record.failed_grid is not None
    assert set(map(tuple, record.failed_grid.tolist())) == lost
    assert not lost & set(map(tuple, record.grid.tolist()))
    np.testing.assert_allclose(record.features, expected(record), atol=0.01)
    assert validate_store(places.store) == []
    (row,) = read_process_list(process_list_path(places.store))
    assert (row.num_patches, row.failed_patches) == (1024 - len(lost), len(lost))
    (status,) = places.extract("holed")
    assert (status.resumed, status.failed_patches) == (True, len(lost))
    (status,) = places.extract("holed", max_failed_patches=FailureLimit(len(lost) - 1))
    assert status.status == "failed"
    assert FeatureStore(places.store).metadata("holed").provenance["num_failed_patches"] == len(lost)


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_failed_patches_are_a_failed_slide_and_end_its_reading(places: Places, workers, monkeypatch):
    spoil_tiles(places.slide("bad", 32, 32), *range(20, 40))
    places.slide("good")
    encoder = DeviceEncoder()
    bad, good = places.extract("bad", "good", encoder=encoder, workers=workers)
    assert (bad.status, good.status) == ("failed", "done")
    assert "bad.tiff" in bad.error
    assert "of 1024 patches or more cannot be read, --max-failed-patches is 0.01 of all" in bad.error
    assert bad.failed_patches >= 11
    assert sum(encoder.sizes) < 300, "the rest of the slide was read in vain"
    assert FeatureStore(places.store).slide_ids == ("good",)
    (status,) = places.extract("bad", max_failed_patches=FailureLimit.parse("20%"))
    assert status.status == "done"


@pytest.mark.parametrize("text", ["", "many", "-1", "nan", "inf", "1 %x"])
def test_a_limit_that_is_none(text):
    with pytest.raises(ConfigError, match="--max-failed-patches"):
        FailureLimit.parse(text)


@pytest.mark.parametrize(
    ("text", "failed", "total", "allowed"),
    [("0", 0, 9, True), ("0", 1, 9, False), ("1", 1, 9, True), ("1", 2, 9, False), ("100%", 9, 9, False),
     ("50%", 4, 9, True), ("0.5", 5, 9, False), ("99", 3, 3, False)],
)  # fmt: skip
def test_limits_by_hand(text, failed, total, allowed):
    assert FailureLimit.parse(text).allows(failed, total) is allowed


def test_an_encoder_that_fails_or_gives_another_shape_is_a_failed_slide(places: Places):
    class Wide(DeviceEncoder):
        def __call__(self, patches):
            return np.zeros((len(patches), 4), np.float32)

    class Full(DeviceEncoder):
        def __call__(self, patches):
            raise RuntimeError("CUDA out of memory")

    places.slide("a")
    (status,) = places.extract("a", encoder=Wide())
    assert "gave features [8, 4] for 8 patches, expected [8, 3]" in status.error
    (status,) = places.extract("a", encoder=Full(), workers=1)
    assert "a.tiff: RuntimeError: CUDA out of memory" in status.error
    assert FeatureStore(places.store).slide_ids == ()


def test_a_reader_that_dies_costs_the_slide_it_was_on(places: Places, monkeypatch):
    for name in ("a", "b", "c", "d"):
        places.slide(name, 8, 8)
    killed = []
    handle = Engine._handle

    def kill_once(self, lane, request, answer):
        if not killed and request.task.slide_id == "b" and lane.outstanding and lane.process is not None:
            killed.append(lane.outstanding[0].task.slide_id)
            os.kill(lane.process.pid, signal.SIGKILL)
        handle(self, lane, request, answer)

    monkeypatch.setattr(Engine, "_handle", kill_once)
    statuses = {status.slide_id: status for status in places.extract("a", "b", "c", "d", workers=2)}
    failed = [slide_id for slide_id, status in statuses.items() if status.status == "failed"]
    assert len(failed) <= 1, "the worker may have answered before it was killed"
    assert all("SIGKILL" in statuses[slide_id].error for slide_id in failed)
    monkeypatch.undo()
    assert [status.status for status in places.extract("a", "b", "c", "d")] == ["done"] * 4
    for name in "abcd":
        record = FeatureStore(places.store).read(name)
        np.testing.assert_allclose(record.features, expected(record), atol=0.01)


def test_a_file_that_vanishes_or_shrinks_under_way(places: Places, monkeypatch):
    for name in ("gone", "cut", "fine"):
        places.slide(name, 12, 12)
    read = SlideWork._read

    def spoiled(self, request, pixels):
        path = request.task.path
        if request.start == 16 and path.stem == "gone":
            path.unlink()
            self.close()
        if request.start == 16 and path.stem == "cut":
            os.truncate(path, 3000)
            self.close()
        return read(self, request, pixels)

    monkeypatch.setattr(SlideWork, "_read", spoiled)
    gone, cut, fine = places.extract("gone", "cut", "fine")
    assert (gone.status, cut.status, fine.status) == ("failed", "failed", "done")
    assert "no such file" in gone.error
    assert "cut.tiff" in cut.error
    assert validate_store(places.store) == []
    monkeypatch.undo()
    places.slide("gone", 12, 12)
    places.slide("cut", 12, 12)
    assert [status.status for status in places.extract("gone", "cut", "fine")] == ["done"] * 3


def test_two_runs_on_one_store_at_once(places: Places, monkeypatch):
    """The second run does the whole cohort while the first is between two slides."""
    for name in ("a", "b", "c"):
        places.slide(name)
    second = []
    handle_plan = Engine._handle_plan

    def interrupted(self, task, plan):
        if not second and task.slide_id == "b":
            second.append(None)
            second[0] = [status.status for status in places.extract("a", "b", "c")]
        handle_plan(self, task, plan)

    monkeypatch.setattr(Engine, "_handle_plan", interrupted)
    assert [status.status for status in places.extract("a", "b", "c")] == ["done"] * 3
    assert second == [["done"] * 3]
    assert validate_store(places.store) == []
    assert [row.slide_id for row in read_process_list(process_list_path(places.store))] == ["a", "b", "c"]


def test_two_runs_with_different_cohorts_keep_each_others_rows(places: Places, monkeypatch):
    for name in ("a", "b", "c"):
        places.slide(name)
    done = []
    handle_plan = Engine._handle_plan

    def interrupted(self, task, plan):
        if not done and task.slide_id == "b":
            done.append(places.extract("c"))
        handle_plan(self, task, plan)

    monkeypatch.setattr(Engine, "_handle_plan", interrupted)
    places.extract("a", "b")
    rows = read_process_list(process_list_path(places.store))
    assert {(row.slide_id, row.status) for row in rows} == {("a", "done"), ("b", "done"), ("c", "done")}


def test_a_disk_that_refuses_stops_the_run(places: Places, monkeypatch):
    import errno

    for name in ("a", "b", "c"):
        places.slide(name)
    write = FeatureStore.write

    def refused(self, record, overwrite=False):
        if record.slide_id == "b":
            raise StoreError("slide 'b' cannot be written") from OSError(errno.ENOSPC, "No space left on device")
        write(self, record, overwrite)

    monkeypatch.setattr(FeatureStore, "write", refused)
    with pytest.raises(StoreError, match="stopped, since no slide can be written"):
        places.extract("a", "b", "c")
    rows = {row.slide_id: row.status for row in read_process_list(process_list_path(places.store))}
    assert rows.items() >= {("a", "done"), ("b", "failed")}
    monkeypatch.undo()
    assert [status.status for status in places.extract("a", "b", "c")] == ["done"] * 3


def test_pictures_lie_beside_the_store_and_show_tissue_and_cells(places: Places):
    import io
    import json

    from PIL import Image

    picture = np.full((400, 600, 3), 244, np.uint8)
    picture[120:280, 160:400] = (200, 120, 170)
    write_slide(places.slides / "a.tiff", picture)
    places.extract("a")
    outline = json.loads((places.store.parent / "store.tissue" / "a.geojson").read_text())
    (feature,) = outline["features"]
    corners = np.array(feature["geometry"]["coordinates"][0])
    assert corners.min(axis=0).tolist() == [160, 120]
    assert corners.max(axis=0).tolist() == [400, 280]
    drawn = Image.open(io.BytesIO((places.store.parent / "store.qc" / "a.jpg").read_bytes()))
    assert drawn.size == (300, 200)
    pixels = np.asarray(drawn).astype(int)
    assert np.abs(pixels[20, 20] - 244).max() < 6, "glass is untouched"
    inside, tissue = pixels[105, 145], np.array((200, 120, 170))
    assert inside[0] < tissue[0] - 20, "cells are tinted blue"
    assert (pixels[60:141, 80:201, 1] > pixels[60:141, 80:201, 0] + 40).sum() > 200, "a green outline"


class MortalPool(WorkerPool):
    """Two workers in this process; the one that is asked for two slides at once dies on the first of them."""

    lost: list[list[str]]
    turn = 0

    def __init__(self, work, num_workers, slot_shape):
        super().__init__(work, 0, slot_shape)
        self.lost = []
        POOLS.append(self)

    def start(self):
        super().start()
        self.lanes.append(Lane(np.empty_like(self.lanes[0].slots)))

    def receive(self, timeout_s):
        for lane in self.lanes:
            asked = [request.task.slide_id for request in lane.outstanding]
            if not self.lost and len(set(asked)) == 2 and all(type(known) is ReadRequest for known in lane.outstanding):
                self.lost.append(asked)
                self.lanes[self.lanes.index(lane)] = Lane(np.empty_like(lane.slots))
                yield lane, lane.outstanding.popleft(), WorkerDeath("SIGKILL")
                return
        self.turn = 1 - self.turn
        lane = self.lanes[self.turn]
        if lane.outstanding:
            yield lane, lane.outstanding[0], self._work(lane.outstanding.popleft(), lane.slots)


POOLS: list[MortalPool] = []


def test_what_a_dead_reader_was_asked_besides_goes_to_another(places: Places, monkeypatch):
    """The second reader has finished its small slide and helps with the large one when it dies."""
    places.slide("large", 12, 12)
    places.slide("small", 4, 5)
    monkeypatch.setattr("span_sparse.extract.pipeline.WorkerPool", MortalPool)
    large, small = places.extract("large", "small", workers=2)
    assert POOLS[-1].lost == [["small", "large"]]
    assert (large.status, small.status) == ("done", "failed")
    assert "the process that worked on it died (SIGKILL)" in small.error
    record = FeatureStore(places.store).read("large")
    assert len(record.grid) == 144
    np.testing.assert_allclose(record.features, expected(record), atol=0.01)
