"""A training that is stopped at any step and started again ends as if nothing had happened: real signals, one process.

Several processes under a real scheduler: tests/slurm.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch

from span_sparse.datasets.prefetch import Placement
from span_sparse.training import TaskModule

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
from fake_lane import FakeLane

SETTINGS = (
    *("--data.init_args.batch_size", 1, "--trainer.max_epochs", 3, "--trainer.accumulate_grad_batches", 2),
    *("--model.init_args.network.init_args.dropout_input", 0.2),
)  # 6 training slides: 6 batches and 3 steps of the optimiser an epoch


@pytest.fixture
def train(command, fit_yaml, tmp_path, monkeypatch):
    """Runs `span fit`, sending itself a signal in the steps given (counted from 0 over all starts); the exit code."""
    config = json.loads(fit_yaml.read_text())
    every_epoch = {"filename": "final", "enable_version_counter": False}
    config["trainer"]["callbacks"].append(
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": every_epoch}
    )
    fit_yaml.write_text(json.dumps(config))
    step_of_training = TaskModule.training_step
    count = 0

    def run(run_dir: str, *words: object, signals: dict[int, signal.Signals] | None = None) -> int:
        def step(self: TaskModule, batch, batch_index):
            nonlocal count
            if count in (signals or {}):
                os.kill(os.getpid(), signals[count])
            count += 1
            return step_of_training(self, batch, batch_index)

        monkeypatch.setattr(TaskModule, "training_step", step)
        return command(
            "span", "fit", "--config", fit_yaml, *SETTINGS, "--trainer.default_root_dir", tmp_path / run_dir, *words
        )

    return run


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def same(first: Path, second: Path) -> bool:
    ours, theirs = weights(first), weights(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def history(run: Path) -> pd.DataFrame:
    """The logged figures of every epoch, from the logs of all starts."""
    tables = [pd.read_csv(path) for path in sorted(run.glob("logs/version_*/metrics.csv"))]
    rows = pd.concat(tables).groupby("epoch").first().dropna(subset="train_loss").reset_index()
    kept = pd.read_csv(run / "history.csv")
    assert kept["epoch"].tolist() == rows["epoch"].tolist()
    assert (kept["learning_rate"] > 0).all()
    assert (kept["seconds"] < 1000).all()
    return rows[["epoch", "step", "train_loss", *(name for name in rows if name.startswith("val_"))]]


@pytest.mark.parametrize("steps", [[0], [5], [6, 13], [17]], ids=lambda steps: "-".join(map(str, steps)))
def test_a_stopped_training_ends_as_an_undisturbed_one(train, tiny_cohort, tmp_path, capsys, steps) -> None:
    """Within accumulated gradients, in the last batch of an epoch, twice, in the last batch of all."""
    tiny_cohort.change(split=["" if side == "test" else side for side in tiny_cohort.frame["split"]])
    assert train("whole") == 0
    order = {18 + step: number for step, number in zip(steps, (signal.SIGTERM, signal.SIGUSR1), strict=False)}
    for number in order.values():
        assert train("stopped", signals=order) == 128 + number
        shown = capsys.readouterr().err
        assert f"stopped by {number.name} after writing {tmp_path / 'stopped' / 'resume.ckpt'}" in shown
        assert "The same command goes on there" in shown
    assert train("stopped") == 0
    assert f"continuing from {tmp_path / 'stopped' / 'resume.ckpt'}" in capsys.readouterr().out
    for name in ("final", "best"):
        assert same(*(tmp_path / run / "checkpoints" / f"{name}.ckpt" for run in ("whole", "stopped")))
    assert not (tmp_path / "stopped" / "resume.ckpt").exists()
    assert not (tmp_path / "whole" / "resume.ckpt").exists()
    pd.testing.assert_frame_equal(history(tmp_path / "stopped"), history(tmp_path / "whole"))


def test_batches_that_were_ready_and_not_trained_on_come_again(train, tmp_path, monkeypatch) -> None:
    """Three batches lie ready on the device when the signal comes."""
    assert train("whole") == 0
    ahead = Placement(torch.device("cpu"), depth=3, lane=FakeLane)
    monkeypatch.setattr("span_sparse.datasets.datamodule.placement_for", lambda device, network: ahead)
    assert train("stopped", signals={18 + 7: signal.SIGTERM}) == 128 + signal.SIGTERM
    assert train("stopped") == 0
    assert same(*(tmp_path / run / "checkpoints" / "final.ckpt" for run in ("whole", "stopped")))


def test_ctrl_c_stops_a_training_as_other_signals_do(train, tmp_path, capsys, monkeypatch) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setattr("span_sparse.cli.fit.requeue", lambda _: pytest.fail("a job that was interrupted came back"))
    assert train("whole") == 0
    assert train("stopped", signals={18 + 4: signal.SIGINT}) == 130
    shown = capsys.readouterr().err
    assert f"stopped by SIGINT after writing {tmp_path / 'stopped' / 'resume.ckpt'}. The same command goes on" in shown
    assert train("stopped") == 0
    assert same(*(tmp_path / run / "checkpoints" / "final.ckpt" for run in ("whole", "stopped")))


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """As on a full disk, writing more than this into a file fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def errors(shown: str) -> list[str]:
    return [line for line in shown.splitlines() if line.startswith("error: ")]


def test_a_full_disk_ends_the_training_with_one_line_and_earlier_checkpoints(train, tmp_path, capsys) -> None:
    assert train("run") == 0
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    before = best.read_bytes()
    capsys.readouterr()
    with files_of_at_most(len(before) // 2):
        assert train("run") == 1
    (error,) = errors(capsys.readouterr().err)
    assert re.search(r"best\.ckpt: the checkpoint \(0\.\d MiB\) cannot be written: File too large", error)
    assert best.read_bytes() == before
    assert train("run") == 0


def test_a_stop_that_cannot_be_saved_is_an_error(train, tmp_path, capsys) -> None:
    assert train("run") == 0
    size = (tmp_path / "run" / "checkpoints" / "best.ckpt").stat().st_size
    with files_of_at_most(size // 2):
        assert train("run", signals={18: signal.SIGTERM}) == 1
    (error,) = errors(capsys.readouterr().err)
    assert "resume.ckpt: the checkpoint" in error
    assert not (tmp_path / "run" / "resume.ckpt").exists()


def test_workers_and_another_number_of_slides(train, tiny_cohort, tmp_path, capsys) -> None:
    """Workers that read ahead change nothing; an epoch of other slides cannot go on in its middle."""
    workers = ("--data.init_args.num_workers", 1)
    assert train("whole") == 0
    assert train("stopped", *workers, signals={25: signal.SIGTERM}) == 143
    splits = tiny_cohort.frame["split"].tolist()
    tiny_cohort.change(split=["", *splits[1:]])
    assert train("stopped", *workers) == 1
    (error,) = errors(capsys.readouterr().err)
    assert "slides: 5 != 6" in error
    tiny_cohort.change(split=splits)
    assert train("stopped", *workers) == 0
    assert same(*(tmp_path / run / "checkpoints" / "final.ckpt" for run in ("whole", "stopped")))
    pd.testing.assert_frame_equal(history(tmp_path / "stopped"), history(tmp_path / "whole"))


def test_a_job_killed_during_the_test_does_not_train_again(train, tmp_path, monkeypatch, capsys) -> None:
    test_step, training_step = TaskModule.test_step, TaskModule.training_step

    def killed(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TaskModule, "test_step", killed)
    assert train("run") != 0
    assert (tmp_path / "run" / "resume.ckpt").exists()
    monkeypatch.setattr(TaskModule, "test_step", test_step)
    assert train("run", signals={18: signal.SIGKILL}) == 0  # a further step of training would end this test badly
    assert TaskModule.training_step is not training_step
    assert (tmp_path / "run" / "metrics.json").exists()
    assert not (tmp_path / "run" / "resume.ckpt").exists()


def test_the_checkpoint_of_a_stop_holds_plain_values_only(train, tmp_path) -> None:
    assert train("run", signals={2: signal.SIGUSR1}) == 138
    content = torch.load(tmp_path / "run" / "resume.ckpt", weights_only=True)
    assert content["global_step"] == 2
    assert len(content["random_states"]) == len(content["epoch_sums"]) == 1
    assert content["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["batches_taken"] == 4


@pytest.mark.parametrize(
    ("words", "step", "num_validations"),
    [(("--trainer.check_val_every_n_epoch", 3), 5, 1), (("--trainer.val_check_interval", 2), 3, 9)],
)
def test_epochs_without_a_validation_and_with_several(train, tmp_path, words, step, num_validations) -> None:
    assert train("whole", *words) == 0
    assert train("stopped", *words, signals={18 + step: signal.SIGTERM}) == 143
    assert train("stopped", *words) == 0
    assert same(*(tmp_path / run / "checkpoints" / "best.ckpt" for run in ("whole", "stopped")))
    losses = []
    for run in ("whole", "stopped"):
        logs = pd.concat([pd.read_csv(path) for path in sorted((tmp_path / run).glob("logs/version_*/metrics.csv"))])
        losses.append(logs.dropna(subset="val_loss")[["epoch", "step", "val_loss"]].values.tolist())
    assert losses[0] == losses[1]
    assert len(losses[0]) == num_validations
