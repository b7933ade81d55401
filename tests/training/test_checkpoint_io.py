from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from span_sparse.errors import CheckpointError
from span_sparse.training.checkpoint_io import AtomicCheckpointIO

KILLED = """
import os, signal, sys, torch
from span_sparse.training.checkpoint_io import AtomicCheckpointIO
when, path = sys.argv[1:]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def half(descriptor):
    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
    die()

{"writing": lambda: setattr(os, "fsync", half), "flushed": lambda: setattr(os, "replace", die)}[when]()
if when == "flushed":
    import pathlib
    pathlib.Path.replace = die
AtomicCheckpointIO().save_checkpoint({"number": 2, "weights": torch.ones(100_000)}, path)
"""


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"number": 1, "weights": torch.zeros(10)}, path)
    return path


def number(path: Path) -> int:
    return AtomicCheckpointIO().load_checkpoint(path, weights_only=True)["number"]


@pytest.mark.parametrize("when", ["writing", "flushed"])
def test_the_earlier_checkpoint_survives_a_kill(earlier: Path, when: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, when, earlier], capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(earlier.parent.iterdir())) == 2  # a temporary file of another name is left
    assert number(earlier) == 1
    AtomicCheckpointIO().save_checkpoint({"number": 3}, earlier)
    assert number(earlier) == 3


def test_a_full_disk_is_told_and_the_earlier_checkpoint_remains(earlier: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(CheckpointError) as caught:
            AtomicCheckpointIO().save_checkpoint({"number": 2, "weights": torch.ones(100_000)}, earlier)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    message = re.escape(f"{earlier}: the checkpoint (0.4 MiB) cannot be written: File too large; earlier checkpoints ")
    assert re.match(message, str(caught.value))
    assert [path.name for path in earlier.parent.iterdir()] == ["last.ckpt"]
    assert number(earlier) == 1


def test_it_is_written_into_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"number": 4}, path)
    assert number(path) == 4
    assert [entry.name for entry in path.parent.iterdir()] == ["last.ckpt"]
