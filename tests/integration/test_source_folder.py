"""A source folder that is on the path and not installed: the commands work, and say the same about it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tifffile

from span_sparse.store import FeatureStore

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

HIDING = """
import importlib.metadata
real = importlib.metadata.MetadataPathFinder.find_distributions.__func__

def without_ours(cls, context=importlib.metadata.DistributionFinder.Context()):
    return (found for found in real(cls, context) if found.metadata["Name"] != "span-sparse")

importlib.metadata.MetadataPathFinder.find_distributions = classmethod(without_ours)
"""
"""Of a `sitecustomize` that every process below loads: this package's metadata is nowhere."""


@pytest.fixture
def source_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    shutil.copytree(ROOT / "span_sparse", folder / "span_sparse", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (tmp_path / "hiding").mkdir()
    (tmp_path / "hiding" / "sitecustomize.py").write_text(HIDING, encoding="utf-8")
    return folder


@pytest.fixture
def run_there(source_folder: Path, tmp_path: Path):
    path = os.pathsep.join([str(tmp_path / "hiding"), str(source_folder)])

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, words)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
            capture_output=True, text=True, check=False, timeout=240,
        )  # fmt: skip

    return run


def span(run, *words: object) -> str:
    done = run("-m", "span_sparse", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_not_installed_here_and_knows_its_version(run_there, source_folder) -> None:
    code = (
        "import importlib.metadata, span_sparse; print(span_sparse.__file__); importlib.metadata.version('span-sparse')"
    )
    done = run_there("-c", code)
    assert done.stdout.startswith(str(source_folder))
    assert "PackageNotFoundError" in done.stderr
    assert span(run_there, "--version") == f"span {VERSION}\n"


@pytest.mark.slow
def test_doctor_extract_and_fit_agree(run_there, source_folder, fit_yaml, tmp_path) -> None:
    findings = {one["topic"]: one for one in json.loads(span(run_there, "doctor", "--json"))["findings"]}
    assert findings["span-sparse"]["status"] == "ok"
    text = f"{VERSION}, not installed: running from the source folder {source_folder}"
    assert findings["span-sparse"]["text"] == text

    (tmp_path / "slides").mkdir()
    pixels = np.full((128, 128, 3), (200, 120, 170), np.uint8)
    tifffile.imwrite(
        tmp_path / "slides" / "a.tiff", pixels, tile=(64, 64), photometric="rgb", resolution=(10_000, 10_000),
        resolutionunit="CENTIMETER",
    )  # fmt: skip
    (tmp_path / "cohort.csv").write_text("slide_id\na\n", encoding="utf-8")
    span(
        run_there, "extract", "--cohort", "cohort.csv", "--slides", "slides", "--store", "features", "--patch-size", 32,
        "--target-mpp", 1,
    )  # fmt: skip
    stored = FeatureStore(tmp_path / "features").metadata("a")
    assert stored.provenance["program"] == f"span-sparse {VERSION}"

    span(run_there, "fit", "--config", fit_yaml, "--trainer.max_epochs", 1)
    packages = json.loads((tmp_path / "run" / "environment.json").read_text(encoding="utf-8"))["packages"]
    assert packages["span-sparse"] == VERSION
    assert {"torch", "zarr", "numpy"} <= set(packages)
    assert "--encoder FILE.pt2" in span(run_there, "encoders")
