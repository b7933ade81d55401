from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "compare_context.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("compare_context", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mean_and_spread_of_the_runs_are_written(script, monkeypatch, tmp_path, capsys) -> None:
    aucs = {"span": [1.0, 0.9, 0.98], "mean_pooling": [0.5, 0.6, 0.4], "attention_pooling": [0.3, 0.3, 0.6]}
    commands = []

    def run(command: list[str], **_) -> SimpleNamespace:
        commands.append(command)
        options = dict(word.split("=", 1) for word in command if "=" in word)
        name = Path(command[command.index("--config") + 1]).stem
        folder = Path(options["--trainer.default_root_dir"])
        folder.mkdir(parents=True)
        auc = aucs[name][int(options["--seed_everything"])]
        (folder / "metrics.json").write_text(json.dumps({"test": {"auc": auc}}))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    output = tmp_path / "span-demo" / "comparison.json"
    monkeypatch.setattr(sys, "argv", ["compare", "--runs", str(tmp_path / "runs"), "--output", str(output)])
    assert script.main() == 0
    result = json.loads(output.read_text())
    assert result["span"] == pytest.approx(0.96)
    assert result["mean_pooling"] == pytest.approx(0.5)
    assert result["attention_pooling"] == pytest.approx(0.4)
    assert result["std"]["mean_pooling"] == pytest.approx(0.1)  # (0.1² + 0.1² + 0) / (3 - 1) = 0.1²
    assert result["by_seed"]["span"] == {"0": 1.0, "1": 0.9, "2": 0.98}
    assert len(commands) == 9
    assert all(command[1:4] == ["-m", "span_sparse", "fit"] for command in commands)
    assert len({word for command in commands for word in command if "default_root_dir" in word}) == 9
    assert "0.960" in capsys.readouterr().out


def test_a_failed_run_ends_the_comparison(script, monkeypatch, tmp_path) -> None:
    failed = SimpleNamespace(returncode=1, stdout="", stderr="error: no such folder\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    monkeypatch.setattr(sys, "argv", ["compare", "--runs", str(tmp_path), "--output", str(tmp_path / "c.json")])
    with pytest.raises(SystemExit, match="no such folder"):
        script.main()
    assert not (tmp_path / "c.json").exists()
