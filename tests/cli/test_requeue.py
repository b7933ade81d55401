from __future__ import annotations

from pathlib import Path

import pytest

from span_sparse.cli.requeue import requeue, slurm_job

JOB = {"SLURM_JOB_ID": "12"}


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A scontrol that shows a job of these values and notes what it is asked."""
    asked = tmp_path / "asked"

    def make(*, fails: str = "", **values: str) -> Path:
        shown = " ".join(f"{key}={value}" for key, value in values.items())
        script = tmp_path / "scontrol"
        script.write_text(
            f'#!/bin/bash\necho "$*" >> {asked}\n'
            f'if [ "$1" = "{fails}" ]; then echo "slurm_load_jobs error: it is down" >&2; exit 1; fi\n'
            f'echo "JobId=12 JobName=a=b {shown} Command=/x y"\n'
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        return asked

    return make


@pytest.mark.parametrize("state", ["RUNNING", "SIGNALING"])
def test_a_running_job_is_asked_to_come_back(scontrol, state) -> None:
    """SLURM shows the second state while it hands out the signal before the time limit."""
    asked = scontrol(JobState=state, BatchFlag="1", Restarts="0")
    assert requeue(JOB) == ""
    assert asked.read_text().splitlines() == ["show job --oneliner 12", "requeue 12"]


def test_a_task_of_an_array_comes_back_alone(scontrol) -> None:
    asked = scontrol(JobState="RUNNING", BatchFlag="1", Restarts="0")
    environment = {"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    assert slurm_job(environment) == "12_3"
    assert requeue(environment) == ""
    assert asked.read_text().splitlines()[-1] == "requeue 12_3"


@pytest.mark.parametrize("state", ["COMPLETING", "PENDING"])
def test_a_job_that_comes_back_anyway_is_left_alone(scontrol, state) -> None:
    asked = scontrol(JobState=state, BatchFlag="1", Restarts="3")
    assert requeue(JOB | {"SLURM_RESTART_COUNT": "2"}) == ""
    assert "requeue" not in asked.read_text()


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "TIMEOUT"])
def test_a_cancelled_job_stays_away(scontrol, state) -> None:
    asked = scontrol(JobState=state, BatchFlag="1", Restarts="2")
    assert "somebody cancelled it" in requeue(JOB | {"SLURM_RESTART_COUNT": "2"})
    assert "requeue" not in asked.read_text()


def test_what_cannot_come_back_says_why(scontrol, tmp_path, monkeypatch) -> None:
    assert requeue({}) == "SLURM_JOB_ID is not set"
    scontrol(JobState="RUNNING", BatchFlag="0", Restarts="0")
    assert requeue(JOB) == "it was not submitted with sbatch"
    for fails in ("show", "requeue"):
        scontrol(JobState="RUNNING", BatchFlag="1", Restarts="0", fails=fails)
        assert requeue(JOB) == "scontrol failed: slurm_load_jobs error: it is down"
    scontrol(JobState="COMPLETING", BatchFlag="1")
    assert requeue(JOB) == "scontrol failed: 'Restarts'"
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert "No such file" in requeue(JOB)
