"""What does SPAN cost, and how does the cost grow with the slide? Beside other models, in one run.

    python experiments/benchmarks/model.py --patches 1000 10000 --threads 1 --json model.json --figure model.png

One cell is one model, one number of patches and one mode (`forward`, `forward_backward`), in a process of its own:
seconds of the median repetition, CPU seconds of the fastest (less disturbed on a shared machine), growth of peak memory
over the loaded model and input, and the ratio to the model's own dense matrix products (every `mm` and `addmm` of the
run, replayed alone with the same shapes: the floor). Features have 1,024 channels; patches cover 40 % of a square, in
tissue-like blobs. Models: `span` (classification preset), `full_attention_fused` and `full_attention_naive` (2 layers,
512 wide, 8 heads), `transmil` and `attention_pooling` (torchmil, if installed: `pip install 'span-sparse[baselines]'`).
Models are in evaluation mode (no dropout) in both modes. On CPU the memory is the resident memory of the process, with
every freed tensor given back to the system at once: what glibc keeps for later depends on the history of the process,
and made the same model need 227 MB in one run and 371 MB in the next.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from span_sparse.files import write_atomically
from span_sparse.models import SpanMil, span_mil

MODELS = ("span", "full_attention_fused", "full_attention_naive", "transmil", "attention_pooling")
MODES = ("forward", "forward_backward")
NUM_FEATURES = 1024
FILL = 0.4
_M_MMAP_THRESHOLD = -3
"""glibc's number of the option: allocations from this size on are given back to the system when they are freed."""


class FullAttention(nn.Module):
    """Two pre-norm transformer layers over all patches, then the mean."""

    def __init__(self, *, fused: bool, width: int = 512, num_heads: int = 8, num_layers: int = 2) -> None:
        super().__init__()
        self.fused, self.num_heads = fused, num_heads
        self.project = nn.Linear(NUM_FEATURES, width)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width),
                    "output": nn.Linear(width, width),
                    "feed_forward": nn.Sequential(
                        nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
                    ),
                }
            )
            for _ in range(num_layers)
        )
        self.classify = nn.Linear(width, 2)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of one slide."""
        rows = self.project(features)
        for layer in self.layers:
            qkv = layer["qkv"](layer["norm"](rows)).unflatten(-1, (3, self.num_heads, -1))
            q, k, v = qkv.permute(1, 2, 0, 3)  # (heads, tokens, head_channels)
            if self.fused:
                attended = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
            else:
                attended = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
            rows = rows + layer["output"](attended.transpose(0, 1).flatten(1))
            rows = rows + layer["feed_forward"](rows)
        return self.classify(rows.mean(dim=0, keepdim=True))


def tissue(num_patches: int) -> Tensor:
    """`(0, row, col)` of the densest cells of smoothed noise on a square filled to 40 %."""
    side = int((num_patches / FILL) ** 0.5)
    noise = gaussian_filter(np.random.default_rng(0).standard_normal((side + 1, side + 1)), 6)
    cells = np.argsort(-noise, axis=None)[:num_patches]
    return torch.from_numpy(np.stack([np.zeros_like(cells), *np.divmod(cells, side + 1)], axis=1)).int()


def build(name: str, num_patches: int, device: torch.device) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A model and the call that runs it once on its input."""
    features = torch.randn(num_patches, NUM_FEATURES, device=device)
    if name == "span":
        model: nn.Module = SpanMil(span_mil(), num_features=NUM_FEATURES, num_classes=2).to(device)
        coords = tissue(num_patches).to(device)
        return model, lambda: model(features, coords, 1)
    if name.startswith("full_attention"):
        model = FullAttention(fused=name.endswith("fused")).to(device)
        return model, lambda: model(features)
    from torchmil.models import ABMIL, TransMIL

    shape = (NUM_FEATURES,)
    if name == "transmil":
        model = TransMIL(shape, att_dim=512, n_heads=8, n_landmarks=256)
    else:
        model = ABMIL(shape, gated=True, att_dim=256, feat_ext=nn.Sequential(nn.Linear(NUM_FEATURES, 512), nn.ReLU()))
    model = model.to(device)
    return model, lambda: model(features[None])


class ProductRecorder(TorchDispatchMode):
    """Notes the shapes of all dense matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            left, right = args[-2:]
            self.shapes.append((left.shape[0], left.shape[1], right.shape[1]))
        return func(*args, **(kwargs or {}))


def measure_cell(name: str, num_patches: int, mode: str, device: torch.device, budget_s: float) -> dict[str, Any]:
    """All figures of one cell, in this process."""
    torch.manual_seed(0)
    build(name, 64, device)[1]()  # libraries are loaded before memory is looked at
    model, run = build(name, num_patches, device)
    model.eval()

    def once() -> None:
        if mode == "forward":
            with torch.no_grad():
                run()
        else:
            model.zero_grad(set_to_none=True)
            run().sum().backward()

    peak_mb = _peak_growth_mb(once, device)
    seconds, cpu_seconds = _time(once, device, budget_s)
    recorder = ProductRecorder()
    with recorder:
        once()
    shapes = recorder.shapes
    buffers = {
        size: torch.randn(size, device=device)
        for rows, inner, columns in shapes
        for size in ((rows, inner), (inner, columns))
    }
    _replay(shapes, buffers)
    _, cpu_products = _time(lambda: _replay(shapes, buffers), device, budget_s)
    return {
        "model": name,
        "patches": num_patches,
        "mode": mode,
        "repetitions": len(seconds),
        "seconds": statistics.median(seconds),
        "cpu_seconds": min(cpu_seconds),
        "peak_mb": peak_mb,
        "ratio_to_matmul": (min(cpu_seconds) / min(cpu_products)) if shapes else None,
        "matmul_gflop": sum(2e-9 * rows * inner * columns for rows, inner, columns in shapes),
        "matmul_cpu_seconds": min(cpu_products),
    }


def _replay(shapes: list[tuple[int, int, int]], buffers: dict[tuple[int, int], Tensor]) -> None:
    """The products alone."""
    for rows, inner, columns in shapes:
        torch.mm(buffers[rows, inner], buffers[inner, columns])


def _time(call: Callable[[], None], device: torch.device, budget_s: float) -> tuple[list[float], list[float]]:
    """Wall and CPU seconds of up to seven repetitions within a budget: at least three, or one that exceeds it."""
    walls: list[float] = []
    cpus: list[float] = []
    while not walls or (len(walls) < 7 and sum(walls) < budget_s) or (len(walls) < 3 and walls[0] < budget_s):
        _synchronise(device)
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        _synchronise(device)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return walls, cpus


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_growth_mb(call: Callable[[], None], device: torch.device) -> float:
    """Growth of peak memory over what is loaded, in MB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_THRESHOLD, 2**16)
    gc.collect()
    library.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark (Linux)
    before = _status_kib("VmRSS")
    call()
    growth = _status_kib("VmHWM") - before
    library.mallopt(_M_MMAP_THRESHOLD, 2**25)  # where the threshold ends up by itself
    return growth * 1024 / 1e6


def _status_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def exponent(cells: list[dict[str, Any]], key: str, smallest: int) -> float | None:
    """Slope of `key` against patches on logarithmic axes, from `smallest` patches on; None with fewer than two."""
    points = [(cell["patches"], cell[key]) for cell in cells if cell["patches"] >= smallest and cell[key] > 0]
    if len(points) < 2:
        return None
    patches, values = np.log(np.array(points)).T
    return float(np.polyfit(patches, values, 1)[0])


def draw(cells: list[dict[str, Any]], path: Path) -> None:
    """Time and memory against patches, logarithmic, one line a model."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 7.5), layout="constrained", sharex=True)
    colours = dict(zip(MODELS, ("#d95f02", "#1b9e77", "#66a61e", "#7570b3", "#444444"), strict=True))
    for column, mode in enumerate(MODES):
        for row, (key, label) in enumerate((("cpu_seconds", "CPU seconds"), ("peak_mb", "peak memory growth, MB"))):
            axis = axes[row, column]
            for name in MODELS:
                line = [cell for cell in cells if cell["model"] == name and cell["mode"] == mode]
                if line:
                    slope = exponent(line, key, 10_000)
                    text = name if slope is None else f"{name} (slope {slope:.2f} from 10k)"
                    patches = [cell["patches"] for cell in line]
                    axis.plot(patches, [cell[key] for cell in line], "o-", color=colours[name], label=text, ms=4)
            axis.set(xscale="log", yscale="log", ylabel=label, title=mode.replace("_", " + ") if row == 0 else "")
            axis.grid(alpha=0.3, which="both")
            axis.legend(fontsize=8, loc="upper left")
            if row:
                axis.set_xlabel("patches")
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, nargs="+", default=[1_000, 5_000, 10_000, 20_000, 50_000, 100_000])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit-s", type=float, default=600, help="a cell that takes longer is left out, and said")
    parser.add_argument("--budget-s", type=float, default=20, help="time for the repetitions of a cell, beyond three")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--figure", type=Path, help="draw them there")
    parser.add_argument("--cell", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        torch.set_num_threads(args.threads)
        device = torch.device(args.device)
        cell = measure_cell(args.models[0], args.patches[0], args.modes[0], device, args.budget_s)
        print(json.dumps(cell))
        return 0
    return _all_cells(args)


def _all_cells(args: argparse.Namespace) -> int:
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    print(
        f"{platform.processor() or platform.machine()}, {memory_gib:.0f} GiB, device {args.device}, "
        f"{args.threads} thread(s), Python {platform.python_version()}, torch {torch.__version__}"
    )
    print(f"{'model':<22}{'patches':>8} {'mode':<17}{'seconds':>9}{'CPU s':>9}{'peak MB':>10}{'× own matmuls':>15}")
    cells: list[dict[str, Any]] = []
    left_out: set[tuple[str, str]] = set()
    for num_patches in sorted(args.patches):  # what is compared is measured one after the other
        for mode in args.modes:
            for name in args.models:
                if (name, mode) in left_out:
                    continue
                cell = _in_a_process(args, name, num_patches, mode)
                if cell is None:
                    left_out.add((name, mode))  # a larger one would not fit either
                    continue
                cells.append(cell)
                ratio = cell["ratio_to_matmul"]
                print(
                    f"{name:<22}{num_patches:>8} {mode:<17}{cell['seconds']:>9.3f}{cell['cpu_seconds']:>9.3f}"
                    f"{cell['peak_mb']:>10.0f}{'' if ratio is None else f'{ratio:.2f}':>15}",
                    flush=True,
                )
    _print_summary(cells)
    if args.json is not None:
        write_atomically(args.json, (json.dumps(cells, indent=2) + "\n").encode())
    if args.figure is not None:
        draw(cells, args.figure)
    return 0


def _score_bytes(name: str, num_patches: int, mode: str) -> int:
    """Memory of the `[heads, patches, patches]` tensors that naive attention holds at once; 0 for the others."""
    if name != "full_attention_naive":
        return 0
    held = 3 if mode == "forward" else 6  # with gradients: scores and weights of two layers, and two gradients
    return held * 8 * num_patches**2 * torch.float32.itemsize


def _available_bytes(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _print_summary(cells: list[dict[str, Any]]) -> None:
    """The floor of SPAN and its growth."""
    span = [cell for cell in cells if cell["model"] == "span"]
    for cell in span:
        speed = cell["matmul_gflop"] / cell["matmul_cpu_seconds"]
        read = cell["patches"] * NUM_FEATURES * torch.float32.itemsize / 1e6
        print(
            f"span, {cell['patches']} patches, {cell['mode']}: floor {cell['matmul_cpu_seconds']:.3f} s = "
            f"{cell['matmul_gflop']:.1f} GFLOP of matrix products at {speed:.0f} GFLOP/s; features {read:.0f} MB"
        )
    for mode in MODES:
        line = [cell for cell in span if cell["mode"] == mode]
        for key in ("cpu_seconds", "peak_mb"):
            slope = exponent(line, key, 10_000)
            if slope is not None:
                print(f"span, {mode}: {key} grows with exponent {slope:.3f} from 10,000 patches")


def _in_a_process(args: argparse.Namespace, name: str, num_patches: int, mode: str) -> dict[str, Any] | None:
    """One cell, or None with a note where it cannot be had."""
    command = [sys.executable, __file__, "--cell", "--models", name, "--patches", str(num_patches), "--modes", mode]
    command += ["--threads", str(args.threads), "--device", args.device, "--budget-s", str(args.budget_s)]
    where = f"{name}, {num_patches} patches, {mode}"
    needed, available = _score_bytes(name, num_patches, mode), _available_bytes(args.device)
    if needed > 0.7 * available:
        print(f"left out: {where}: its scores need {needed / 2**30:.0f} GiB, {available / 2**30:.0f} GiB are free")
        return None
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=args.limit_s, check=False)
    except subprocess.TimeoutExpired:
        print(f"left out: {where}: more than {args.limit_s:.0f} s (--limit-s)")
        return None
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f"exit {result.returncode}"])[-1]
        print(f"left out: {where}: {reason}")
        return None
    return json.loads(result.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
