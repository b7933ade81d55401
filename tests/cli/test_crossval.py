"""Folds and seeds: which runs there are, what happens to those that break, and what the summary says."""

from __future__ import annotations

import json
import os
import signal
import statistics
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from span_sparse.cohort import read_cohort
from span_sparse.datasets.splits import column_hash

TESTED = {"fold_0": range(6), "fold_1": range(10, 17)}


@pytest.fixture
def folds_yaml(fit_yaml, tiny_cohort) -> Path:
    """Two folds whose test sides do not overlap; slides 6 to 9 validate in both."""
    sides = {
        "fold_0": ["test"] * 6 + ["val"] * 4 + ["train"] * 7,
        "fold_1": ["train"] * 6 + ["val"] * 4 + ["test"] * 7,
    }
    tiny_cohort.change(split=None, **sides)
    return fit_yaml


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "cv"


def finished_run(cohort, output: Path, fold: str, seed: int = 0, *, auc: float = 0.8, scores=None) -> Path:
    """A run as `lightning fit` leaves it, with made-up predictions of its test side."""
    folder = output / f"{fold}_seed{seed}"
    folder.mkdir(parents=True)
    record = {
        "status": "finished",
        "network": "SpanMil",
        "task": "classification",
        "selection": {"best_epoch": 1},
        "data": {"split": fold, "split_hash": column_hash(read_cohort(cohort.csv), fold)},
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "history.csv").write_text(f"epoch,val_auc\n0,0.1\n1,{auc + 0.1}\n")
    (folder / "metrics.json").write_text(json.dumps({"test": {"auc": auc, "auc_ci": None, "num_slides": 6}}))
    rows = cohort.frame[cohort.frame[fold] == "test"]
    scores = [0.5] * len(rows) if scores is None else scores
    frame = pd.DataFrame(
        {
            "slide_id": rows["slide_id"].tolist(),
            "case_id": rows["case_id"].tolist(),
            "fold": fold,
            "split": "test",
            "y_true": rows["label"].tolist(),
            "y_pred": ["b" if score >= 0.5 else "a" for score in scores],
            "prob_a": [1 - score for score in scores],
            "prob_b": scores,
        }
    )
    frame.to_csv(folder / "predictions.csv", index=False)
    return folder


def test_a_run_for_every_fold_and_seed(command, folds_yaml, output, capsys) -> None:
    words = ("crossval", "--config", folds_yaml, "--output", output, "--seeds", 3, 5)
    assert command("span", *words, "--count") == 0
    assert capsys.readouterr().out == "4\n"
    assert command("span", *words, "--dry-run", "--set", "trainer.max_epochs=1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rsplit("=", 1)[1] for line in lines] == [
        str(output / name) for name in ("fold_0_seed3", "fold_1_seed3", "fold_0_seed5", "fold_1_seed5")
    ]
    assert lines[1] == (
        f"span fit --config {folds_yaml} --trainer.max_epochs=1 --data.init_args.split=fold_1 --data.init_args.seed=3 "
        f"--seed_everything=3 --trainer.default_root_dir={output / 'fold_1_seed3'}"
    )
    assert command("span", *words, "--count", "--folds", "fold_1") == 0
    assert capsys.readouterr().out == "2\n"
    assert not output.exists()


def test_a_job_of_an_array_trains_one_run_and_the_last_one_summarises(command, folds_yaml, output, capsys) -> None:
    words = ("crossval", "--config", folds_yaml, "--output", output, "--set", "trainer.max_epochs=1")
    for index, fold in enumerate(TESTED):
        assert command("span", *words, "--task-index", index) == 0
        assert len(list(output.glob("*_seed0"))) == index + 1
        record = json.loads((output / f"{fold}_seed0" / "run.json").read_text())
        assert (record["status"], record["data"]["split"], record["seed"]) == ("finished", fold, 0)
        assert record["command"].startswith("span fit --config")
        assert not (output / "summary.json").exists()
    before = (output / "fold_0_seed0" / "run.json").stat().st_mtime_ns
    capsys.readouterr()
    assert command("span", *words, "--task-index", 0) == 0
    assert "fold_0_seed0 is finished" in capsys.readouterr().out
    assert (output / "fold_0_seed0" / "run.json").stat().st_mtime_ns == before
    assert command("span", *words, "--task-index", 2) == 1
    assert "there are 2 runs, expected 0 to 1" in capsys.readouterr().err
    assert command("span", *words, "--summarise") == 0
    pooled = pd.read_csv(output / "pooled_seed0" / "predictions.csv")
    assert pooled["slide_id"].tolist() == [f"s{number:02d}" for fold in TESTED for number in TESTED[fold]]


def test_the_summary_is_what_a_hand_calculation_says(command, folds_yaml, tiny_cohort, output, capsys) -> None:
    scores = {"fold_0": [0.1, 0.7, 0.6, 0.4, 0.3, 0.9], "fold_1": [0.2, 0.8, 0.55, 0.5, 0.1, 0.6, 0.35]}
    aucs = {("fold_0", 0): 0.5, ("fold_1", 0): 0.6, ("fold_0", 1): 0.7, ("fold_1", 1): 0.9}
    for (fold, seed), auc in aucs.items():
        finished_run(tiny_cohort, output, fold, seed, auc=auc, scores=scores[fold])
    words = ("crossval", "--config", folds_yaml, "--output", output, "--summarise", "--seeds", 0, 1)
    assert command("span", *words, "--resamples", 50) == 0
    summary = json.loads((output / "summary.json").read_text())
    mean = summary["mean_over_runs"]
    assert mean["test"]["auc"] == {"mean": pytest.approx(0.675), "sd": statistics.stdev(aucs.values()), "num_runs": 4}
    assert mean["val"]["auc"]["mean"] == pytest.approx(0.775)
    assert summary["notes"] == []
    labels = [number % 2 for fold in TESTED for number in TESTED[fold]]
    expected = roc_auc_score(labels, scores["fold_0"] + scores["fold_1"])
    for seed in ("0", "1"):
        pooled = summary["pooled_by_seed"][seed]
        assert pooled["auc"] == pytest.approx(expected)
        assert pooled["num_slides"] == pooled["num_cases"] == 13
        low, high = pooled["auc_ci"]
        assert low < expected < high
    table = pd.read_csv(output / "summary.csv")
    assert table[["fold", "seed", "status", "best_epoch"]].values.tolist() == [
        [fold, seed, "finished", 1] for fold, seed in aucs
    ]
    assert table["test_auc"].tolist() == list(aucs.values())
    shown = capsys.readouterr().out
    assert "test auc: 0.675 ± 0.171 (mean ± sd of 4 runs)" in shown
    assert "pooled test auc, seed 1" in shown


def test_what_is_not_finished_is_told_and_not_counted(command, folds_yaml, tiny_cohort, output, capsys) -> None:
    finished_run(tiny_cohort, output, "fold_0", auc=0.5)
    (finished_run(tiny_cohort, output, "fold_1", auc=0.9) / "run.json").write_text('{"status": "running"}')
    words = ("crossval", "--config", folds_yaml, "--output", output, "--summarise")
    assert command("span", *words) == 1
    shown = capsys.readouterr().out
    assert "1 of 2 runs are not finished: fold_1_seed0 (running)" in shown
    assert "seed 0: not pooled, 1 of its folds are not finished" in shown
    summary = json.loads((output / "summary.json").read_text())
    assert summary["mean_over_runs"]["test"]["auc"] == {"mean": 0.5, "sd": None, "num_runs": 1}
    assert summary["pooled_by_seed"] == {}
    table = pd.read_csv(output / "summary.csv")
    assert table["status"].tolist() == ["finished", "running"]
    assert table["test_auc"].notna().tolist() == [True, False]


def test_a_slide_is_never_pooled_twice(command, folds_yaml, tiny_cohort, output, capsys) -> None:
    tiny_cohort.change(fold_1=["train"] * 5 + ["test"] + ["val"] * 4 + ["test"] * 7)
    for fold in TESTED:
        finished_run(tiny_cohort, output, fold)
    assert command("span", "crossval", "--config", folds_yaml, "--output", output, "--summarise") == 0
    assert "not pooled, slide 's05' is tested in several folds (fold_0, fold_1)" in capsys.readouterr().out
    assert not (output / "pooled_seed0").exists()


def test_predictions_that_cannot_be_pooled(command, folds_yaml, tiny_cohort, output, capsys) -> None:
    first, second = (finished_run(tiny_cohort, output, fold) for fold in TESTED)
    words = ("crossval", "--config", folds_yaml, "--output", output, "--summarise")
    frame = pd.read_csv(first / "predictions.csv")
    frame.rename(columns={"prob_b": "prob_c"}).to_csv(first / "predictions.csv", index=False)
    assert command("span", *words) == 0
    assert "the folds' predictions.csv have different columns" in capsys.readouterr().out
    (first / "predictions.csv").write_text('"')
    assert command("span", *words) == 0
    assert "predictions.csv is damaged" in capsys.readouterr().out
    (second / "predictions.csv").unlink()
    assert command("span", *words) == 0
    assert "predictions.csv is missing" in capsys.readouterr().out


def test_runs_of_other_settings_or_splits_are_not_mixed(command, folds_yaml, tiny_cohort, output, capsys) -> None:
    for fold in TESTED:
        finished_run(tiny_cohort, output, fold)
    words = ("crossval", "--config", folds_yaml, "--output", output)
    assert command("span", *words, "--task-index", 0) == 0
    assert command("span", *words, "--task-index", 0, "--set", "trainer.max_epochs=1") == 1
    assert "holds runs of other settings" in capsys.readouterr().err
    content = json.loads(folds_yaml.read_text())
    folds_yaml.write_text("# a comment changes nothing\n" + json.dumps(content))
    assert command("span", *words, "--task-index", 0) == 0
    folds_yaml.write_text(json.dumps(content | {"seed_everything": 7}))
    capsys.readouterr()
    assert command("span", *words, "--task-index", 0) == 1
    assert "holds runs of other settings" in capsys.readouterr().err
    folds_yaml.write_text(json.dumps(content))
    tiny_cohort.change(fold_0=["test"] * 5 + ["val"] * 5 + ["train"] * 7)
    assert command("span", *words, "--task-index", 0) == 1
    assert "fold_0_seed0 was trained on another split than column 'fold_0'" in capsys.readouterr().err


def test_options_that_cannot_be_meant(command, folds_yaml, tiny_cohort, output, capsys, tmp_path) -> None:
    def error_of(*words: object) -> str:
        assert command("span", "crossval", "--config", folds_yaml, "--output", output, *words) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "there is no column 'fold_7'; it has" in error_of("--folds", "fold_7")
    assert "column 'label': expected one of train, val, test" in error_of("--folds", "label")
    assert "--set 'max_epochs': expected KEY=VALUE" in error_of("--set", "max_epochs")
    assert "every run has its own; use --folds" in error_of("--set", "data.init_args.split=fold_0")
    assert "absent.csv" in error_of("--set", f"data.init_args.cohort={tmp_path / 'absent.csv'}")
    tiny_cohort.change(fold_0=None, fold_1=None)
    assert "there are no columns called fold_* or split_*; `span splits make`" in error_of()
    folds_yaml.write_text("data: {class_path: span_sparse.datasets.demo_datamodule.DemoDataModule}")
    assert "data.init_args.cohort names no table" in error_of()
    folds_yaml.write_text("data: [")
    assert "cannot be read as YAML" in error_of()
    folds_yaml.unlink()
    assert "cannot be read as YAML" in error_of()


def fake_python(path: Path, script: str, monkeypatch) -> None:
    """What `span crossval` starts instead of a training; its arguments are those of `python -m span_sparse fit`."""
    path.write_text(f"#!/bin/bash\n{script}")
    path.chmod(0o755)
    monkeypatch.setattr("span_sparse.cli.crossval.sys.executable", str(path))


def test_a_run_that_breaks_does_not_end_the_others_and_is_repeated(
    command, folds_yaml, tiny_cohort, output, capsys, tmp_path, monkeypatch
) -> None:
    for fold in TESTED:
        finished_run(tiny_cohort, tmp_path / "made", fold, auc=0.75)
    broken = """
echo "$@"
if [[ "$*" == *split=fold_0* ]]; then echo "error: the cohort is bad"; exit 1; fi
"""
    trained = f"""
run="${{@: -1}}"; run="${{run#--trainer.default_root_dir=}}"
cp {tmp_path}/made/$(basename "$run")/* "$run"
"""
    words = ("crossval", "--config", folds_yaml, "--output", output)
    fake_python(tmp_path / "python", broken + trained, monkeypatch)
    assert command("span", *words) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[:3] == [
        f"2 runs (2 folds, 1 seeds) in {output}",
        f"[1/2] fold_0_seed0: the cohort is bad; see {output / 'fold_0_seed0' / 'log.txt'}",
        "[2/2] fold_1_seed0: test auc 0.750",
    ]
    assert any("1 of 2 runs are not finished: fold_0_seed0 (unknown)" in line for line in shown)
    log = output / "fold_1_seed0" / "log.txt"
    before = log.read_text()
    assert before.startswith(f"-m span_sparse fit --config {folds_yaml} --data.init_args.split=fold_1 ")
    fake_python(tmp_path / "python", trained, monkeypatch)
    assert command("span", *words, "--resamples", 10) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == [
        f"2 runs (2 folds, 1 seeds) in {output}, 1 of them finished",
        "[1/1] fold_0_seed0: test auc 0.750",
    ]
    assert log.read_text() == before
    assert set(json.loads((output / "summary.json").read_text())["pooled_by_seed"]) == {"0"}


def test_a_signal_reaches_the_training_and_ends_the_rest(
    command, folds_yaml, output, capsys, tmp_path, monkeypatch
) -> None:
    script = "trap 'echo told; exit 138' USR1\necho ready\nfor _ in {1..400}; do sleep 0.05; done\n"
    fake_python(tmp_path / "python", script, monkeypatch)
    log = output / "fold_0_seed0" / "log.txt"

    def tell() -> None:
        deadline = time.monotonic() + 20
        while not (log.exists() and "ready" in log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR1)

    teller = threading.Thread(target=tell)
    teller.start()
    assert command("span", "crossval", "--config", folds_yaml, "--output", output) == 138
    teller.join()
    assert log.read_text() == "ready\ntold\n"
    shown = capsys.readouterr()
    assert "not finished, exit code 138" in shown.out
    assert "stopped by a signal; the same command goes on" in shown.err
    assert not (output / "fold_1_seed0").exists()
