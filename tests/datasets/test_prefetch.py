"""Batches that are made ready ahead, on a lane that is no CUDA stream but notes what is asked of it."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from span_sparse.datasets import SlideBatch, SlideDataset, SlideSample, collate
from span_sparse.datasets.datamodule import SlideDataModule
from span_sparse.datasets.loaders import SlideLoader, TrainingLoader
from span_sparse.datasets.prefetch import BatchesAhead, Placement, geometry_tensors, placed, placement_for
from span_sparse.datasets.slide_dataset import SlideItem
from span_sparse.store import FeatureStore

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
from fake_lane import FakeLane

CPU = torch.device("cpu")


@dataclass
class FakePyramid:
    level: torch.Tensor

    def tensors(self):
        yield self.level


def placement(lanes: list[FakeLane] | None = None, **settings) -> Placement:
    def make(device: torch.device) -> FakeLane:
        lane = FakeLane(device)
        if lanes is not None:
            lanes.append(lane)
        return lane

    return Placement(CPU, lane=make, **settings)


def batch_of(index: int) -> SlideBatch:
    sample = SlideSample(index, torch.full((2, 3), float(index)).half(), torch.tensor([[0, 1], [1, 0]]).int(), 0)
    return collate([sample], as_stored=True)


def helpers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batches-ahead"]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    gc.collect()
    assert helpers() == []


@pytest.mark.parametrize("background", [True, False])
def test_batches_come_in_order_converted_and_with_geometry(background: bool) -> None:
    lanes: list[FakeLane] = []
    seen = []

    def prepare(valid, num_slides: int) -> FakePyramid:
        assert num_slides == 1
        seen.append((threading.current_thread() is threading.main_thread(), torch.is_grad_enabled()))
        return FakePyramid(valid.coords + 1)

    found = list(placed(map(batch_of, range(5)), placement(lanes, prepare=prepare, background=background)))
    assert [batch.features[0, 0].item() for batch in found] == [0, 1, 2, 3, 4]
    assert {batch.features.dtype for batch in found} == {torch.float32}
    assert all(torch.equal(batch.place.level, batch.coords + 1) for batch in found)
    assert seen == [(not background, False)] * 5
    (lane,) = lanes
    given = [entry for entry in lane.log if entry[0] == "hand over"]
    assert [what for _, what, _ in given] == ["staged"] * 5
    for batch, (_, _, recorded) in zip(found, given, strict=True):  # every tensor, that of the geometry too
        assert recorded == sorted(map(id, [*batch.tensors().values(), batch.geometry.level]))


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_than_depth_are_taken_before_they_are_given(depth: int) -> None:
    taken = []

    def source():
        for number in range(12):
            taken.append(number)
            yield batch_of(number)

    iterator = placed(source(), placement(depth=depth))
    deadline = time.monotonic() + 10
    for given in range(9):
        while len(taken) < given + depth and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(0.02)
        assert len(taken) == given + depth
        next(iterator)
    iterator.close()


def test_the_device_is_not_filled_with_batches() -> None:
    """Batch n goes there when what was asked of batch n - 2 is done; no event is skipped."""
    lanes: list[FakeLane] = []
    given = [batch.indices.item() for batch in placed(map(batch_of, range(4)), placement(lanes))]
    assert given == [0, 1, 2, 3]
    waits = [event for what, event, *_ in lanes[0].log if what == "wait"]
    assert [what for what, _ in waits] == ["asked"] * 3  # the first one waits for nothing
    assert waits == sorted(waits)


@pytest.mark.parametrize("background", [True, False])
def test_an_error_is_raised_where_its_batch_was_asked_for(background: bool) -> None:
    def broken_reader():
        yield batch_of(0)
        yield batch_of(1)
        raise ValueError("slide 2 is broken")

    iterator = placed(broken_reader(), placement(background=background))
    assert next(iterator).indices.item() == 0
    assert next(iterator).indices.item() == 1
    with pytest.raises(ValueError, match="slide 2 is broken") as caught:
        next(iterator)
    assert "broken_reader" in "".join(traceback.format_tb(caught.value.__traceback__))
    with pytest.raises(StopIteration):
        next(iterator)


def test_an_error_of_the_geometry_is_raised_too() -> None:
    def prepare(valid, num_slides: int):
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        next(placed(map(batch_of, range(5)), placement(prepare=prepare)))


def test_a_forgotten_iterator_ends_its_thread() -> None:
    iterator = placed(map(batch_of, range(50)), placement())
    next(iterator)
    assert len(helpers()) == 1
    del iterator
    gc.collect()
    assert helpers() == []


def test_a_program_that_stops_in_the_middle_ends() -> None:
    code = (
        f"import sys, torch; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_prefetch import batch_of, placement, placed\n"
        "batches = placed(map(batch_of, range(50)), placement())\n"
        "next(batches); print('done')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_on_the_cpu_nothing_is_placed() -> None:
    assert placement_for("cpu", torch.nn.Linear(1, 1)) is None
    batch = batch_of(3)
    assert next(placed([batch], None)) is batch


def test_a_placement_for_cuda_takes_the_network_s_geometry() -> None:
    network = torch.nn.Linear(1, 1)
    found = placement_for("cuda:0", network)
    assert found is not None
    assert (found.prepare, found.pinned) == (None, True)
    network.prepare = str
    assert placement_for("cuda:0", network).prepare is str  # pyright: ignore[reportOptionalMemberAccess]


def test_several_geometries_are_all_recorded() -> None:
    one, two = FakePyramid(torch.ones(1)), FakePyramid(torch.ones(2))
    assert [len(tensor) for tensor in geometry_tensors((one, None, (two,)))] == [1, 2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_placed_loader_gives_the_batches_of_a_plain_one(tiny_cohort, num_workers: int) -> None:
    items = [SlideItem(f"s{number:02d}", "p", number % 3) for number in range(10)]
    data = SlideDataset(FeatureStore(tiny_cohort.store), items)
    batches = {"batch_sampler": [[0, 1, 2], [3], [9, 4], [8, 7]]}
    plain = list(SlideLoader(data, 0, **batches))
    ours = SlideLoader(data, num_workers, placement=placement(), **batches)
    for _ in range(2):  # the second time by the same workers
        for mine, theirs in zip(ours, plain, strict=True):
            assert mine.tensors().keys() == theirs.tensors().keys()
            assert all(torch.equal(tensor, theirs.tensors()[name]) for name, tensor in mine.tensors().items())
            assert (mine.counts, mine.extents) == (theirs.counts, theirs.extents)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("background", [True, False])
def test_a_loader_that_is_left_in_the_middle_starts_anew(tiny_cohort, num_workers: int, background: bool) -> None:
    items = [SlideItem(f"s{number:02d}", "p") for number in range(10)]
    data = SlideDataset(FeatureStore(tiny_cohort.store), items)
    loader = SlideLoader(data, num_workers, placement=placement(background=background), batch_size=2)
    first = iter(loader)
    next(first)
    again = [batch.indices.tolist() for batch in loader]
    assert again == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert isinstance(first, BatchesAhead) == background


def test_a_checkpoint_counts_what_was_given_and_not_what_is_ready(tiny_cohort) -> None:
    def loader() -> TrainingLoader:
        data = SlideDataModule(str(tiny_cohort.store), str(tiny_cohort.csv))
        data.setup()
        plain = data.train_dataloader()
        return TrainingLoader(
            plain.dataset, 0, batches=plain._rest.batches, order=plain.order, placement=placement(depth=3)
        )

    order = [batch.indices.tolist() for batch in loader()]
    assert len(order) == 6
    first = loader()
    batches = iter(first)
    for _ in range(2):
        next(batches)
    time.sleep(0.05)
    state = first.state_dict()
    assert state["batches_taken"] == 2
    second = loader()
    second.load_state_dict(state)
    assert [batch.indices.tolist() for batch in second] == order[2:]
    assert [batch.indices.tolist() for batch in second] == order
    del batches
