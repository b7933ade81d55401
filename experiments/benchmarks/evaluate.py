"""Does evaluating a large cohort keep memory flat, and how much of its time is not the model's?

    OMP_NUM_THREADS=1 python experiments/benchmarks/evaluate.py --slides 1000 --json evaluate.json

1. A store of slides of 5,000 patches × 1,024 float16 (10 MB each) is made in a temporary folder. Ten of them are
   different; the others share their files by hard links under ids of their own, which keeps the disk's use at 0.1 GB
   and, mind, every read but the first ones in the page cache.
2. `span evaluate` runs over it in a process of its own, with a classifier of random weights (`--network preset`: the
   default of SlideClassifier; `small`: 12 times fewer parameters, where everything else weighs more).
3. Peak memory of the process is noted after each slide; the figures are those after 100 slides and at the end. The
   time in the model is that of its `predict_step`; the time outside is the rest of the loop over slides (reading,
   checks, collating, columns, parts), and of the whole command (with start, statistics and pictures).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from span_sparse.files import write_atomically

NUM_PATCHES, CHANNELS, NUM_DIFFERENT, EARLY = 5_000, 1_024, 10, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=1_000, help="stored slides")
    parser.add_argument("--patches", type=int, default=NUM_PATCHES, help="of each slide")
    parser.add_argument("--network", choices=("preset", "small"), default="preset")
    parser.add_argument("--workers", type=int, default=0, help="reading processes of `span evaluate`")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--folder", type=Path, help="where the temporary files go (default: the system's)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.workers)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_store(folder, options.slides, options.patches)
        make_checkpoint(folder, options.network)
        command = [sys.executable, __file__, "--measure", str(folder), "--workers", str(options.workers)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    figures = {
        "slides": options.slides,
        "patches": options.patches,
        "network": options.network,
        "workers": options.workers,
        **json.loads(output.splitlines()[-1]),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "load_average": [round(load, 1) for load in os.getloadavg()],
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json:
        write_atomically(options.json, f"{text}\n".encode())


def make_store(folder: Path, num_slides: int, num_patches: int) -> None:
    from span_sparse.grid import LatticeSpec
    from span_sparse.store import FeatureStore, SlideRecord

    random = np.random.default_rng(0)
    store, spec = FeatureStore.create(folder / "store"), LatticeSpec(224, 0.5)
    edge = int(np.ceil(np.sqrt(num_patches / 0.6)))
    rows = ["slide_id,case_id,label,split"]
    for number in range(num_slides):
        slide_id = f"slide{number:05d}"
        rows.append(f"{slide_id},case{number // 2},{'ab'[number // 2 % 2]},{('test', 'val')[number // 2 % 5 == 0]}")
        if number >= NUM_DIFFERENT:
            link(store.path, f"slide{number % NUM_DIFFERENT:05d}", slide_id)
            continue
        middle = (edge - 1) / 2
        cells = np.stack(np.divmod(np.arange(edge * edge), edge), axis=1)
        nearest = np.argsort(np.hypot(*(cells - middle).T) + 3 * random.random(len(cells)))[:num_patches]
        grid = cells[np.sort(nearest)].astype(np.int32)
        lattice = spec.on_slide(0.25)
        store.write(
            SlideRecord(
                slide_id=slide_id,
                case_id=None,
                features=random.standard_normal((len(grid), CHANNELS), np.float32).astype(np.float16),
                grid=grid,
                coords=lattice.to_px0(grid),
                lattice=lattice,
                mpp_source="cohort",
                encoder=identity(),
                slide_checksum="sha256:00",
                width_px0=edge * 448,
                height_px0=edge * 448,
                provenance={},
            )
        )
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def identity() -> Any:
    from span_sparse.types import EncoderIdentity

    return EncoderIdentity("synthetic", "1", "cls", CHANNELS, 224, 0.5, "float16")


def link(store: Path, source: str, target: str) -> None:
    """The same arrays under another slide id."""
    for path in (store / source).rglob("*"):
        copy = store / target / path.relative_to(store / source)
        if path.is_dir():
            copy.mkdir(parents=True)
        elif path.parent == store / source:
            copy.parent.mkdir(exist_ok=True)
            copy.write_text(path.read_text().replace(f'"{source}"', f'"{target}"'))
        else:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.hardlink_to(path)


def make_checkpoint(folder: Path, network: str) -> None:
    import torch

    from span_sparse.datasets import ClassificationTask
    from span_sparse.grid import LatticeSpec
    from span_sparse.models import SpanMilConfig
    from span_sparse.training import SlideClassifier

    torch.manual_seed(0)
    settings = SpanMilConfig() if network == "preset" else SpanMilConfig(stages="111", embed_dim_div=8, ff_ratio=2.0)
    task = ClassificationTask(class_names=("a", "b")).on(identity(), LatticeSpec(224, 0.5))
    model = SlideClassifier(settings, task=task.as_dict())
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    torch.save({**content, "pytorch-lightning_version": "2.6.6"}, folder / "model.ckpt")


def measure(folder: Path, workers: int) -> dict[str, Any]:
    """Runs the command in this process."""
    began = time.perf_counter()
    from span_sparse.cli import evaluate
    from span_sparse.training import SlideClassifier, prediction

    step, stream = SlideClassifier.predict_step, prediction.stream_outcomes
    in_model: list[float] = []
    peaks: list[float] = []
    loop = [0.0, 0.0]

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        result = step(*arguments)
        in_model.append(time.perf_counter() - start)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return result

    def followed(*arguments: Any, **settings: Any) -> Any:
        loop[0] = time.perf_counter()
        yield from stream(*arguments, **settings)
        loop[1] = time.perf_counter()

    SlideClassifier.predict_step = timed
    prediction.stream_outcomes = followed
    words = ["--checkpoint", folder / "model.ckpt", "--store", folder / "store", "--cohort", folder / "cohort.csv"]
    words += ["--output", folder / "out", "--device", "cpu", "--num-workers", workers]
    evaluate.run(evaluate.build_parser().parse_args([str(word) for word in words]))
    whole, inside, loop_s = time.perf_counter() - began, sum(in_model), loop[1] - loop[0]
    early = min(EARLY, len(peaks))
    return {
        "peak_mib_after_early": round(peaks[early - 1], 1),
        "early_slides": early,
        "peak_mib_at_the_end": round(peaks[-1], 1),
        "peak_mib_with_statistics": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "model_s": round(inside, 2),
        "model_s_per_slide": round(inside / len(peaks), 4),
        "loop_s": round(loop_s, 2),
        "whole_command_s": round(whole, 2),
        "share_outside_the_model_in_the_loop": round(1 - inside / loop_s, 4),
        "share_outside_the_model_of_the_command": round(1 - inside / whole, 4),
    }


if __name__ == "__main__":
    main()
