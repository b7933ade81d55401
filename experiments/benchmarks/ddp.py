"""How much faster are two processes than one, and how long does a training step wait for its data?

    python experiments/benchmarks/ddp.py --json ddp.json

The real thing: a feature store, `SlideDataModule`, `SlideClassifier`, Lightning with DDP (gloo on CPU, nccl on GPUs). A
process has one thread; with N processes every one gets as many slides a step, so that the ideal is N times. Reported:

* `speedup_2_processes`: slides per second of two processes over one, medians of the epochs after the first;
* `loading_share`: share of the time of an epoch that the first process waited for its next batch (its profiler).

The ideal is what the machine gives: two processes without any communication, each with the same work, are measured as
well (`speedup_2_independent`), since two threads of one core or one memory channel are not twice as fast as one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.profilers import SimpleProfiler

from span_sparse.datasets.datamodule import SlideDataModule
from span_sparse.files import write_atomically
from span_sparse.grid import LatticeSpec
from span_sparse.models import SpanMilConfig
from span_sparse.store import FeatureStore, SlideRecord
from span_sparse.training import SlideClassifier
from span_sparse.types import EncoderIdentity

CHANNELS = 512


def make_store(folder: Path, num_slides: int, num_patches: int) -> None:
    """Slides of random features on squares filled to 40 %, and their table."""
    random = np.random.default_rng(0)
    store = FeatureStore.create(folder / "store")
    encoder = EncoderIdentity("random", "1", "none", CHANNELS, 224, 0.5, "float16")
    lattice = LatticeSpec(224, 0.5).on_slide(0.5)
    side = int((num_patches / 0.4) ** 0.5) + 1
    rows = ["slide_id,case_id,label,split"]
    for number in range(num_slides + 2):
        grid = np.stack(np.divmod(random.permutation(side**2)[:num_patches], side), axis=1).astype(np.int32)
        features = random.standard_normal((num_patches, CHANNELS)).astype(np.float16)
        extent, name = side * lattice.step_px0, f"s{number:03d}"
        coords = lattice.to_px0(grid)
        store.write(
            SlideRecord(name, name, features, grid, coords, lattice, "cohort", encoder, "sha256:0", extent, extent, {})
        )
        rows.append(f"{name},{name},{'ab'[number % 2]},{'train' if number < num_slides else 'val'}")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


class EpochTimes(lightning.Callback):
    """Seconds of every training epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stops it."""
        self.seconds.append(time.perf_counter() - self._start)


def train(folder: Path, devices: int, epochs: int) -> dict[str, float]:
    """Trains and measures; in a process of its own, whose children Lightning starts."""
    torch.set_num_threads(1)
    data = SlideDataModule(str(folder / "store"), str(folder / "cohort.csv"), batch_size=2, cache_mib=0.0)
    times, profiler = EpochTimes(), SimpleProfiler()
    trainer = lightning.Trainer(
        accelerator="cpu" if not torch.cuda.is_available() else "gpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_epochs=epochs,
        profiler=profiler,
        callbacks=[times],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(SlideClassifier(SpanMilConfig()), datamodule=data)
    recorded = profiler.recorded_durations
    waiting = sum(sum(values) for name, values in recorded.items() if name.endswith("train_dataloader_next"))
    return {
        "slides_per_second": len(data.items("train")) / statistics.median(times.seconds[1:]),
        "loading_share": waiting / sum(times.seconds),
    }


def measure(folder: Path, devices: int, epochs: int, copies: int = 1) -> list[dict[str, float]]:
    """Runs `train` in as many processes side by side, each with its own children."""
    command = [sys.executable, __file__, "--train", str(folder), "--devices", str(devices), "--epochs", str(epochs)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
        for _ in range(copies)
    ]
    outputs = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"a training ended with {[process.returncode for process in running]}: {' '.join(command)}")
    return [json.loads(next(line for line in text.splitlines() if line.startswith("{"))) for text in outputs]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=24, help="training slides")
    parser.add_argument("--patches", type=int, default=3000, help="of every slide")
    parser.add_argument("--epochs", type=int, default=4, help="the first one is not counted")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--devices", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train is not None:
        figures = train(args.train, args.devices, args.epochs)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(json.dumps(figures), flush=True)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_store(folder, args.slides, args.patches)
        (one,) = measure(folder, 1, args.epochs)
        (two,) = measure(folder, 2, args.epochs)
        apart = measure(folder, 1, args.epochs, copies=2)
    result: dict[str, Any] = {
        "speedup_2_processes": two["slides_per_second"] / one["slides_per_second"],
        "speedup_2_independent": sum(run["slides_per_second"] for run in apart) / one["slides_per_second"],
        "loading_share": max(one["loading_share"], two["loading_share"]),
        "slides_per_second_1": one["slides_per_second"],
        "slides_per_second_2": two["slides_per_second"],
    }
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, lightning {lightning.__version__}"
    print(f"{platform.machine()}, {os.cpu_count()} cores, {versions}; {args.slides} slides of {args.patches} patches")
    for key, value in result.items():
        print(f"{key:<24}{value:8.3f}")
    if args.json is not None:
        write_atomically(args.json, (json.dumps(result, indent=2) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
