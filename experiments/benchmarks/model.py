"""Cost of SPAN and its growth with the slide, beside other models, in one run.

    python experiments/benchmarks/model.py --patches 1000 10000 --threads 1 --json model.json --figure model.png
    python experiments/benchmarks/model.py --device cuda --precision bf16 --json model.json
    python experiments/benchmarks/model.py --count --patches 10000 --json launches.json

One cell is one model, one number of patches and one mode (`forward`, `forward_backward`): seconds of the median
repetition (of at most twelve, after a warm-up), CPU seconds of the fastest (less disturbed on a shared machine), growth
of peak memory over the loaded model and input, the ratio to the model's own dense matrix products (every `mm` and
`addmm` of the run, replayed alone with the same shapes), and the ratio to the floor (`floors.py`: bytes and operations
over the bandwidth and the peak that this device reached in this run). Features have 1,024 channels; patches cover 40 %
of a square, in tissue-like blobs. Models: `span` (classification preset), `full_attention_fused` and
`full_attention_naive` (2 layers, 512 wide, 8 heads), `transmil` and `attention_pooling` (torchmil, if installed: `pip
install 'span-sparse[baselines]'`). Models are in evaluation mode (no dropout) in both modes. Geometry is part of SPAN's
time. On the CPU each cell has a process of its own, so that memory is comparable (`measuring.py`); on CUDA all share
one, because starting it would cost more than the measurement.

With `--count` nothing is measured: kernel launches, synchronisations and spconv's map calls of one forward pass of SPAN
along the path a GPU takes are counted, on any machine (`launches.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from floors import DTYPES, ProductRecorder, autocast, dense_gflop, floor, machine, model_gflop, moved_bytes, replay
from launches import count
from measuring import available_bytes, peak_growth_mb, release, repeat
from model_figure import draw, exponent
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from span_sparse.files import write_atomically
from span_sparse.float32 import off_by_default
from span_sparse.models import SpanMil, span_mil
from span_sparse.sparse import validated

MODELS = ("span", "full_attention_fused", "full_attention_naive", "transmil", "attention_pooling")
MODES = ("forward", "forward_backward")
NUM_FEATURES = 1024
FILL = 0.4


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


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement: which model on how many patches, in which mode, where, how, and for how long."""

    name: str
    num_patches: int
    mode: str
    device: torch.device
    precision: str
    budget_s: float


def one_pass(model: nn.Module, run: Callable[[], Tensor], mode: str, device: torch.device, precision: str) -> None:
    """One forward pass, or one with its backward pass."""
    if mode == "forward":
        with torch.no_grad(), autocast(device, precision):
            run()
        return
    model.zero_grad(set_to_none=True)
    with autocast(device, precision):
        logits = run()
    logits.float().sum().backward()


def measure_cell(cell: Cell) -> dict[str, Any]:
    """All figures of one cell, in this process."""
    torch.manual_seed(0)
    how = cell.mode, cell.device, cell.precision
    one_pass(*build(cell.name, 64, cell.device), *how)  # libraries are loaded before memory is looked at
    model, run = build(cell.name, cell.num_patches, cell.device)
    model.eval()

    def once() -> None:
        one_pass(model, run, *how)

    on_cuda = cell.device.type == "cuda"
    if on_cuda:
        once()  # kernels are chosen by size, and loaded, before memory is looked at
    peak_mb = peak_growth_mb(once, cell.device)
    walls, cpus = repeat(once, cell.device, cell.budget_s)
    seconds, cpu_seconds = statistics.median(walls), min(cpus)
    bounds = _bounds(cell, model, once)
    products = bounds["matmul_seconds"] if on_cuda else bounds["matmul_cpu_seconds"]
    return {
        "model": cell.name,
        "patches": cell.num_patches,
        "mode": cell.mode,
        "device": str(cell.device),
        "precision": cell.precision,
        "repetitions": len(walls),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mb": peak_mb,
        "ratio_to_matmul": (seconds if on_cuda else cpu_seconds) / products if products else None,
        "ratio_to_floor": seconds / bounds["floor_seconds"],
        **bounds,
    }


def _bounds(cell: Cell, model: nn.Module, once: Callable[[], None]) -> dict[str, float]:
    """The model's own dense products replayed alone, and the floor of bytes and operations."""
    with ProductRecorder() as recorder:
        once()
    shapes = recorder.shapes
    products = replay(shapes, cell.device, cell.precision)
    products()
    walls, cpus = repeat(products, cell.device, cell.budget_s)
    reached = machine(cell.device, cell.precision)
    places = tissue(cell.num_patches)
    bound = floor(
        moved_bytes(cell.name, model, places, NUM_FEATURES, cell.mode, cell.precision),
        model_gflop(cell.name, cell.num_patches, cell.mode, shapes, once),
        reached,
    )
    return {
        "matmul_gflop": dense_gflop(shapes),
        "matmul_seconds": statistics.median(walls) if shapes else 0.0,
        "matmul_cpu_seconds": min(cpus) if shapes else 0.0,
        "floor_mb": bound.moved_bytes / 1e6,
        "floor_gflop": bound.gflop,
        "floor_seconds": bound.seconds,
        "bandwidth_gb_s": reached.bandwidth / 1e9,
        "peak_gflop_s": reached.peak / 1e9,
    }


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = options.add_argument
    add("--patches", type=int, nargs="+", default=[1_000, 5_000, 10_000, 20_000, 50_000, 100_000])
    add("--models", nargs="+", choices=MODELS, default=list(MODELS))
    add("--modes", nargs="+", choices=MODES, default=list(MODES))
    add("--threads", type=int, default=1)
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--precision", choices=list(DTYPES), default="fp32", help="of the products; bf16 and fp16 by autocast")
    add("--limit-s", type=float, default=600, help="on the CPU a cell that takes longer is left out, and said")
    add("--budget-s", type=float, help="time for the repetitions of a cell, beyond three; 20, on CUDA 2.5")
    add("--json", type=Path, help="write the figures there")
    add("--figure", type=Path, help="draw them there")
    add("--count", action="store_true", help="count the launches of one forward pass of SPAN instead, on any machine")
    add("--cell", action="store_true", help=argparse.SUPPRESS)
    return options


def main() -> int:
    args = parser().parse_args()
    device = torch.device(args.device)
    if args.budget_s is None:
        args.budget_s = 2.5 if device.type == "cuda" else 20.0
    torch.set_num_threads(args.threads)
    off_by_default()
    if args.cell:
        print(json.dumps(_here(args, args.models[0], args.patches[0], args.modes[0])))
        return 0
    return _counts(args) if args.count else _all_cells(args, device)


def count_launches(num_patches: int) -> dict[str, Any]:
    """What one forward pass of the preset asks of a GPU, geometry included, on a batch that was collated."""
    model = SpanMil(span_mil(), num_features=NUM_FEATURES, num_classes=2).eval()
    features = torch.randn(num_patches, NUM_FEATURES)
    valid, _ = validated(tissue(num_patches), [num_patches])
    return count(lambda: model(features, valid, 1))


def _counts(args: argparse.Namespace) -> int:
    if len(args.patches) != 1:
        raise SystemExit("--count: expected one number of patches, for example --patches 10000")
    result = count_launches(args.patches[0])
    print(json.dumps(result, indent=2))
    if args.json is not None:
        write_atomically(args.json, (json.dumps(result, indent=2) + "\n").encode())
    return 0


def _all_cells(args: argparse.Namespace, device: torch.device) -> int:
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    print(
        f"{where}, {memory_gib:.0f} GiB, device {args.device}, {args.precision}, {args.threads} thread(s), "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )
    print(
        f"{'model':<22}{'patches':>8} {'mode':<17}{'seconds':>10}{'CPU s':>9}{'peak MB':>9}{'× own matmuls':>15}"
        f"{'floor s':>10}{'× floor':>9}"
    )
    cells: list[dict[str, Any]] = []
    left_out: set[tuple[str, str]] = set()
    for num_patches in sorted(args.patches):  # what is compared is measured one after the other
        for mode in args.modes:
            for name in args.models:
                if (name, mode) in left_out:
                    continue
                cell = _cell_or_none(args, name, num_patches, mode, device)
                if cell is None:
                    left_out.add((name, mode))  # a larger one would not fit either
                    continue
                cells.append(cell)
                _print_cell(cell)
    _print_summary(cells)
    if args.json is not None:
        write_atomically(args.json, (json.dumps(cells, indent=2) + "\n").encode())
    if args.figure is not None:
        draw(cells, args.figure)
    return 0


def _print_cell(cell: dict[str, Any]) -> None:
    ratio = cell["ratio_to_matmul"]
    print(
        f"{cell['model']:<22}{cell['patches']:>8} {cell['mode']:<17}{cell['seconds']:>10.5f}{cell['cpu_seconds']:>9.3f}"
        f"{cell['peak_mb']:>9.0f}{'' if ratio is None else f'{ratio:.2f}':>15}{cell['floor_seconds']:>10.5f}"
        f"{cell['ratio_to_floor']:>9.2f}",
        flush=True,
    )


def _print_summary(cells: list[dict[str, Any]]) -> None:
    """The floor of SPAN and its growth."""
    span = [cell for cell in cells if cell["model"] == "span"]
    for cell in span:
        print(
            f"span, {cell['patches']} patches, {cell['mode']}: floor {cell['floor_seconds']:.5f} s, the larger of "
            f"{cell['floor_mb']:.0f} MB at {cell['bandwidth_gb_s']:.0f} GB/s and {cell['floor_gflop']:.1f} GFLOP at "
            f"{cell['peak_gflop_s']:.0f} GFLOP/s; its own products alone {cell['matmul_seconds']:.5f} s"
        )
    for mode in MODES:
        line = [cell for cell in span if cell["mode"] == mode]
        for key in ("seconds", "cpu_seconds", "peak_mb"):
            slope = exponent(line, key, 10_000)
            if slope is not None:
                print(f"span, {mode}: {key} grows with exponent {slope:.3f} from 10,000 patches")


def _score_bytes(name: str, num_patches: int, mode: str, precision: str) -> int:
    """Memory of the `[heads, patches, patches]` tensors that naive attention holds at once; 0 for the others."""
    if name != "full_attention_naive":
        return 0
    held = 3 if mode == "forward" else 6  # with gradients: scores and weights of two layers, and two gradients
    return held * 8 * num_patches**2 * DTYPES[precision].itemsize


def _cell_or_none(
    args: argparse.Namespace, name: str, num_patches: int, mode: str, device: torch.device
) -> dict[str, Any] | None:
    """One cell, or None with a note where it cannot be had."""
    where = f"{name}, {num_patches} patches, {mode}"
    needed, available = _score_bytes(name, num_patches, mode, args.precision), available_bytes(device)
    if needed > 0.7 * available:
        print(f"left out: {where}: its scores need {needed / 2**30:.0f} GiB, {available / 2**30:.0f} GiB are free")
        return None
    try:
        in_one = device.type == "cuda"
        return _here(args, name, num_patches, mode) if in_one else _in_a_process(args, name, num_patches, mode)
    except subprocess.TimeoutExpired:
        print(f"left out: {where}: more than {args.limit_s:.0f} s (--limit-s)")
    except Exception as error:  # out of memory, a library that is not there: the other cells are still worth having
        print(f"left out: {where}: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")
    return None


def _here(args: argparse.Namespace, name: str, num_patches: int, mode: str) -> dict[str, Any]:
    device = torch.device(args.device)
    try:
        return measure_cell(Cell(name, num_patches, mode, device, args.precision, args.budget_s))
    finally:
        release(device)


def _in_a_process(args: argparse.Namespace, name: str, num_patches: int, mode: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--cell", "--models", name, "--patches", str(num_patches), "--modes", mode]
    command += ["--threads", str(args.threads), "--device", args.device, "--precision", args.precision]
    command += ["--budget-s", str(args.budget_s)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=args.limit_s, check=False)
    if result.returncode:
        raise RuntimeError((result.stderr.strip().splitlines() or [f"exit {result.returncode}"])[-1])
    return json.loads(result.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
