"""On which machine, with which versions, from which data and which code did a run come about?

Only what is needed to repeat or explain it: no environment variables, no names of users or hosts.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import lightning
import torch

from span_sparse.cohort import read_cohort
from span_sparse.datasets.datamodule import SPLITS, SlideDataModule
from span_sparse.datasets.splits import column_hash
from span_sparse.store import FORMAT_VERSION, FeatureStore
from span_sparse.version import NAME, package_version, requirements

SLURM_FACTS: Final = ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID", "RESTART_COUNT", "JOB_NUM_NODES", "NTASKS")
GIT_TIMEOUT_S: Final = 10.0


def environment(trainer: lightning.Trainer) -> dict[str, Any]:
    """Python, platform, versions of the packages this one needs, devices, SLURM job."""
    slurm = {name.lower(): os.environ[f"SLURM_{name}"] for name in SLURM_FACTS if f"SLURM_{name}" in os.environ}
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _packages(),
        "devices": {
            "accelerator": type(trainer.accelerator).__name__.removesuffix("Accelerator").lower(),
            "processes": trainer.world_size,
            "nodes": trainer.num_nodes,
            "precision": str(trainer.precision),
            "cuda": torch.version.cuda,
            "gpus": names,
            "cpu_cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "slurm": slurm or None,
    }


def command_line() -> str:
    """What was typed, with the program's name instead of its path."""
    program = Path(sys.argv[0]).name
    words = ["python", "-m", "span_sparse"] if program == "__main__.py" else [program]
    return shlex.join([*words, *sys.argv[1:]])


def git_revision(folder: Path) -> dict[str, Any] | None:
    """Commit of a working copy, and whether files git knows were changed since; None where there is none."""
    revision = _git(folder, "rev-parse", "HEAD")
    if revision is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"revision": revision, "dirty": None if changed is None else bool(changed)}


def data_identity(data: SlideDataModule) -> dict[str, Any]:
    """Which slides on which side, named by the split's hash, and which features."""
    store = FeatureStore(data.store_path)
    return {
        "cohort": str(data.cohort_path),
        "split": data.split_column,
        "split_hash": column_hash(read_cohort(data.cohort_path), data.split_column),
        "num_slides": {split: len(data.items(split)) for split in SPLITS},
        "store": {
            "path": str(data.store_path),
            "format": FORMAT_VERSION,
            "num_slides": len(store.slide_ids),
            "encoder": data.task.encoder.as_dict(),
            "lattice": data.task.lattice.as_dict(),
        },
    }


def _packages() -> dict[str, str]:
    """Installed ones of this package and its requirements, extras included."""
    names = {"wandb"}
    for line in requirements():
        names.update(re.findall(r"^[\w.-]+", line))
    found = {NAME: package_version()}
    for name in sorted(names - {NAME}):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_S,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
