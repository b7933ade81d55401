from __future__ import annotations

import importlib.metadata
import json
import signal
import stat
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from span_sparse.cli import doctor
from span_sparse.cli.probes import NUMPY_PROBE, SPCONV_PROBE, ProbeResult, probe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def findings() -> dict[str, doctor.Finding]:
    return {finding.topic: finding for finding in doctor.examine()}


def test_this_installation_is_healthy(findings):
    assert [finding for finding in findings.values() if finding.status == "fail"] == []
    for name in ("torch", "zarr", "lightning", "torchmetrics", "numpy"):
        assert f"{name} {importlib.metadata.version(name)}" in findings["packages"].text
    assert "spconv-cu12" in findings["packages"].text
    assert findings["openslide library"].text.startswith("4.")
    assert "device" in findings["spconv"].text
    assert "input gradient" in findings["spconv"].text
    assert findings["float32"].text.startswith("TF32: matmul off, cuDNN off, spconv off")


def test_numpy_arrays_reach_spconv_in_this_installation():
    """With numpy 2, spconv-cu120 2.3.6 dies of SIGFPE here, which no convolution on the CPU shows."""
    assert probe(NUMPY_PROBE) == ProbeResult({}, None)


def test_everything_needed_is_asked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {Requirement(line).name for line in project["dependencies"]}
    names = {"spconv" if name.startswith("spconv") else name for name in names}
    assert set(doctor.NEEDED) == names


def test_missing_packages_say_what_for():
    versions = {name: "1.0" for name in doctor.NEEDED if name != "zarr"} | {"spconv": None, "spconv-cu126": "2.3.8"}
    first, *missing = doctor.packages(versions.get)
    assert "spconv-cu126 2.3.8" in first.text
    assert [(finding.topic, finding.status) for finding in missing] == [("zarr", "fail"), ("tensorboard", "note")]
    assert "the feature store" in missing[0].text
    assert missing[0].fix == "pip install zarr"


@pytest.mark.parametrize(
    ("code", "failure", "killed_by"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGFPE)", "killed by SIGFPE (exit code 136)", signal.SIGFPE),
        ("raise ImportError('libcuda.so.1 is missing')", "ImportError: libcuda.so.1 is missing", 0),
        ("import sys; sys.exit(3)", "exit code 3", 0),
        ("print('no json')", "unexpected answer: no json", 0),
    ],
)
def test_a_probe_survives_what_it_asks(code, failure, killed_by):
    assert probe(code) == ProbeResult({}, failure, killed_by)


WRONG = """
from span_sparse.sparse import convolution
class Wrong(convolution.StridedConvolution):
    def forward(self, features, sites):
        return super().forward(features, sites) * (1 + 2e-5)
convolution.StridedConvolution = Wrong
"""


def test_the_convolution_probe_would_notice_a_wrong_result():
    finding = doctor.spconv_finding(probe(WRONG + SPCONV_PROBE))
    assert finding.status == "fail"
    assert "float32 differs from float64 by more than 1e-05: forward 2e-05 (8→16 channels)" in finding.text
    assert "weight gradient 2e-05 (256→512 channels)" in finding.text
    assert "--device cpu" in finding.fix


def answer(*, error: float = 3e-7, dense: float = 3e-7, **tf32: bool) -> ProbeResult:
    errors = {"8→16": {"forward": 1e-7, "input gradient": 2e-7}, "256→512": {"forward": 2e-7, "input gradient": error}}
    return ProbeResult(
        {
            "device": "cuda",
            "algorithm": "Some",
            "errors": errors,
            "dense_errors": {"matmul": dense, "convolution": 4e-7},
            "tf32": {"matmul": False, "cudnn": False, "spconv": False, **tf32},
        },
        None,
    )


def test_the_worst_error_of_each_quantity_is_shown():
    finding = doctor.spconv_finding(answer())
    assert finding.status == "ok"
    assert finding.text.endswith("strided convolution in float32 equals float64: forward 2e-07, input gradient 3e-07")


@pytest.mark.parametrize("error", [5e-3, 1.1e-5, float("inf"), float("nan")])
def test_an_error_above_the_limit_is_a_failure_that_says_where(error):
    finding = doctor.spconv_finding(answer(error=error))
    assert finding.status == "fail"
    assert f"input gradient {error:.1g} (256→512 channels)" in finding.text
    assert "8→16" not in finding.text
    assert "turn TF32 off for spconv" in doctor.spconv_finding(answer(error=error, spconv=True)).fix


def test_whether_float32_means_float32():
    finding = doctor.float32_finding(answer())
    assert (finding.status, finding.fix) == ("ok", "")
    expected = "TF32: matmul off, cuDNN off, spconv off; torch's float32 on cuda: matmul 3e-07, convolution 4e-07"
    assert finding.text == expected
    finding = doctor.float32_finding(answer(dense=4e-4, matmul=True))
    assert finding.status == "warn"
    assert "matmul on, cuDNN off" in finding.text
    finding = doctor.float32_finding(answer(dense=4e-4))  # the switches say off, the numbers say otherwise
    assert finding.status == "fail"
    assert "NVIDIA_TF32_OVERRIDE" in finding.fix
    assert doctor.float32_finding(ProbeResult({}, "exit code 3")).status == "note"


def test_a_convolution_that_does_not_run_is_a_failure():
    finding = doctor.spconv_finding(ProbeResult({}, "killed by SIGILL (exit code 132)", signal.SIGILL))
    assert (finding.status, "SIGILL" in finding.text, "reinstall" in finding.fix) == ("fail", True, True)


@pytest.mark.parametrize(("has_gpu", "status"), [(True, "fail"), (False, "warn")])
def test_the_numpy_2_crash_is_explained(has_gpu, status):
    crash = ProbeResult({}, "killed by SIGFPE (exit code 136)", signal.SIGFPE)
    finding = doctor.numpy_finding(crash, numpy_version="2.4.0", has_gpu=has_gpu)
    assert finding.status == status
    assert finding.fix == 'pip install "numpy<2"'
    assert "136" in finding.text
    assert "2.4.0" in finding.text


def script(folder: Path, name: str, module: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/usr/bin/python3\nfrom {module} import {name}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_whose_lightning_comes_first(tmp_path):
    script(tmp_path / "ours", "lightning", "span_sparse.cli.main")
    script(tmp_path / "ours", "span", "span_sparse.cli.main")
    script(tmp_path / "theirs", "lightning", "lightning_sdk.cli.entrypoint")
    good = doctor.scripts(f"{tmp_path}/ours:{tmp_path}/theirs")
    assert [(finding.topic, finding.status) for finding in good] == [
        ("command span", "ok"),
        ("command lightning", "ok"),
    ]
    span, lightning = doctor.scripts(f"{tmp_path}/theirs:{tmp_path}/ours")
    assert (span.status, lightning.status) == ("ok", "warn")
    assert str(tmp_path / "theirs" / "lightning") in lightning.text
    assert "python -m span_sparse fit" in lightning.fix
    assert "span fit" in lightning.fix
    nobody = doctor.scripts(str(tmp_path / "empty"))
    assert [finding.text for finding in nobody] == ["not on the PATH", "not on the PATH"]


def test_the_owner_of_the_other_script_is_named(tmp_path, monkeypatch):
    script(tmp_path / "theirs", "lightning", "lightning_sdk.cli.entrypoint")
    info = tmp_path / "lightning_sdk-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lightning-sdk\nVersion: 9.9\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[console_scripts]\nlightning = sdk:main\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert "belongs to lightning-sdk" in doctor.scripts(f"{tmp_path}/theirs")[1].text


def test_malicious_releases_are_named():
    assert doctor.lightning_release("2.6.3").status == "fail"
    assert doctor.lightning_release("2.6.6").status == "ok"


def test_slurm_commands():
    assert doctor.slurm_finding(lambda command: f"/usr/bin/{command}").status == "ok"
    some = doctor.slurm_finding(lambda command: None if command == "sbatch" else "/usr/bin/x")
    assert some.status == "note"
    assert some.text.startswith("no sbatch:")


@pytest.mark.parametrize(("status", "code"), [("warn", 0), ("note", 0), ("fail", 1)])
def test_only_failures_change_the_exit_code(monkeypatch, capsys, status, code):
    finding = doctor.Finding("spconv", status, "found this", "do that")
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Finding("torch", "ok", "2.13"), finding])
    parser = doctor.build_parser()
    assert doctor.run(parser.parse_args([])) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok   torch   2.13"
    assert lines[1] == f"{'FAIL' if code else status} spconv  found this"
    assert lines[2].strip() == "→ do that"
    assert doctor.run(parser.parse_args(["--json"])) == code
    shown = json.loads(capsys.readouterr().out)
    assert shown["ok"] is (code == 0)
    assert shown["findings"][1] == {"topic": "spconv", "status": status, "text": "found this", "fix": "do that"}


def test_triton_is_asked_for_where_there_is_a_gpu() -> None:
    assert doctor.triton_finding(None, has_gpu=False) == []
    (missing,) = doctor.triton_finding(None, has_gpu=True)
    assert (missing.status, missing.fix.startswith("pip install triton")) == ("warn", True)
    (there,) = doctor.triton_finding("3.6.0", has_gpu=True)
    assert there.status == "ok"
    assert "3.6.0" in there.text
