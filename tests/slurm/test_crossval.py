"""A cross-validation as a job array, each of whose trainings is told to stop once, writes one summary."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from span_sparse.cli import slurm

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


def test_an_array_of_folds_writes_one_summary(submit, configuration, tiny_cohort, tmp_path) -> None:
    sides = ["train"] * 9 + ["val"] * 4 + ["test"] * 4
    tiny_cohort.change(split=None, fold_0=sides, fold_1=sides[4:] + sides[:4])
    config = configuration("cv", {"0:4": "SIGUSR1@0"}, max_epochs=1)
    own = ["--config", str(config), "--output", str(tmp_path / "cv")]
    words = ["crossval", "--cpu", "--jobs", "2", "--cpus-per-task", "1", "--mem", "1G", "--", *own]
    script = slurm.job_script(slurm.build_parser().parse_args(words))
    array = submit(script, f"--output={tmp_path}/%a.log", name="crossval")
    tasks = [array.task(number) for number in (0, 1)]
    (wrapped,) = [line.split('--wrap "')[1].rstrip('"') for line in script.splitlines() if "--wrap" in line]
    summary = submit(f"#!/bin/bash\n{wrapped}\n", f"--dependency=afterok:{array.number}", name="summary")
    for task in tasks:
        assert task.wait() == "COMPLETED", (tmp_path / f"{task.number[-1]}.log").read_text()
        assert task.values()["Restarts"] == "1"
    assert summary.wait() == "COMPLETED", summary.text()
    content = json.loads((tmp_path / "cv" / "summary.json").read_text())
    assert content["folds"] == ["fold_0", "fold_1"]
    assert content["num_runs"] == 2
    table = pd.read_csv(tmp_path / "cv" / "summary.csv")
    assert len(table) == 2
    predictions = pd.read_csv(tmp_path / "cv" / "pooled_seed0" / "predictions.csv")
    assert len(predictions) == 8
    assert not list((tmp_path / "cv").rglob("resume.ckpt"))
