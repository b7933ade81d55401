"""A killed extraction leaves whole slides only, and the resumed store equals an uninterrupted one, byte for byte."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

from span_sparse.cli.extract import build_parser, run
from span_sparse.extract.process_list import process_list_path, read_process_list
from span_sparse.store import FeatureStore, validate_store

NUM_SLIDES = 5
OPTIONS = ("--patch-size", "32", "--target-mpp", "1.0")


def write_slides(root: Path) -> None:
    """Slides of 12 × 12 patches of coloured noise."""
    (root / "slides").mkdir()
    for index in range(NUM_SLIDES):
        noise = np.random.default_rng(index).integers(60, 200, (48, 48, 3), dtype=np.uint8)
        picture = np.kron(noise, np.ones((8, 8, 1), np.uint8))
        picture[..., 0] = 230
        tifffile.imwrite(
            root / "slides" / f"s{index}.tiff", picture, tile=(64, 64), photometric="rgb", compression="zlib",
            resolution=(10_000, 10_000), resolutionunit="CENTIMETER",
        )  # fmt: skip
    (root / "cohort.csv").write_text("slide_id\n" + "".join(f"s{index}\n" for index in range(NUM_SLIDES)))


def arguments(root: Path, store: Path, workers: int) -> list[str]:
    places = ["--cohort", str(root / "cohort.csv"), "--slides", str(root / "slides"), "--store", str(store)]
    return [*places, *OPTIONS, "--workers", str(workers)]


def start(root: Path, store: Path, workers: int) -> subprocess.Popen[bytes]:
    """The command in a process of its own, past its imports: the store's folder is there."""
    command = [sys.executable, "-m", "span_sparse", "extract", *arguments(root, store, workers)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not store.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return process


def files_of(store: Path, slide_id: str) -> dict[str, bytes]:
    """Every file of a slide in the store."""
    folder = next(path for path in store.iterdir() if slide_id in path.name and not path.name.startswith("_"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_kill_at_ten_random_moments(tmp_path, capsys):
    write_slides(tmp_path)
    reference = tmp_path / "reference"
    began = start(tmp_path, reference, 1), time.monotonic()
    assert began[0].wait(timeout=60) == 0
    duration_s = time.monotonic() - began[1]
    expected = {f"s{index}": files_of(reference, f"s{index}") for index in range(NUM_SLIDES)}
    moments, complete_counts = random.Random(20), []
    for attempt in range(10):
        store, workers = tmp_path / f"store{attempt}", 1 if attempt < 7 else 2
        process = start(tmp_path, store, workers)
        time.sleep(moments.uniform(0, duration_s))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if (store / "zarr.json").exists():
            assert all("killed writer" in problem.message for problem in validate_store(store))
            complete_counts.append(len(FeatureStore(store).slide_ids))
            for slide_id in FeatureStore(store).slide_ids:
                assert files_of(store, slide_id) == expected[slide_id]
        assert run(build_parser().parse_args(arguments(tmp_path, store, 1))) == 0
        assert validate_store(store) == []
        for slide_id, files in expected.items():
            assert files_of(store, slide_id) == files
        rows = read_process_list(process_list_path(store))
        assert [(row.slide_id, row.status, row.num_patches) for row in rows] == [
            (f"s{index}", "done", 144) for index in range(NUM_SLIDES)
        ]
    assert any(0 < count < NUM_SLIDES for count in complete_counts), f"no kill fell between slides: {complete_counts}"
    capsys.readouterr()
