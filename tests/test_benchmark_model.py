"""The benchmark of the model runs and writes the figures it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[1] / "experiments" / "benchmarks" / "model.py"


def test_it_writes_one_row_a_cell(tmp_path: Path) -> None:
    figures = tmp_path / "model.json"
    command = [sys.executable, str(BENCHMARK), "--models", "span", "full_attention_fused", "--patches", "120"]
    command += ["--modes", "forward_backward", "--budget-s", "0", "--json", str(figures)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    cells = json.loads(figures.read_text(encoding="utf-8"))
    assert [(cell["model"], cell["patches"]) for cell in cells] == [
        ("span", 120),
        ("full_attention_fused", 120),
    ]
    keys = {"model", "patches", "mode", "seconds", "cpu_seconds", "peak_mb", "ratio_to_matmul"}
    for cell in cells:
        assert keys <= set(cell)
        assert cell["seconds"] > 0
        assert cell["cpu_seconds"] > 0
        assert cell["peak_mb"] >= 0
        assert cell["ratio_to_matmul"] > 0.5
    assert "× own matmuls" in result.stdout
    # projection, window attention and feed-forward of stage 0 alone, at 120 patches, and twice as much again
    # for the gradients
    assert cells[0]["matmul_gflop"] > 3 * 2e-9 * 120 * (1024 * 512 + 4 * 512 * 512 + 2 * 512 * 1024)
