"""Signals, full disks, folders that cannot be written: the store stays valid, the list tells, a resume completes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from span_sparse.cli import extract
from span_sparse.extract.process_list import process_list_path, read_process_list
from span_sparse.store import FeatureStore, validate_store
from span_sparse.store.naming import TEMPORARY_PREFIX

from .conftest import Places

NAMES = [f"s{index}" for index in range(6)]
OPTIONS = ["--patch-size", "32", "--target-mpp", "1", "--tissue.min_object_mm2", "0.001"]


def command(places: Places, *more: str) -> list[str]:
    table = places.cohort(*NAMES).path
    places_ = ["--cohort", str(table), "--slides", str(places.slides), "--store", str(places.store)]
    return [sys.executable, "-m", "span_sparse", "extract", *places_, *OPTIONS, *more]


def run(arguments: list[str], **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False, **options)


def assert_whole(places: Places) -> None:
    """What was left is valid; the same command then completes it."""
    if (places.store / "zarr.json").exists():
        problems = [problem for problem in validate_store(places.store) if "killed writer" not in problem.message]
        assert problems == []
    arguments = command(places)[4:]
    assert extract.run(extract.build_parser().parse_args(arguments)) == 0
    assert validate_store(places.store) == []
    assert FeatureStore(places.store).slide_ids == tuple(NAMES)
    rows = read_process_list(process_list_path(places.store))
    assert [(row.slide_id, row.status) for row in rows] == [(name, "done") for name in NAMES]


@pytest.fixture
def slides(places: Places) -> Places:
    for name in NAMES:
        places.slide(name, 24, 24)
    return places


def group(leader: int) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] != "Z":
            found.append((entry / "cmdline").read_text())
    return found


@pytest.mark.parametrize(
    ("number", "code", "to_group"),
    [(signal.SIGTERM, 143, True), (signal.SIGINT, 130, True), (signal.SIGTERM, 143, False)],
)
def test_told_to_end(slides: Places, number, code, to_group):
    """A cluster and a terminal signal every process of the group, `kill` one."""
    arguments = command(slides, "--workers", "2", "--batch-size", "8")
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not process_list_path(slides.store).exists():  # the first slide is done
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    (os.killpg if to_group else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=60)
    was_faster = FeatureStore(slides.store).slide_ids == tuple(NAMES)
    assert process.returncode == code or (was_faster and process.returncode == 0), errors
    assert "Traceback" not in errors
    assert "died" not in errors
    deadline = time.monotonic() + 20
    while (
        left := group(process.pid)
    ) and time.monotonic() < deadline:  # Python's resource tracker ends after its parent
        time.sleep(0.01)
    assert left == []
    assert list(slides.store.glob(f"{TEMPORARY_PREFIX}*")) == []
    rows = read_process_list(process_list_path(slides.store))
    assert {row.status for row in rows} == {"done"}
    assert {row.slide_id for row in rows} == set(FeatureStore(slides.store).slide_ids)
    assert_whole(slides)


def test_files_may_not_grow(slides: Places):
    """A quota as the system enforces it: features of 294,912 bytes do not fit, lists and pictures do."""
    limit = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); "
    module = "sys.argv = ['span', *sys.argv[1:]]; runpy.run_module('span_sparse', run_name='__main__')"
    arguments = command(slides)
    process = run([arguments[0], "-c", limit + module, *arguments[3:]])
    assert process.returncode == 1
    assert "File too large" in process.stderr
    assert "stopped, since no slide can be written" in process.stderr
    assert "Traceback" not in process.stderr
    (row, *_) = read_process_list(process_list_path(slides.store))
    assert row.status == "failed"
    assert "File too large" in row.error
    assert FeatureStore(slides.store).slide_ids == ()
    assert_whole(slides)


@pytest.fixture
def small_disk(places: Places):
    """The folder of the store as a file system of 1 MB, where this user may mount one."""
    folder = places.store.parent
    folder.mkdir()
    mounted = run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]).returncode == 0
    yield mounted
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(slides: Places, small_disk: bool):
    if not small_disk:  # `test_files_may_not_grow` is the same without the right to mount
        assert os.geteuid() != 0 or shutil.which("mount") is None or run(["mount"]).returncode == 0
        pytest.skip("this user may not mount a small file system")
    process = run(command(slides, "--workers", "2"))
    assert process.returncode == 1
    assert "No space left on device" in process.stderr
    assert "Traceback" not in process.stderr
    assert validate_store(slides.store) == []
    complete = FeatureStore(slides.store).slide_ids
    assert 0 < len(complete) < len(NAMES)
    rows = {row.slide_id: row for row in read_process_list(process_list_path(slides.store))}
    assert {name for name, row in rows.items() if row.status == "done"} == set(complete)
    assert any("No space left on device" in row.error for row in rows.values())
    subprocess.run(["mount", "-o", "remount,size=32m", str(slides.store.parent)], check=True)
    assert_whole(slides)


def test_a_store_that_cannot_be_written(slides: Places, small_disk: bool):
    """A folder where the store should be: neither root nor anybody can write there."""
    if small_disk:
        subprocess.run(["mount", "-o", "remount,ro", str(slides.store.parent)], check=True)
    else:
        slides.store.write_text("a file")
    process = run(command(slides))
    assert process.returncode == 1
    assert process.stderr.startswith("error: ")
    assert str(slides.store) in process.stderr
    assert "Traceback" not in process.stderr
    if small_disk:
        subprocess.run(["mount", "-o", "remount,rw,size=32m", str(slides.store.parent)], check=True)
    else:
        slides.store.unlink()
    assert_whole(slides)


def test_two_commands_on_one_store(slides: Places):
    first, second = (
        subprocess.Popen(command(slides, "--batch-size", "16"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(2)
    )
    for process in (first, second):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    assert validate_store(slides.store) == []
    rows = read_process_list(process_list_path(slides.store))
    assert sorted((row.slide_id, row.status) for row in rows) == [(name, "done") for name in NAMES]
    assert_whole(slides)
