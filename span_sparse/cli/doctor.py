"""Diagnosis of an installation: what does not work on this machine, and what is missing for what.

`span doctor` looks without importing anything that could crash: torch, spconv and OpenSlide are asked in processes of
their own, because two of the failures it is here to find kill the interpreter (spconv-cu120's CUDA path divides by zero
with numpy 2; a library built for another processor stops at an illegal instruction).

Each finding is one line: `ok`, `note` (something optional is absent), `warn` (works, but look at it) or `FAIL` (slides
cannot be read, features not stored or models not trained). The exit code is 1 only with a `FAIL`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from jsonargparse import ArgumentParser, Namespace

from span_sparse.cli.probes import NUMPY_PROBE, OPENSLIDE_PROBE, SPCONV_PROBE, TORCH_PROBE, ProbeResult, probe
from span_sparse.version import UNKNOWN, is_installed, package_version

DESCRIPTION = "Show versions, devices and what is missing for what."

NEEDED: Final = {
    "torch": "the model",
    "spconv": "the model's sparse convolutions",
    "numpy": "everything",
    "zarr": "the feature store",
    "google-crc32c": "the feature store",
    "h5py": "importing and exporting feature files",
    "shapely": "tissue outlines and annotations",
    "jinja2": "reports",
    "openslide-python": "reading slides",
    "openslide-bin": "reading slides",
    "lightning": "training",
    "torchmetrics": "training",
    "jsonargparse": "the command line",
    "scikit-image": "tissue and features",
    "scipy": "tissue and features",
    "pandas": "cohort tables",
    "scikit-learn": "metrics",
    "matplotlib": "figures",
    "pillow": "reading slides",
    "tifffile": "the demo cohort",
    "rich": "progress bars",
    "jaxtyping": "the model",
}
OPTIONAL: Final = {"tensorboard": "TensorBoard logs (CSV logs are always written)"}
SPCONV_BUILDS: Final = ("spconv-cu120", "spconv-cu126", "spconv-cu121", "spconv-cu118", "spconv")
SLURM_COMMANDS: Final = ("sbatch", "srun", "squeue", "scontrol")
FLOAT32_LIMIT: Final = 1e-5
"""Largest relative error of a float32 result: rounding stays below 1e-6, TF32 reaches 1e-4 and more."""
TF32_SWITCHES: Final = {"matmul": "matmul", "cudnn": "cuDNN", "spconv": "spconv"}
MALICIOUS_LIGHTNING: Final = ("2.6.2", "2.6.3")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: what was looked at.
        status: `ok`, `note`, `warn` or `fail`.
        text: what was found.
        fix: what to do about it, empty when there is nothing to do.
    """

    topic: str
    status: str
    text: str
    fix: str = ""


def build_parser() -> ArgumentParser:
    """The options of `span doctor`."""
    parser = ArgumentParser(prog="span doctor", description=DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    return parser


def run(args: Namespace) -> int:
    """Print the findings; 1 when something the main path needs is broken, else 0."""
    findings = examine()
    failed = any(finding.status == "fail" for finding in findings)
    if args.json:
        print(json.dumps({"ok": not failed, "findings": [asdict(finding) for finding in findings]}, indent=2))
        return int(failed)
    width = max(len(finding.topic) for finding in findings)
    for finding in findings:
        status = finding.status.upper() if finding.status == "fail" else finding.status
        first, *more = textwrap.wrap(finding.text, 100, break_long_words=False, break_on_hyphens=False)
        print(f"{status:<5}{finding.topic:<{width}}  {first}")
        for line in more:
            print(f"{'':<5}{'':<{width}}  {line}")
        if finding.fix:
            print(f"{'':<5}{'':<{width}}  → {finding.fix}")
    print("\nSomething is broken: see FAIL above." if failed else "\nReady: slides, features, training, evaluation.")
    return int(failed)


def examine() -> list[Finding]:
    """Look at everything; takes a few seconds, mostly the imports of the probes."""
    codes = (TORCH_PROBE, SPCONV_PROBE, NUMPY_PROBE, OPENSLIDE_PROBE)
    with ThreadPoolExecutor(max_workers=2) as pool:
        torch, spconv, numpy, openslide = pool.map(probe, codes)
    has_gpu = bool(torch.answer.get("gpus"))
    return [
        Finding("python", "ok", f"{platform.python_version()} ({sys.executable})"),
        _own_finding(),
        *packages(_version),
        lightning_release(_version("lightning")),
        _torch_finding(torch),
        _gpu_finding(torch),
        *triton_finding(_version("triton"), has_gpu=has_gpu),
        spconv_finding(spconv),
        float32_finding(spconv),
        numpy_finding(numpy, numpy_version=_version("numpy") or "?", has_gpu=has_gpu),
        openslide_finding(openslide),
        *scripts(os.environ.get("PATH", "")),
        _memory_finding(),
        _disk_finding(),
        slurm_finding(shutil.which),
    ]


def packages(version: Callable[[str], str | None]) -> list[Finding]:
    """Versions of what the package needs, and what cannot be done without it."""
    present, findings = [], []
    for name, purpose in (NEEDED | OPTIONAL).items():
        builds = SPCONV_BUILDS if name == "spconv" else (name,)
        found = [(build, version(build)) for build in builds if version(build)]
        if found:
            present += [f"{build} {number}" for build, number in found]
        elif name in OPTIONAL:
            findings.append(Finding(name, "note", f"not installed: no {purpose}", f"pip install {name}"))
        else:
            fix = (
                "pip install spconv-cu120 (Python 3.12 and newer: spconv-cu126)"
                if name == "spconv"
                else f"pip install {name}"
            )
            findings.append(Finding(name, "fail", f"not installed; needed for {purpose}", fix))
    return [Finding("packages", "ok", ", ".join(present)), *findings]


def lightning_release(version: str | None) -> Finding:
    """Two releases of lightning on the package index were malicious."""
    if version in MALICIOUS_LIGHTNING:
        return Finding(
            "lightning release", "fail", f"{version} is a malicious release",
            'pip install "lightning>=2.6.6,<2.7", then treat the secrets of this account as stolen',
        )  # fmt: skip
    return Finding("lightning release", "ok", f"{version} is none of {', '.join(MALICIOUS_LIGHTNING)}")


def spconv_finding(result: ProbeResult) -> Finding:
    """Strided sparse convolutions in float32, forward and backward, against dense ones in float64."""
    if result.failure:
        return Finding(
            "spconv", "fail", f"a strided convolution does not run: {result.failure}",
            "reinstall: pip install --force-reinstall --no-deps spconv-cu120 cumm-cu120 (Python 3.12+: -cu126)",
        )  # fmt: skip
    where = f"device {result.answer['device']}, algorithm {result.answer['algorithm']}"
    errors = {(w, q): float(e) for w, of_widths in result.answer["errors"].items() for q, e in of_widths.items()}
    wrong = {key: error for key, error in errors.items() if not error <= FLOAT32_LIMIT}
    if wrong:
        listed = ", ".join(f"{quantity} {error:.1g} ({widths} channels)" for (widths, quantity), error in wrong.items())
        text = f"{where}: float32 differs from float64 by more than {FLOAT32_LIMIT:g}: {listed}"
        on = [name for name, is_on in result.answer["tf32"].items() if is_on]
        fix = (
            f"turn TF32 off for {', '.join(on)} (docs/training.md, float32, TF32 and bf16)"
            if on
            else "results of this device cannot be trusted: use --device cpu, and reinstall or change spconv's build"
        )
        return Finding("spconv", "fail", text, fix)
    worst: dict[str, float] = {}
    for (_, quantity), error in errors.items():
        worst[quantity] = max(error, worst.get(quantity, 0.0))
    measured = ", ".join(f"{quantity} {error:.1g}" for quantity, error in worst.items())
    return Finding("spconv", "ok", f"{where}; strided convolution in float32 equals float64: {measured}")


def triton_finding(version: str | None, *, has_gpu: bool) -> list[Finding]:
    """Whether a GPU computes with our kernels; without a GPU nothing is said."""
    if not has_gpu:
        return []
    if version is None:
        text = "not installed: networks run on the GPU without our kernels, many times slower"
        return [Finding("triton", "warn", text, "pip install triton (torch's CUDA build brings it)")]
    return [Finding("triton", "ok", f"{version}, compiles the kernels of attention, sums and norms")]


def float32_finding(result: ProbeResult) -> Finding:
    """Whether float32 means float32: the switches of TF32, and what products and convolutions are worth."""
    if result.failure:
        return Finding("float32", "note", "not measured: the convolution did not run")
    tf32, errors = result.answer["tf32"], result.answer["dense_errors"]
    switches = ", ".join(f"{TF32_SWITCHES[name]} {'on' if is_on else 'off'}" for name, is_on in tf32.items())
    measured = ", ".join(f"{name} {float(error):.1g}" for name, error in errors.items())
    text = f"TF32: {switches}; torch's float32 on {result.answer['device']}: {measured}"
    if any(tf32.values()):
        return Finding("float32", "warn", text, "with TF32 float32 has 10 bits; turn it off where numbers must agree")
    if not all(float(error) <= FLOAT32_LIMIT for error in errors.values()):
        return Finding(
            "float32", "fail", f"{text}; at most {FLOAT32_LIMIT:g} was expected",
            "float32 is not computed as float32: look for NVIDIA_TF32_OVERRIDE in the environment",
        )  # fmt: skip
    return Finding("float32", "ok", text)


def numpy_finding(result: ProbeResult, *, numpy_version: str, has_gpu: bool) -> Finding:
    """spconv-cu120 2.3.6 dies with numpy 2 as soon as an array goes to CUDA; no convolution on the CPU shows it."""
    if result.failure is None:
        return Finding("spconv and numpy", "ok", f"numpy {numpy_version} arrays reach spconv's CUDA code")
    text = f"numpy {numpy_version}: spconv's conversion of arrays fails, {result.failure}"
    if result.killed_by == signal.SIGFPE:
        text += "; convolutions on the CPU work, on CUDA they kill the process"
    return Finding("spconv and numpy", "fail" if has_gpu else "warn", text, 'pip install "numpy<2"')


def openslide_finding(result: ProbeResult) -> Finding:
    """The OpenSlide library itself, beside its Python package."""
    if result.failure:
        return Finding("openslide library", "fail", f"does not load: {result.failure}", "pip install openslide-bin")
    return Finding("openslide library", "ok", str(result.answer["version"]))


def scripts(search_path: str) -> list[Finding]:
    """Who answers to `span` and `lightning` on the PATH: this package, another one, or nobody."""
    findings = []
    for name in ("span", "lightning"):
        instead = "python -m span_sparse VERB" if name == "span" else "span fit ... or python -m span_sparse fit ..."
        found = shutil.which(name, path=search_path)
        owners = sorted(
            entry.dist.name if entry.dist else entry.module
            for entry in importlib.metadata.entry_points(group="console_scripts", name=name)
            if not entry.value.startswith("span_sparse.")
        )
        if found is None:
            findings.append(Finding(f"command {name}", "warn", "not on the PATH", f"use {instead}"))
        elif _is_ours(Path(found)):
            also = f"; {', '.join(owners)} has one too and gets what we do not know" if owners else ""
            findings.append(Finding(f"command {name}", "ok", f"{found} is this package's{also}"))
        else:
            whose = " or ".join(owners) or "another program"
            fix = f"use {instead}, or reinstall: pip install --force-reinstall --no-deps -e . in the clone"
            findings.append(Finding(f"command {name}", "warn", f"{found} belongs to {whose}, not to this package", fix))
    return findings


def slurm_finding(which: Callable[[str], str | None]) -> Finding:
    """Whether jobs can be sent to SLURM from here."""
    missing = [command for command in SLURM_COMMANDS if which(command) is None]
    if not missing:
        return Finding("slurm", "ok", ", ".join(SLURM_COMMANDS))
    return Finding("slurm", "note", f"no {', '.join(missing)}: no batch jobs from this machine; everything else works")


def _is_ours(script: Path) -> bool:
    try:
        return b"span_sparse" in script.read_bytes()[:4096]
    except OSError:
        return False


def _own_finding() -> Finding:
    if is_installed():
        return Finding("span-sparse", "ok", package_version())
    folder = Path(__file__).parents[2]
    if package_version() == UNKNOWN:
        return Finding(
            "span-sparse", "warn", f"not installed, and no pyproject.toml of it in {folder}: stores and runs "
            "will name no version", "copy the whole source folder, or pip install it",
        )  # fmt: skip
    return Finding("span-sparse", "ok", f"{package_version()}, not installed: running from the source folder {folder}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch_finding(result: ProbeResult) -> Finding:
    if result.failure:
        return Finding("torch", "fail", f"does not load: {result.failure}", "pip install 'torch>=2.6,<2.14'")
    built = f"built for CUDA {result.answer['cuda']}" if result.answer["cuda"] else "built for the CPU only"
    return Finding("torch", "ok", f"{result.answer['version']}, {built}, {result.answer['threads']} threads")


def _gpu_finding(result: ProbeResult) -> Finding:
    gpus = result.answer.get("gpus", [])
    if gpus:
        return Finding("GPU", "ok", "; ".join(gpus))
    if shutil.which("nvidia-smi") is None:
        return Finding("GPU", "note", "none: everything runs on the CPU; large cohorts take long to train")
    return Finding(
        "GPU", "warn", "nvidia-smi is here but torch sees no GPU",
        "compare the driver's CUDA version (nvidia-smi) with torch's; a CPU-only torch must be reinstalled",
    )  # fmt: skip


def _memory_finding() -> Finding:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii")
        free_gib = int(re.findall(r"MemAvailable:\s+(\d+) kB", lines)[0]) / 2**20
    except (OSError, IndexError):
        return Finding("memory", "note", f"{os.cpu_count()} CPUs; free memory unknown on this system")
    return Finding("memory", "ok" if free_gib >= 2 else "warn", f"{free_gib:.1f} GiB free, {os.cpu_count()} CPUs")


def _disk_finding() -> Finding:
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    return Finding("disk", "ok" if free_gib >= 2 else "warn", f"{free_gib:.1f} GiB free in {Path.cwd()}")
