"""The benchmark of evaluation runs and writes the figures it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[1] / "experiments" / "benchmarks" / "evaluate.py"


def test_it_measures_memory_and_time(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(BENCHMARK), "--slides", "14", "--patches", "60", "--network", "small"]
    subprocess.run([*command, "--json", str(figures)], check=True, capture_output=True, timeout=240)
    found = json.loads(figures.read_text(encoding="utf-8"))
    assert (found["slides"], found["early_slides"]) == (14, 14)
    assert found["peak_mib_after_early"] == found["peak_mib_at_the_end"] <= found["peak_mib_with_statistics"]
    assert 0 < found["model_s"] < found["loop_s"] < found["whole_command_s"]
    assert 0 < found["share_outside_the_model_in_the_loop"] < 1
