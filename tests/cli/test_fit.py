from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from span_sparse.training import SlideClassifier

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def files(folder: Path) -> set[str]:
    """Paths below a folder; TensorBoard's end with the time."""
    paths = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {re.sub(r"(events\.out\.tfevents)\..*", r"\1", path) for path in paths}


@pytest.mark.parametrize("name", ["lightning", "span"])
def test_fit_from_a_yaml_to_tested_predictions(command, fit_yaml, tiny_cohort, tmp_path, capsys, name) -> None:
    assert command(name, "fit", "--config", fit_yaml) == 0
    run = tmp_path / "run"
    assert files(run) == {
        "calibration.png", "calibration.svg", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml",
        "confusion.png", "confusion.svg", "environment.json", "history.csv", "logs/version_0/hparams.yaml",
        "logs/version_0/metrics.csv", "metrics.json", "predictions.csv", "reliability.csv", "roc.png", "roc.svg",
        "run.json", "tensorboard/version_0/events.out.tfevents", "tensorboard/version_0/hparams.yaml",
    }  # fmt: skip
    shown = capsys.readouterr().out
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 <= metrics["test"]["auc"] <= 1
    assert metrics["run"]["selected_by"] == "lowest val_loss of 2 epochs"
    assert metrics["run"]["seed"] == 1
    assert f"test AUC {metrics['test']['auc']:.3f}" in shown
    for line in ("best checkpoint", "metrics ", "predictions ", "configuration "):
        (place,) = re.findall(rf"^{line} +(.+)$", shown, re.MULTILINE)
        assert (Path.cwd() / place).is_file()
    table = pd.read_csv(run / "predictions.csv", dtype={"slide_id": str})
    assert table["slide_id"].tolist() == [f"s{number:02d}" for number in range(10, 17)]
    assert table["y_true"].tolist() == list("abababa")
    assert set(table["split"]) == {"test"}
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert resolved["data"]["init_args"]["batch_size"] == 4
    assert resolved["model"]["init_args"]["network"]["class_path"] == "span_sparse.models.SpanMilConfig"
    history = pd.read_csv(run / "logs" / "version_0" / "metrics.csv")
    best = history.dropna(subset="val_loss").set_index("epoch")["val_loss"].idxmin()
    assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == best
    model = SlideClassifier.load_from_checkpoint(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert model.task is not None
    assert model.task.class_names == ("a", "b")


def test_the_same_seed_gives_the_same_run_and_a_re_run_replaces_it(command, fit_yaml, tmp_path, capsys) -> None:
    assert command("span", "fit", "--config", fit_yaml) == 0
    run = tmp_path / "run"
    first, names = (run / "predictions.csv").read_bytes(), files(run)
    capsys.readouterr()
    assert command("span", "fit", "--config", run / "config.yaml") == 0
    assert (run / "predictions.csv").read_bytes() == first
    shown = capsys.readouterr()
    assert "replacing the earlier run there" in shown.out
    assert "not empty" not in shown.err
    assert files(run) == names | {
        "logs/version_1/hparams.yaml", "logs/version_1/metrics.csv", "tensorboard/version_1/events.out.tfevents",
        "tensorboard/version_1/hparams.yaml",
    }  # fmt: skip
    assert command("span", "fit", "--config", fit_yaml, "--seed_everything", 2) == 0
    assert (run / "predictions.csv").read_bytes() != first


def test_a_run_that_is_replaced_has_no_metrics_until_it_is_done(command, fit_yaml, tmp_path, monkeypatch) -> None:
    assert command("span", "fit", "--config", fit_yaml) == 0

    def killed(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SlideClassifier, "training_step", killed)
    assert command("span", "fit", "--config", fit_yaml) != 0
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_resuming_continues_where_the_checkpoint_ended(command, fit_yaml, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    assert command("span", "fit", "--config", fit_yaml, "--trainer.max_epochs", 1) == 0
    last = run / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["epoch"] == 0
    changed = ("--model.init_args.class_weights", "[1, 2]", "--trainer.max_epochs", 3)
    assert command("span", "fit", "--config", fit_yaml, "--ckpt_path", last, *changed) == 0
    shown = capsys.readouterr().out
    assert "continuing from" in shown
    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] == 6  # two batches in each of three epochs
    assert saved["hyper_parameters"]["class_weights"] == [1.0, 2.0]  # the command line's, not the checkpoint's
    assert pd.read_csv(run / "logs" / "version_1" / "metrics.csv")["epoch"].min() == 1
    other = ("--model.init_args.learning_rate", "0.5")
    assert command("span", "fit", "--config", fit_yaml, "--ckpt_path", last, *other) == 1
    assert "learning_rate: 0.5 != 0.003" in capsys.readouterr().err


def test_lightning_test_computes_the_figures_again(command, fit_yaml, tmp_path, capsys) -> None:
    assert command("lightning", "fit", "--config", fit_yaml) == 0
    run = tmp_path / "run"
    expected = json.loads((run / "metrics.json").read_text())["test"]
    best = run / "checkpoints" / "best.ckpt"
    moved = f"--trainer.default_root_dir={tmp_path / 'again'}"
    assert command("lightning", "test", "--config", fit_yaml, "--ckpt_path", best, moved) == 0
    found = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert found["test"] == expected
    assert found["run"]["checkpoint"] == str(best)
    assert command("lightning", "validate", "--config", fit_yaml, "--ckpt_path", best) == 0
    assert "val_auc" in capsys.readouterr().out


def test_a_checkpoint_of_other_features_is_not_tested(command, fit_yaml, tiny_cohort, tmp_path, capsys) -> None:
    assert command("lightning", "fit", "--config", fit_yaml, "--trainer.max_epochs", 1) == 0
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    content = torch.load(best, weights_only=True)
    content["hyper_parameters"]["task"]["encoder"]["revision"] = "0"
    torch.save(content, best)
    assert command("lightning", "test", "--config", fit_yaml, "--ckpt_path", best) == 1
    assert "revision" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["fit", "test"])
@pytest.mark.parametrize("forced", [False, True])
def test_a_malicious_checkpoint_is_refused(command, fit_yaml, tmp_path, capsys, monkeypatch, verb, forced) -> None:
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"state_dict": {}, "hyper_parameters": {"x": Malicious(tmp_path / "trace")}}, tmp_path / "evil.ckpt")
    assert command("lightning", verb, "--config", fit_yaml, "--ckpt_path", tmp_path / "evil.ckpt") == 1
    shown = capsys.readouterr().err
    assert "evil.ckpt: refused" in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "trace").exists()


def test_wrong_data_and_paths_are_one_line(command, fit_yaml, tiny_cohort, tmp_path, capsys) -> None:
    def error_of(*words: object) -> str:
        assert command("lightning", "fit", "--config", fit_yaml, *words) == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0]

    assert "no such checkpoint" in error_of("--ckpt_path", tmp_path / "absent.ckpt")
    assert "fold_7" in error_of("--data.init_args.split", "fold_7")
    assert "absent" in error_of("--data.init_args.store", tmp_path / "absent")
    assert "head_channels 7 does not divide" in error_of("--model.init_args.network.init_args.head_channels", 7)
    assert "val_los" in error_of("--trainer.callbacks.monitor", "val_los")
    assert error_of("--trainer.accelerator", "gpu") or torch.cuda.is_available()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"learning_rate"',
            '"learnin_rate"',
            "model: SlideClassifier has no setting 'learnin_rate'; did you mean 'l",
        ),
        ('"head_channels"', '"head_chanels"', "model.network: SpanMilConfig has no setting 'head_chanels'; did you me"),
        ('"batch_size"', '"batch_sizes"', "data: SlideDataModule has no setting 'batch_sizes'; did you mean 'batch_si"),
        ('"max_epochs"', '"max_epoch"', "there is no setting 'trainer.max_epoch'; did you mean 'trainer.max_epochs'?"),
        ('"trainer"', '"trainr"', "there is no setting 'trainr."),
        ('"filename"', '"filenam"', "trainer.callbacks: ModelCheckpoint has no setting 'filenam'; did you mean 'filen"),
        ("SpanMilConfig", "SpanMilConfg", "there is no span_sparse.models.SpanMilConfg; did you mean 'SpanMilConfig'?"),
        ("pyramid_pooling", "pyramid_poling", "found pyramid_poling"),
        ('"learning_rate": 0.003', '"learning_rate": "fast"', "model.learning_rate: expected float, found fast"),
        ('"max_epochs": 2', '"max_epochs": "two"', 'Parser key "trainer.max_epochs"'),
        ('"seed_everything": 1', '"seed_everything": [', "Problems parsing config"),
    ],
)
def test_a_misspelt_setting_is_a_short_message(command, fit_yaml, capsys, old, new, message) -> None:
    text = fit_yaml.read_text()
    assert old in text
    fit_yaml.write_text(text.replace(old, new, 1))
    assert command("lightning", "fit", "--config", fit_yaml) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert message in shown
    assert len(shown.splitlines()) <= 6
    assert "Traceback" not in shown
    assert "usage" not in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data.init_args.batch_size", 0), "batch_size 0 must be at least 1, num_workers 0 at least 0"),
        (("--data.init_args.max_tokens", 0), "max_tokens is 0, expected at least 1, or null for no limit"),
        (("--model.init_args.focal_gamma", -1), "focal_gamma -1.0 must not be negative; 0 is cross-entropy"),
        (
            ("--trainer.callbacks+=span_sparse.training.WeightAverage", "--trainer.callbacks.decay", 2),
            "decay 2.0 of WeightAverage must be between 0 and 1",
        ),
    ],
)
def test_a_setting_that_a_class_refuses_is_its_own_message(command, fit_yaml, capsys, words, message) -> None:
    assert command("lightning", "fit", "--config", fit_yaml, *words) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("INFO")]
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {message}")


def test_a_fit_that_is_refused_leaves_an_earlier_run_as_it_is(command, fit_yaml, tiny_cohort, tmp_path) -> None:
    def content() -> dict[str, bytes]:
        kept = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and "tfevents" not in path.name]
        return {str(path): path.read_bytes() for path in kept}

    assert command("lightning", "fit", "--config", fit_yaml) == 0
    before = content()
    head_channels = ("--model.init_args.network.init_args.head_channels", 7)
    assert command("lightning", "fit", "--config", fit_yaml, *head_channels) == 1
    monitor = ("--trainer.callbacks.monitor", "test_loss")
    assert command("lightning", "fit", "--config", fit_yaml, *monitor) in (1, 2)
    tiny_cohort.change(case_id="p00")  # one patient on all sides
    assert command("lightning", "fit", "--config", fit_yaml) == 1
    assert content() == before


def test_a_store_and_a_fold_that_are_not_there(command, fit_yaml, tiny_cohort, capsys) -> None:
    for words, message in (
        (
            ("--data.init_args.store", "absent.zarr"),
            "there is no store at absent.zarr: no such folder; name the folder",
        ),
        (("--data.init_args.split", "fold_7"), f"{tiny_cohort.csv}: there is no column 'fold_7'; it has slide_id, "),
    ):
        assert command("lightning", "fit", "--config", fit_yaml, *words) == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("INFO")]
        assert len(lines) == 1
        assert lines[0].startswith(f"error: {message}")


def test_a_network_is_the_one_that_is_named(command, fit_yaml, capsys) -> None:
    """Two networks have the same settings; jsonargparse would build the first one of the union."""
    for network in ("MeanPoolingConfig", "AttentionPoolingConfig", "SpanMilConfig"):
        words = ("--model.init_args.network", f"span_sparse.models.{network}", "--print_config")
        assert command("lightning", "fit", "--config", fit_yaml, *words) == 0
        shown = yaml.safe_load(capsys.readouterr().out)
        assert shown["model"]["init_args"]["network"]["class_path"].endswith(f".{network}")


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_experiment_can_be_built(path: Path) -> None:
    from jsonargparse import ArgumentParser
    from lightning.pytorch import LightningDataModule, LightningModule, Trainer

    from span_sparse.cli import fit

    fit.enable_network_classes()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=int)
    parser.add_subclass_arguments(LightningModule, "model", required=True)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    parser.add_class_arguments(Trainer, "trainer")
    built = parser.instantiate(parser.parse_path(path))
    expected = yaml.safe_load(path.read_text())["model"]["init_args"]["network"]["class_path"]
    assert type(built.model.settings).__name__ == expected.rsplit(".", 1)[1]
    assert {"fit", "model", "data"} & set(path.read_text().replace(":", " ").split())
    assert built.trainer.max_epochs == yaml.safe_load(path.read_text())["trainer"]["max_epochs"]


def test_every_experiment_says_how_it_is_run() -> None:
    paths = sorted(EXPERIMENTS.glob("*.yaml"))
    assert EXPERIMENTS / "span.yaml" in paths
    folders = set()
    for path in paths:
        assert f"lightning fit --config experiments/{path.name}" in path.read_text()
        folders.add(yaml.safe_load(path.read_text())["trainer"]["default_root_dir"])
    assert len(folders) == len(paths)


@pytest.mark.parametrize("name", ["lightning", "span"])
def test_help_says_what_to_type(command, capsys, name) -> None:
    assert command(name, "fit", "--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: lightning fit --config FILE.yaml")
    assert "experiments/span.yaml" in shown
    assert "--ckpt_path" in shown
    assert "--weights_only" not in shown
