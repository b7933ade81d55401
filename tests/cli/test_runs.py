"""Listing and comparing runs, whatever state their folders are in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from span_sparse.cli.run_summary import read_run, read_settings


def make_run(
    folder: Path, *, auc: float | None = 0.8, val: float = 0.7, status: str = "finished", **settings: Any
) -> Path:
    """The files of a run, as `lightning fit` writes them."""
    folder.mkdir(parents=True)
    config = {"model": {"init_args": {"learning_rate": 0.1}}, "trainer": {"callbacks": [{"monitor": "val_loss"}]}}
    config["model"]["init_args"] |= settings
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    record = {
        "status": status,
        "started": f"2026-01-0{len(folder.name)}T10:20:30+00:00",
        "network": "SpanMil",
        "task": "classification",
        "seed": 3,
        "selection": {"best_epoch": 1, "selected_by": "lowest val_loss of 3 epochs"},
        "data": {"split": "fold_0", "split_hash": "sha256:0123456789abcdef"},
        "error": None,
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "environment.json").write_text(json.dumps({"packages": {"torch": settings.get("torch", "2.6")}}))
    (folder / "history.csv").write_text(
        f"epoch,train_loss,val_loss,val_auc\n0,1,1,0.1\n1,0.5,0.6,{val}\n2,0.4,0.9,0.2\n"
    )
    if auc is not None:
        test = {"auc": auc, "auc_ci": [auc - 0.1, auc + 0.1], "f1": None, "f1_ci": None, "num_slides": 7}
        (folder / "metrics.json").write_text(json.dumps({"test": test, "run": {}}))
    return folder


def test_a_run_is_summarised_from_its_files(tmp_path) -> None:
    one = read_run(make_run(tmp_path / "a"))
    assert (one.status, one.network, one.task, one.seed, one.best_epoch) == (
        "finished", "SpanMil", "classification", 3, 1,
    )  # fmt: skip
    assert one.val == {"loss": 0.6, "auc": 0.7}  # of the best epoch
    assert one.test == {"auc": 0.8}
    assert one.test_intervals == {"auc": (pytest.approx(0.7), pytest.approx(0.9))}
    assert one.headline == "auc"


def test_the_list_shows_runs_at_any_depth(command, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # long paths are cut short
    make_run(tmp_path / "runs" / "a")
    make_run(tmp_path / "runs" / "deep" / "bb", auc=None, status="running")
    (tmp_path / "runs" / "a" / "checkpoints").mkdir()
    (tmp_path / "runs" / "a" / "checkpoints" / "config.yaml").write_text("")  # not a run
    assert command("span", "runs", "runs") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "2026-01" in line] == lines[3:5]
    parts = "runs/a |2026-01-01 10:20|SpanMil|classification| 1 |auc 0.700|auc 0.800 [0.700, 0.900]|fold_0 01234567"
    for part in parts.split("|"):
        assert part in lines[3]
    assert "running" in lines[4]


def test_a_folder_that_is_no_good_is_one_line(command, tmp_path, capsys) -> None:
    make_run(tmp_path / "good")
    for name, file, content in (
        ("cut", "run.json", '{"status": "fin'),
        ("list", "run.json", "[1]"),
        ("metrics", "metrics.json", "\0"),
        ("odd", "run.json", '{"status": 3, "data": [], "selection": "x", "seed": "y", "started": null}'),
    ):
        (make_run(tmp_path / name) / file).write_text(content)
    (make_run(tmp_path / "binary") / "history.csv").write_bytes(b"epoch,val_auc\n1,\xff\n\0")
    (make_run(tmp_path / "figures") / "metrics.json").write_text('{"test": {"auc_ci": "?", "auc": "high", "f1": 2}}')
    (make_run(tmp_path / "old") / "run.json").unlink()
    assert command("span", "runs", tmp_path, "--json") == 0
    found = {Path(one["path"]).name: one for one in json.loads(capsys.readouterr().out)}
    assert len(found) == 8
    assert found["cut"]["problem"] == found["list"]["problem"] == "run.json is damaged"
    assert found["metrics"]["problem"] == "metrics.json is damaged"
    assert found["odd"]["status"] == "unknown"
    assert found["figures"]["test"] == {}
    assert (found["old"]["problem"], found["old"]["test"]) == ("run.json is missing", {"auc": 0.8})
    assert found["good"]["problem"] == ""
    assert command("span", "runs", tmp_path) == 0
    assert "run.json is damaged" in capsys.readouterr().out


def test_the_order_of_the_list(command, tmp_path, capsys) -> None:
    make_run(tmp_path / "aaa", auc=0.5, val=0.9)
    make_run(tmp_path / "b", auc=0.9, val=0.1)
    make_run(tmp_path / "cc", auc=None, val=0.5)

    def order(*words: str) -> list[str]:
        assert command("span", "runs", tmp_path, "--json", *words) == 0
        return [Path(one["path"]).name for one in json.loads(capsys.readouterr().out)]

    assert order() == ["aaa", "b", "cc"]
    assert order("--sort", "date") == ["b", "cc", "aaa"]
    assert order("--sort", "test") == ["b", "aaa", "cc"]
    assert order("--sort", "val") == ["aaa", "cc", "b"]


def test_two_runs_are_compared(command, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # long paths are cut short
    first = make_run(Path("[b]first"), torch="2.6")
    second = make_run(Path("second"), auc=0.75, torch="2.7", learning_rate=0.2, weight_decay=0.1)
    assert command("span", "runs", "compare", first, second, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"] == {
        "model.init_args.learning_rate": [0.1, 0.2],
        "model.init_args.torch": ["2.6", "2.7"],
        "model.init_args.weight_decay": ["(absent)", 0.1],
    }
    assert found["packages"] == {"torch": ["2.6", "2.7"]}
    assert found["run"] == {}
    assert found["figures"]["test auc"] == [0.8, 0.75]
    assert command("span", "runs", "compare", first, second) == 0
    shown = capsys.readouterr().out
    assert "[b]first" in shown
    assert "settings: model.init_args.learning_rate" in shown
    assert read_settings(first)["trainer.callbacks.0.monitor"] == "val_loss"


def test_what_cannot_be_listed_or_compared(command, tmp_path, capsys) -> None:
    good = make_run(tmp_path / "good")
    assert command("span", "runs", tmp_path / "absent") == 1
    assert "absent: no such folder" in capsys.readouterr().err
    assert command("span", "runs", "compare", good) == 1
    assert "expected two run folders, found 1" in capsys.readouterr().err
    assert command("span", "runs", "compare", good, tmp_path) == 1
    assert "is not a run" in capsys.readouterr().err
    (good / "config.yaml").write_text("a: [")
    assert command("span", "runs", "compare", good, good) == 1
    assert "config.yaml is damaged" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert command("span", "runs", tmp_path / "empty") == 0
    assert "no runs in" in capsys.readouterr().out
