from __future__ import annotations

import errno
import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from span_sparse.errors import StoreError
from span_sparse.store import FeatureStore, validate_store, writer

PROGRAM = Path(__file__).with_name("write_forever.py")


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_row_order_does_not_change_a_byte(tmp_path, make_record):
    record = make_record(num_patches=101)
    shuffled = np.random.default_rng(5).permutation(101)
    other = make_record(grid=record.grid[shuffled], features=record.features[shuffled], coords=record.coords[shuffled])
    for name, one in (("a", record), ("b", other)):
        FeatureStore.create(tmp_path / name).write(one)
    first = digests(tmp_path / "a")
    assert first == digests(tmp_path / "b")
    assert sorted(first) == sorted(
        ["zarr.json", "slide-1/zarr.json"]
        + [f"slide-1/{array}/{file}" for array in ("coords", "features", "grid") for file in ("c/0/0", "zarr.json")]
    )


def test_a_patch_of_zeros_in_cell_zero_is_written(store, make_record, assert_same):
    grid = np.zeros((1, 2), np.int32)
    record = make_record(grid=grid, features=np.zeros((1, 5), np.float16))
    store.write(record)
    assert_same(record, store.read("slide-1"))


@pytest.mark.parametrize("exchange", [True, False])
def test_at_every_sync_the_store_holds_a_whole_slide_or_none(store, make_record, monkeypatch, exchange):
    """Whatever instant the machine stops at, a reader finds the old state or the new one."""
    if not exchange:
        monkeypatch.setattr(writer, "_exchange", lambda first, second: False)
    seen: list[int | None] = []
    real = os.fsync

    def spy(descriptor):
        real(descriptor)
        fresh = FeatureStore(store.path)
        seen.append(fresh.read("slide-1").grid.shape[0] if fresh.has("slide-1") else None)

    monkeypatch.setattr(os, "fsync", spy)
    store.write(make_record(num_patches=3))
    assert seen[:-1] == [None] * (len(seen) - 1)
    assert len(seen) > 10
    assert seen[-1] == 3
    seen.clear()
    store.write(make_record(num_patches=4), overwrite=True)
    assert seen[:-1] == [3] * (len(seen) - 1)
    assert seen[-1] == 4
    assert sorted(path.name for path in store.path.iterdir()) == ["slide-1", "zarr.json"]


def test_a_failed_write_leaves_nothing_and_names_the_reason(store, make_record, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store.write(make_record(num_patches=3))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"slide 'slide-1' cannot be written to .*No space left on device"):
        store.write(make_record(num_patches=4), overwrite=True)
    assert store.read("slide-1").grid.shape == (3, 2)
    assert sorted(path.name for path in store.path.iterdir()) == ["slide-1", "zarr.json"]


def test_a_failed_move_without_exchange_brings_the_old_slide_back(store, make_record, monkeypatch):
    store.write(make_record(num_patches=3))
    monkeypatch.setattr(writer, "_exchange", lambda first, second: False)
    real = Path.rename

    def rename(self, target):
        if Path(target).name == "slide-1" and (self / "zarr.json").read_text().count('"num_patches": 4'):
            raise OSError(errno.EIO, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(StoreError, match="Input/output error"):
        store.write(make_record(num_patches=4), overwrite=True)
    assert store.read("slide-1").grid.shape == (3, 2)


def test_the_store_is_readable_by_colleagues(store, make_record):
    store.write(make_record())
    modes = {(store.path / name).stat().st_mode & 0o777 for name in ("slide-1", "slide-1/features")}
    control = store.path.parent / "control"
    control.mkdir()
    assert modes == {control.stat().st_mode & 0o777}


def start(*arguments: object) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, str(PROGRAM), *map(str, arguments)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(1) == b"r"
    return process


def finish(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def check_whole(store: FeatureStore) -> int:
    """Every slide is whole: its features all hold the number of its patches."""
    for slide_id in store.slide_ids:
        record = FeatureStore(store.path).read(slide_id)
        assert (record.features == len(record.features)).all()
    return len(store.slide_ids)


def test_killed_writers_never_leave_part_of_a_slide(store):
    random.seed(3)
    num_leftovers = 0
    for round_number in range(6):
        process = start(store.path, f"round{round_number % 2}", 40)
        time.sleep(random.uniform(0.02, 0.25))
        finish(process)
        check_whole(store)
        leftovers = [problem for problem in validate_store(store.path) if "killed writer" in problem.message]
        assert validate_store(store.path) == leftovers
        num_leftovers = max(num_leftovers, len(leftovers))
    assert check_whole(store) > 0
    assert num_leftovers > 0  # at least one kill hit a writer at work
    assert store.remove_leftovers() == []  # too young
    assert len(store.remove_leftovers(older_than_s=-1.0)) == num_leftovers
    assert validate_store(store.path) == []


def test_two_writers_of_one_slide_and_a_reader(tmp_path):
    """Both replace the same slide over and over while it is read: every read gives one of the two, whole."""
    store = FeatureStore.create(tmp_path / "store")
    processes = [start(store.path, "same", num_patches, "one-slide") for num_patches in (40, 60)]
    seen: set[int] = set()
    num_reads = 0
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (num_reads > 150 and seen == {40, 60}):
        if store.has("same"):
            try:
                record = store.read("same")
            except StoreError as error:
                assert "again and again" in str(error)  # noqa: PT017 - most reads succeed
                continue
            num_reads += 1
            seen.add(len(record.features))
            assert (record.features == len(record.features)).all()
            assert record.metadata().num_patches == len(record.features)
    assert all(process.poll() is None for process in processes)
    for process in processes:
        finish(process)
    assert seen == {40, 60}
    assert store.slide_ids == ("same",)


def test_two_writers_of_different_slides_make_the_root_together(tmp_path):
    processes = [start(tmp_path / "store", name, 40) for name in ("a", "b")]
    time.sleep(0.5)
    assert all(process.poll() is None for process in processes)
    for process in processes:
        finish(process)
    store = FeatureStore(tmp_path / "store")
    assert check_whole(store) == len(store.slide_ids) >= 2
    assert {slide_id[0] for slide_id in store.slide_ids} == {"a", "b"}


def test_without_overwrite_the_second_of_two_is_refused(store, make_record):
    """Both have looked before either has written."""
    barrier = threading.Barrier(2)
    outcomes: list[str] = []

    def write(num_patches):
        record = make_record(num_patches=num_patches)
        barrier.wait()
        try:
            writer.write_slide(store.path, record, replace=False)
        except StoreError as error:
            outcomes.append(str(error))
        else:
            outcomes.append(f"wrote {num_patches}")

    threads = [threading.Thread(target=write, args=(count,)) for count in (3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done, refused = sorted(outcomes, key=lambda text: not text.startswith("wrote"))
    assert "already in the store" in refused
    assert done == f"wrote {len(store.read('slide-1').grid)}"


def test_leftover_files_and_links_are_removed_without_following(store, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    (store.path / "__tmp-1").symlink_to(precious)
    (store.path / "__tmp-2").write_text("x")
    assert store.remove_leftovers(older_than_s=-1.0) == ["__tmp-1", "__tmp-2"]
    assert (precious / "file").exists()
