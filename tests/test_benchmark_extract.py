"""The slide of the extraction's benchmark is what it says; the benchmark of kills runs and counts what is wrong."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide
import pytest

BENCHMARKS = Path(__file__).parents[1] / "experiments" / "benchmarks"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_slide_of_the_benchmark(tmp_path, monkeypatch):
    benchmark = load("extract")
    monkeypatch.setattr(benchmark, "WIDTH_PX0", 12_500)
    monkeypatch.setattr(benchmark, "HEIGHT_PX0", 9_000)
    box = benchmark.tissue_box(300, 224)
    assert box == (4096, 4096)
    benchmark.write_slide(tmp_path / "slide.tiff", box, 0.5)
    with openslide.OpenSlide(tmp_path / "slide.tiff") as slide:
        assert slide.level_dimensions == ((12_500, 9_000), (3125, 2250), (782, 563))
        assert float(slide.properties["tiff.XResolution"]) == pytest.approx(20_000)
        for level, factor in enumerate((1, 4, 16)):
            corner, glass = (4096, 4096), (4096 - 64 * factor, 4096)
            inside = np.asarray(slide.read_region(corner, level, (64, 64)).convert("RGB")).mean(axis=(0, 1))
            outside = np.asarray(slide.read_region(glass, level, (64, 64)).convert("RGB")).mean(axis=(0, 1))
            np.testing.assert_allclose(inside, (205, 130, 180), atol=12)
            np.testing.assert_allclose(outside, 244, atol=3)


@pytest.mark.slow
def test_a_network_at_the_end_of_an_extraction(tmp_path, monkeypatch):
    """On the CPU with the tiny network: all is run, all figures are there and agree with each other."""
    benchmark = load("extract")
    monkeypatch.setattr(benchmark, "WIDTH_PX0", 12_500)
    monkeypatch.setattr(benchmark, "HEIGHT_PX0", 9_000)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    command = [
        "extract.py",
        "--device",
        "cpu",
        "--patches",
        "900",
        "--slides",
        "2",
        "--seconds",
        "0.2",
        "--workers",
        "0",
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--chunks", "8", "16", "--json", str(tmp_path / "figures.json")])
    benchmark.main()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["patches"] == 2 * 64 * 64, "a block of tissue of 4096 px in patches of 64"
    best = max(figures["bare_patches_per_s"].values())
    for name in ("stream", "calls", "extraction"):
        assert figures[f"{name}_to_bare"] == pytest.approx(figures[f"{name}_patches_per_s"] / best, abs=1e-3)
    assert 0 <= figures["share_of_time_without_a_batch"] <= 1
    assert 0 < figures["extraction_to_bare_from_loaded_to_written"] <= figures["extraction_to_bare"]
    assert figures["start_to_first_patch_s"] >= figures["start_to_first_batch_s"] >= figures["start_to_loaded_s"] > 0


@pytest.mark.slow
def test_kills_are_counted(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "faults.py"), "--kills", "2", "--json", str(tmp_path / "faults.json")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    figures = json.loads((tmp_path / "faults.json").read_text())
    assert {name: figures[name] for name in ("lost", "doubled", "differing", "orphans", "wrong_exits", "kills")} == {
        "lost": 0, "doubled": 0, "differing": 0, "orphans": 0, "wrong_exits": 0, "kills": 2,
    }  # fmt: skip


def test_kills_that_did_harm_are_noticed(tmp_path):
    benchmark = load("faults")
    (tmp_path / "reference").mkdir()
    benchmark.make_cohort(tmp_path)
    reference_store, store = tmp_path / "reference" / "store", tmp_path / "killed" / "store"
    benchmark.extract(tmp_path, reference_store, "one process")
    reference = benchmark.contents(reference_store)
    benchmark.extract(tmp_path, store, "one process")
    assert not +benchmark.after_kill(store, reference)
    shard = store / "s1" / "features" / "c" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    assert benchmark.after_kill(store, reference)["differing"] == 2, "neither valid nor the same bytes"
    shutil.rmtree(store / "s2")
    assert benchmark.after_kill(store, reference)["lost"] == 1
    (store / "__tmp-1").mkdir()
    counts = benchmark.after_resume(tmp_path, store, reference)
    assert counts["differing"] >= 2, "a resumed run reads no features, so the damage stays and must be counted"
