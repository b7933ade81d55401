"""A training of two processes under a real scheduler, preempted and told to stop, ends as an undisturbed one."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch

from span_sparse.cli import slurm

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

NUM_EPOCHS, NUM_BATCHES = 3, 6
"""Batches of a process and epoch: 11 slides on two processes, one a batch; gradients of two accumulated."""


@pytest.fixture
def training(submit, configuration, tmp_path):
    """Submits a training of its own run folder, with signals as planned."""

    def train(run: str, plan: dict[str, str], node: str, processes: int = 2, limit: str = "--time=30"):
        path = configuration(run, plan, max_epochs=NUM_EPOCHS, accumulate_grad_batches=2)
        words = ["train", "--cpu", "--processes-per-node", str(processes), "--cpus-per-task", "1", "--mem", "1G"]
        words += [*limit.split(), "--partition", "low", f"--directive=[--nodelist={node}]", "--", "--config", str(path)]
        return submit(slurm.job_script(slurm.build_parser().parse_args(words)), name=run)

    return train


def checkpoint(run: Path, name: str) -> dict:
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def validations(run: Path) -> pd.DataFrame:
    tables = [pd.read_csv(path) for path in sorted(run.glob("logs/version_*/metrics.csv"))]
    rows = pd.concat(tables).dropna(subset="val_loss")
    return rows[["epoch", "step", "val_loss"]].sort_values("epoch").reset_index(drop=True)


def test_a_preempted_training_ends_as_an_undisturbed_one(training, submit, tmp_path) -> None:
    """Preempted at a random step; then, in the last batch of an epoch, one of its processes is told to stop."""
    place = f"{random.randrange(2)}:{random.randrange(NUM_BATCHES)}"
    print(f"preempted in epoch:batch {place}")
    undisturbed = training("whole", {}, "node2")
    plan = {place: "wait", f"{1 if place[0] == '0' and place != '0:5' else 2}:{NUM_BATCHES - 1}": "SIGUSR1@1"}
    disturbed = training("disturbed", plan, "node1")
    run = tmp_path / "disturbed"
    disturbed.wait(lambda: all((run / f"waiting-{rank}").exists() for rank in range(2)))
    more_important = submit("#!/bin/bash\nsleep 1", "--partition=high", "--nodelist=node1", "--ntasks=2", name="high")
    assert more_important.wait() == "COMPLETED"
    assert disturbed.wait() == "COMPLETED", disturbed.text()
    assert undisturbed.wait() == "COMPLETED", undisturbed.text()
    assert disturbed.values()["Restarts"] == "2"
    text = disturbed.text()
    for number in ("SIGTERM", "SIGUSR1"):
        assert text.count(f"stopped by {number} after writing {run / 'resume.ckpt'}; SLURM job") == 1
    assert text.count(f"continuing from {run / 'resume.ckpt'}") == 2
    assert "Traceback" not in text
    for name in ("best", "final"):
        ours, theirs = checkpoint(run, name), checkpoint(tmp_path / "whole", name)
        assert ours["state_dict"].keys() == theirs["state_dict"].keys()
        assert all(torch.equal(ours["state_dict"][key], theirs["state_dict"][key]) for key in ours["state_dict"])
        scores = [
            [state["best_model_score"] for key, state in found["callbacks"].items() if "val_loss" in key]
            for found in (ours, theirs)
        ]
        assert scores[0] == scores[1] != []
    assert not (run / "resume.ckpt").exists()
    pd.testing.assert_frame_equal(validations(run), validations(tmp_path / "whole"))
    assert (run / "predictions.csv").read_bytes() == (tmp_path / "whole" / "predictions.csv").read_bytes()


def test_a_training_that_meets_its_time_limit_comes_back_and_ends(training, tmp_path) -> None:
    job = training("limited", {"1:2": "wait"}, "node2", processes=1, limit="--time=1 --warning=30")
    run = tmp_path / "limited"
    assert job.wait() == "COMPLETED", job.text()
    assert int(job.values()["Restarts"]) >= 1
    text = job.text()
    assert f"stopped by SIGUSR1 after writing {run / 'resume.ckpt'}; SLURM job {job.number}" in text
    assert f"continuing from {run / 'resume.ckpt'}" in text
    assert "DUE TO TIME LIMIT" not in text
    assert checkpoint(run, "final")["epoch"] == NUM_EPOCHS - 1
    assert len(pd.read_csv(run / "history.csv")) == NUM_EPOCHS


def test_a_cancelled_training_does_not_come_back(training, submit, tmp_path) -> None:
    job = training("cancelled", {"1:0": "wait"}, "node2", processes=1)
    run = tmp_path / "cancelled"
    job.wait((run / "waiting-0").exists)
    subprocess.run(["scancel", job.number], check=True)
    assert job.wait() == "CANCELLED"
    assert job.values()["Restarts"] == "0"
    assert "does not come back: SLURM has ended it, because somebody cancelled it" in job.text()
    assert (run / "resume.ckpt").exists()
