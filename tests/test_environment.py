from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
PYTHON = {"python_version": "3.11", "python_full_version": "3.11.9"}


def plain(lines: list[str]) -> dict[str, tuple[frozenset[str], frozenset[str]]]:
    """Name -> (extras, specifiers) of the requirements that hold on Python 3.11."""
    found = [Requirement(line) for line in lines]
    kept = [one for one in found if one.marker is None or one.marker.evaluate(PYTHON)]
    assert len({one.name for one in kept}) == len(kept)
    return {one.name: (frozenset(one.extras), frozenset(map(str, one.specifier))) for one in kept}


def test_the_conda_environment_is_pinned_as_the_project_is():
    (pip,) = (entry["pip"] for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict))
    assert pip[-1] == "-e ."
    in_conda = plain(pip[:-1])
    in_project = plain(PROJECT["project"]["dependencies"])
    in_dev = plain(PROJECT["project"]["optional-dependencies"]["dev"])
    assert in_conda == in_project | {"tensorboard": in_dev["tensorboard"]}


def test_the_conda_environment_s_python_is_one_the_project_supports():
    (python,) = (entry for entry in ENVIRONMENT["dependencies"] if str(entry).startswith("python="))
    assert python == "python=3.11"
    assert Requirement(f"x{PROJECT['project']['requires-python']}").specifier.contains("3.11")


def test_pre_commit_runs_the_fast_four_from_this_environment():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (repository,) = config["repos"]
    assert repository["repo"] == "local"
    assert [hook["entry"].split()[0] for hook in repository["hooks"]] == ["ruff", "ruff", "pyright", "lint-imports"]
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None  # `import triton` raises ImportError
import torch
from span_sparse.models import SpanMil, SpanMilConfig, SpanUnet, SpanUnetConfig
from span_sparse.sparse.operators import simulated_device

coords = torch.cartesian_prod(torch.arange(1), torch.arange(3), torch.arange(3)).int()
for network in (
    SpanMil(SpanMilConfig(head_channels=8), num_features=16, num_classes=2).eval(),
    SpanUnet(SpanUnetConfig(head_channels=8), num_features=16, num_classes=2).eval(),
):
    here = network(torch.ones(9, 16), coords, 1)
    here.sum().backward()
    with simulated_device():
        torch.testing.assert_close(network(torch.ones(9, 16), coords, 1), here, rtol=1e-4, atol=1e-5)
assert not any(name.startswith("triton.") for name in sys.modules)
"""


@pytest.mark.slow
def test_networks_run_on_a_cpu_where_triton_is_not_installed():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_tests_have_triton_and_the_environment_takes_the_one_of_torch():
    in_dev = plain(PROJECT["project"]["optional-dependencies"]["dev"])
    assert in_dev["triton"][1] == {">=3.2", "<4"}
    assert "triton" not in plain(PROJECT["project"]["dependencies"])  # a CUDA build of torch pins its own


@pytest.mark.parametrize("script", ["tests/run_checks.sh", "tests/slurm/cluster.sh", ".ci/run"])
def test_scripts_are_executable_and_stop_at_errors(script):
    path = ROOT / script
    assert os.access(path, os.X_OK)
    assert "set -" in path.read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.fixture
def fake_tools(tmp_path, monkeypatch):
    """Tools that succeed, but for those named in FAILING; each writes its name into a log."""
    for name in ("ruff", "pyright", "lint-imports", "python"):
        tool = tmp_path / name
        tool.write_text(
            f'#!/bin/bash\necho "{name} $*" >> "{tmp_path}/log"\n[[ " $FAILING " != *" {name} "* ]]\n', encoding="utf-8"
        )
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "log"


@pytest.mark.parametrize("failing", ["", "ruff", "pyright", "lint-imports", "python"])
def test_the_task_runner_runs_every_check_and_fails_with_any(fake_tools, monkeypatch, failing):
    monkeypatch.setenv("FAILING", failing)
    done = subprocess.run(["bash", str(ROOT / "tests" / "run_checks.sh")], capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == bool(failing)
    ran = fake_tools.read_text(encoding="utf-8").splitlines()
    assert [line.split()[0] for line in ran] == ["ruff", "ruff", "pyright", "lint-imports", "python"]
    assert ran[0].startswith("ruff format --check")
    assert ran[1].startswith("ruff check")
    assert "pytest" in ran[4]
    summary = done.stdout.splitlines()[-6:]
    failed = {"": 0, "ruff": 2}.get(failing, 1)
    assert sum("FAILED" in line for line in summary) == failed + bool(failing)
    assert all(" s" in line for line in summary[:5])
