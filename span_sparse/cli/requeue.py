"""What happens to the SLURM job of a training that was told to stop?

SLURM starts a job again by itself when it took the node away, but not when the job ends within the grace time, nor at
its time limit: a job that has written its checkpoint asks for it (`scontrol requeue`). A job that somebody cancelled
must not come back.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from typing import Final

_ASK: Final = ("RUNNING", "TIMEOUT")
"""States of a job that will not come back by itself, but may; after `scontrol requeue` by hand it is another."""

_TIMEOUT_S: Final = 60


def slurm_job(environment: Mapping[str, str]) -> str | None:
    """This process's job as scontrol wants it, for example `12` or `12_3` in an array; None outside of SLURM."""
    if "SLURM_ARRAY_JOB_ID" in environment and "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


def requeue(job: str) -> str:
    """Has SLURM start a job again.

    Args:
        job: `slurm_job`.

    Returns:
        Why the job does not come back; empty when it does.
    """
    try:
        shown = _scontrol("show", "job", "--oneliner", job)
        values = dict(word.split("=", 1) for word in shown.split() if "=" in word)
        if values.get("BatchFlag") != "1":
            return "it was not submitted with sbatch"
        if values.get("JobState") == "CANCELLED":
            return "it was cancelled"
        if values.get("JobState") in _ASK:
            _scontrol("requeue", job)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        return f"scontrol failed: {' '.join(str(said).split())}"
    return ""


def _scontrol(*words: str) -> str:
    command = ["scontrol", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S).stdout
