"""What happens to the SLURM job of a training that was told to stop?

SLURM starts a job again by itself when it took the node away, but not when the job ends within the grace time, nor at
its time limit: a job that has written its checkpoint asks for it (`scontrol requeue`). A job that somebody cancelled
must not come back.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from typing import Final

_TIMEOUT_S: Final = 60
_RUNNING: Final = ("RUNNING", "SIGNALING")
"""The second one is shown while SLURM hands out a signal, such as the one before the time limit."""


def slurm_job(environment: Mapping[str, str]) -> str | None:
    """This process's job as scontrol wants it, for example `12` or `12_3` in an array; None outside of SLURM."""
    if "SLURM_ARRAY_JOB_ID" in environment and "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


def requeue(environment: Mapping[str, str]) -> str:
    """Has SLURM start this process's job again, unless it does so already.

    Returns:
        Why the job does not come back; empty when it does.
    """
    job = slurm_job(environment)
    if job is None:
        return "SLURM_JOB_ID is not set"
    try:
        shown = _scontrol("show", "job", "--oneliner", job)
        values = dict(word.split("=", 1) for word in shown.split() if "=" in word)
        if values["BatchFlag"] != "1":
            return "it was not submitted with sbatch"
        if values["JobState"] in _RUNNING:
            _scontrol("requeue", job)
        elif int(values["Restarts"]) <= int(environment.get("SLURM_RESTART_COUNT", "0")):
            return "SLURM has ended it, because somebody cancelled it or its time is over"
    except (OSError, KeyError, ValueError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        return f"scontrol failed: {' '.join(str(said).split())}"
    return ""


def _scontrol(*words: str) -> str:
    command = ["scontrol", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S).stdout
