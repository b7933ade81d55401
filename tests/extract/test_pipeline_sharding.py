"""Shards share a cohort out completely, fairly, and stay as they are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from span_sparse.errors import ConfigError, StoreError
from span_sparse.extract.process_list import process_list_path, read_process_list, read_process_lists
from span_sparse.extract.settings import SlideTask
from span_sparse.extract.sharding import Shard, tasks_of_shard
from span_sparse.store import FeatureStore, validate_store
from span_sparse.wsi import TissueSettings

from .conftest import Places


@pytest.fixture
def tasks(tmp_path):
    """Twenty files; one is as large as ten others."""
    tissue = TissueSettings()
    found = []
    for index in range(20):
        path = tmp_path / f"s{index}.svs"
        path.write_bytes(b"x" * (10_000 if index == 3 else 1_000))
        found.append(SlideTask(f"s{index}", "p", path, None, tissue))
    return found


def test_every_slide_is_in_one_shard_and_shards_have_the_same_bytes(tasks, tmp_path):
    parts = [tasks_of_shard(tasks, Shard(number, 3), tmp_path / "store") for number in (1, 2, 3)]
    assert sorted(task.slide_id for part in parts for task in part) == sorted(task.slide_id for task in tasks)
    sizes = sorted(sum(task.path.stat().st_size for task in part) for part in parts)
    assert sizes == [9_000, 10_000, 10_000]
    for part in parts:
        assert [int(task.slide_id[1:]) for task in part] == sorted(int(task.slide_id[1:]) for task in part)


def test_an_assignment_stays_when_files_grow_and_slides_come(tasks, tmp_path):
    store = tmp_path / "store"
    first = tasks_of_shard(tasks, Shard(1, 4), store)
    for task in first:
        task.path.write_bytes(b"x" * 50_000)
    more = [*tasks, *(replace(tasks[0], slide_id=f"new{number}") for number in range(40))]
    parts = [tasks_of_shard(more, Shard(number, 4), store) for number in (1, 2, 3, 4)]
    assert [task for task in parts[0] if task.slide_id.startswith("s")] == first
    assert sorted(task.slide_id for part in parts for task in part) == sorted(task.slide_id for task in more)
    assert all(any(task.slide_id.startswith("new") for task in part) for part in parts)


def test_a_dry_run_writes_no_assignment(tasks, tmp_path):
    before = sorted(tmp_path.iterdir())
    dry = tasks_of_shard(tasks, Shard(2, 3), tmp_path / "store", dry_run=True)
    assert sorted(tmp_path.iterdir()) == before
    assert tasks_of_shard(tasks, Shard(2, 3), tmp_path / "store") == dry


@pytest.mark.parametrize("content", ["", "[]", '{"s1": 0}', '{"s1": 4}', '{"s1": "1"}', '{"s1": true}', "\0"])
def test_a_damaged_assignment_is_refused(tasks, tmp_path, content):
    (tmp_path / "store.shards-of-3.json").write_text(content)
    with pytest.raises(StoreError, match="not an assignment of slides to 3 shards"):
        tasks_of_shard(tasks, Shard(1, 3), tmp_path / "store")


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "a/b", "", "1/0", "-1/4", "1.5/3", "1/4/5"])
def test_shards_that_are_none(text):
    with pytest.raises(ConfigError, match="--shard"):
        Shard.parse(text, {})


def slurm(task: int, count: int, first: int, last: int, **more: object) -> dict[str, str]:
    values = {
        "SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": count, "SLURM_ARRAY_TASK_MIN": first,
        "SLURM_ARRAY_TASK_MAX": last, **more,
    }  # fmt: skip
    return {name: str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        (slurm(1, 8, 1, 8), (1, 8)),
        (slurm(0, 8, 0, 7), (1, 8)),
        (slurm(15, 4, 5, 20, SLURM_ARRAY_TASK_STEP=5), (3, 4)),
        (slurm(2, 3, 1, 3, SLURM_STEP_NUM_TASKS=4, SLURM_PROCID=3), (8, 12)),
        (slurm(2, 3, 1, 3, SLURM_STEP_NUM_TASKS=1, SLURM_PROCID=0), (2, 3)),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, (1, 4)),
    ],
)
def test_shard_of_a_job(environment, shard):
    assert Shard.parse("slurm", environment) == Shard(*shard)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "SLURM_ARRAY_TASK_ID"),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, "SLURM_ARRAY_TASK_ID"),  # tasks that nobody started
        (slurm(7, 3, 1, 7), "3 tasks between 1 and 7"),  # --array=1,3,7
        ({"SLURM_ARRAY_TASK_ID": "x"}, "SLURM_ARRAY_TASK_ID is 'x'"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_PROCID"),
    ],
)
def test_a_job_that_does_not_say_its_shard(environment, words):
    with pytest.raises(ConfigError, match=words):
        Shard.parse("slurm", environment)


def test_shards_of_one_store_have_a_list_each_and_lose_nothing(places: Places):
    names = ["a", "b", "c", "d", "e"]
    for name in names:
        places.slide(name)
    for number in (1, 2, 3):
        statuses = places.extract(*names, "absent", shard=Shard(number, 3))
        assert {status.status for status in statuses if status.slide_id != "absent"} == {"done"}
        assert ("absent" in {status.slide_id for status in statuses}) == (number == 1)
    assert FeatureStore(places.store).slide_ids == tuple(names)
    assert validate_store(places.store) == []
    lists = [read_process_list(process_list_path(places.store, Shard(number, 3).name)) for number in (1, 2, 3)]
    assert sum(map(len, lists)) == 6
    merged = read_process_lists(places.store)
    assert {name: merged[name].status for name in merged} == dict.fromkeys(names, "done") | {"absent": "failed"}
    page = (places.store.parent / "store.qc" / "index.html").read_text()
    assert all(f"<h2>{name}</h2>" in page for name in [*names, "absent"])
    again = places.extract(*names)
    assert all(status.resumed and status.seconds == round(merged[status.slide_id].seconds, 2) for status in again)


def test_the_list_written_last_wins(places: Places):
    import os

    places.slide("a")
    places.extract("a", "b", shard=Shard(1, 1))
    shard_list = process_list_path(places.store, "1-of-1")
    os.utime(shard_list, (1, 1))
    places.slide("b")
    places.extract("a", "b")
    assert read_process_lists(places.store)["b"].status == "done"
    os.utime(shard_list, (2**32, 2**32))
    assert read_process_lists(places.store)["b"].status == "failed"
