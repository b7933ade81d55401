"""The benchmark of whole streams runs on the CPU and writes the rows it promises."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "experiments" / "benchmarks"


def test_it_writes_one_row_for_each_model_source_and_mode(tmp_path: Path) -> None:
    figures = tmp_path / "stream.json"
    command = [sys.executable, str(FOLDER / "stream.py"), "--device", "cpu", "--patches", "60", "--slides", "5"]
    command += ["--max-tokens", "130", "--seconds", "0.1", "--workers", "1", "--source", "store", "memory"]
    command += ["--models", "span", "transmil", "full_attention", "--folder", str(tmp_path), "--json", str(figures)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240).stdout
    rows = json.loads(figures.read_text(encoding="utf-8"))
    assert rows[0]["model"] == "reading"
    found = [(row["model"], row["source"], row["mode"], row["slides_per_pass"]) for row in rows[1:]]
    assert found == [
        (model, source, mode, slides)
        for mode in ("inference", "training")
        for model, slides in (("span", 2), ("transmil", 1), ("full_attention", 1))
        for source in ("memory", "store")
    ]
    speed = {(row["model"], row["source"], row.get("mode")): row["slides_per_s"] for row in rows}
    assert min(speed.values()) > 0
    for row in rows:
        assert ("share" in row) == (row["source"] == "store" and row["model"] != "reading")
        if "share" in row:
            smaller = min(rows[0]["slides_per_s"], speed[row["model"], "memory", row["mode"]])
            assert row["share"] == pytest.approx(row["slides_per_s"] / smaller)
    line = next(line for line in output.splitlines() if line.startswith("transmil") and "inference" in line)
    ratio = speed["span", "memory", "inference"] / speed["transmil", "memory", "inference"]
    assert line.split()[-1] == f"{ratio:.2f}"


def test_slides_in_a_stack_are_answered_as_alone(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("stream_benchmark", FOLDER / "stream.py")
    assert spec is not None
    assert spec.loader is not None
    stream = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stream)
    stacked, alone = stream.StackedFullAttention(fused=True), stream.FullAttention(fused=True)
    alone.load_state_dict(stacked.state_dict())
    slides = torch.randn(3, 20, stream.NUM_FEATURES)
    torch.testing.assert_close(stacked(slides), torch.cat([alone(slide) for slide in slides]))
