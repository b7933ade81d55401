"""What a run writes about itself."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch

from span_sparse.cli.provenance import git_revision
from span_sparse.training import SlideClassifier


def read(run: Path, name: str = "run.json"):
    return json.loads((run / name).read_text())


def test_a_finished_run_says_what_it_was(command, fit_yaml, tiny_cohort, tmp_path) -> None:
    assert command("span", "fit", "--config", fit_yaml) == 0
    run = tmp_path / "run"
    record, metrics, environment = read(run), read(run, "metrics.json"), read(run, "environment.json")
    assert (record["status"], record["error"], record["resumed"]) == ("finished", None, [])
    assert record["started"] <= record["ended"]
    assert (record["model"], record["network"], record["task"]) == ("SlideClassifier", "SpanMil", "classification")
    assert record["command"] == f"span fit --config {fit_yaml}"
    assert record["seed"] == metrics["run"]["seed"] == 1
    assert record["data"]["num_slides"] == {"train": 6, "val": 4, "test": 7}
    assert record["data"]["store"]["num_slides"] == 17
    assert record["data"]["store"]["encoder"]["name"] == "stain-texture"
    assert record["data"]["store"]["lattice"]["patch_size_px"] == 32
    lines = [json.dumps([row.slide_id, 0, row.split]) + "\n" for row in tiny_cohort.frame.itertuples()]
    expected = "sha256:" + hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
    assert record["data"]["split_hash"] == metrics["run"]["split_hash"] == expected
    assert record["selection"]["selected_by"] == metrics["run"]["selected_by"] == "lowest val_loss of 2 epochs"
    assert environment["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert environment["devices"]["accelerator"] == "cpu"
    assert environment["devices"]["processes"] == 1


def test_the_history_is_one_row_an_epoch(command, fit_yaml, tmp_path) -> None:
    assert command("span", "fit", "--config", fit_yaml, "--trainer.max_epochs", 3) == 0
    run = tmp_path / "run"
    history = pd.read_csv(run / "history.csv")
    assert history["epoch"].tolist() == [0, 1, 2]
    logged = pd.read_csv(run / "logs" / "version_0" / "metrics.csv")
    for name in ("train_loss", "val_loss", "val_auc"):
        expected = logged.dropna(subset=name).set_index("epoch")[name].tolist()
        assert history[name].tolist() == pytest.approx(expected, rel=1e-4)
    assert history["learning_rate"].tolist() == pytest.approx([0.003, 0.00225, 0.00075])  # half a cosine
    assert (history["seconds"] > 0).all()
    best = read(run)["selection"]["best_epoch"]
    assert best == history["val_loss"].idxmin()
    last = run / "checkpoints" / "last.ckpt"
    assert command("span", "fit", "--config", fit_yaml, "--ckpt_path", last, "--trainer.max_epochs", 4) == 0
    resumed = pd.read_csv(run / "history.csv")
    assert resumed["epoch"].tolist() == [0, 1, 2, 3]
    kept = best + 1  # `last.ckpt` is written together with a better `best.ckpt`
    assert resumed["val_loss"].tolist()[:kept] == history["val_loss"].tolist()[:kept]
    assert len(read(run)["resumed"]) == 1


def test_an_epoch_without_validation_has_no_validation_figures(command, fit_yaml, tmp_path) -> None:
    words = ("--trainer.max_epochs", 2, "--trainer.check_val_every_n_epoch", 2)
    assert command("span", "fit", "--config", fit_yaml, *words) == 0
    assert pd.read_csv(tmp_path / "run" / "history.csv")["val_loss"].notna().tolist() == [False, True]


def with_early_stopping(fit_yaml: Path, **settings) -> None:
    content = json.loads(fit_yaml.read_text())
    stopping = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": settings}
    content["trainer"]["callbacks"].append(stopping)
    fit_yaml.write_text(json.dumps(content))


def test_early_stopping_is_part_of_the_rule(command, fit_yaml, tmp_path) -> None:
    with_early_stopping(fit_yaml, monitor="val_loss", patience=1, min_delta=100.0)
    assert command("span", "fit", "--config", fit_yaml, "--trainer.max_epochs", 9) == 0
    chosen = read(tmp_path / "run", "metrics.json")["run"]
    assert chosen["early_stopping"] == {"monitor": "val_loss", "patience": 1, "stopped_epoch": 1}
    assert chosen["selected_by"] == (
        "lowest val_loss of 2 epochs, stopped early: val_loss did not improve for 1 epochs"
    )


@pytest.mark.parametrize("monitor", ["train_loss", "test_auc"])
def test_weights_are_chosen_on_validation_alone(command, fit_yaml, tmp_path, capsys, monitor) -> None:
    with_early_stopping(fit_yaml, monitor=monitor)
    assert command("span", "fit", "--config", fit_yaml) == 1
    assert f"EarlyStopping monitors '{monitor}'; weights are chosen on the validation side" in capsys.readouterr().err
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_run_that_broke_says_so_and_is_replaced_by_the_next(command, fit_yaml, tmp_path, monkeypatch) -> None:
    run = tmp_path / "run"

    def broken(*_) -> None:
        assert read(run)["status"] == "running"
        raise RuntimeError("out of luck\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(SlideClassifier, "training_step", broken)
        with pytest.raises(RuntimeError):
            command("span", "fit", "--config", fit_yaml)
    assert (read(run)["status"], read(run)["error"]) == ("failed", "RuntimeError: out of luck")

    def killed(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SlideClassifier, "training_step", killed)
        assert command("span", "fit", "--config", fit_yaml) != 0
    assert read(run)["status"] == "interrupted"
    assert command("span", "fit", "--config", fit_yaml, "--data.init_args.split", "absent") == 1
    assert read(run)["status"] == "interrupted"  # a run that is refused has replaced nothing
    assert command("span", "fit", "--config", fit_yaml) == 0
    assert read(run)["status"] == "finished"


def test_the_revision_of_the_code(tmp_path) -> None:
    assert git_revision(tmp_path) is None

    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        return subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    (tmp_path / "code").write_text("1")
    git("add", "code")
    git("commit", "-qm", "first")
    revision = git("rev-parse", "HEAD").strip()
    (tmp_path / "notes").write_text("not code")
    assert git_revision(tmp_path) == {"revision": revision, "dirty": False}
    (tmp_path / "code").write_text("2")
    assert git_revision(tmp_path) == {"revision": revision, "dirty": True}
