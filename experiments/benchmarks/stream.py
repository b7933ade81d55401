"""Slides per second, end to end: data on the host, batches made ready ahead, the model on the device.

    python experiments/benchmarks/stream.py --json stream.json
    python experiments/benchmarks/stream.py --source memory store --workers 8 --models span

One row is one model, size of slide, source and mode. Every model gets the same slides in float16 through the product's
own prefetcher (`span_sparse.datasets.prefetch`: a thread with a stream of its own, copies from page-locked memory,
conversion on the device).

* `span`: the classification preset; batches by budget of tokens (`--max-tokens`), geometry on the side stream.
* `transmil`, `abmil` (torchmil), `full_attention` (`model.py`, fused kernels): one slide a pass, as their authors'
  training loops do and as slides of different sizes allow.
* `full_attention_stacked`: as many slides a pass as SPAN, stacked. All slides of this benchmark have the same size, so
  nothing is padded: the best case of a padded batch.

`memory`: batches lie joined in (page-locked) memory. `store`: a feature store that was just written, so that it comes
from the system's page cache; `--workers` processes read it. Beside it, `reading` is the same number of workers with
nobody to wait for. `share` of a row of the store is its speed over the smaller of reading and the same model's speed
from memory; both sources have to be measured in the run.

`inference`: evaluation mode, no gradients. `training`: training mode, forward, cross-entropy, backward, AdamW (fused on
CUDA). Precision is bfloat16 autocast on CUDA, float32 on the CPU. The first passes are not counted: kernels are
compiled in them, workers started, checksums compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from model import NUM_FEATURES, FullAttention, build, tissue
from torch import Tensor, nn
from torch.utils.data import DataLoader

from span_sparse.datasets import SlideBatch, SlideDataset, SlideSample, collate
from span_sparse.datasets.batching import OrderedBatches
from span_sparse.datasets.loaders import SlideLoader
from span_sparse.datasets.prefetch import Placement, placed, placement_for
from span_sparse.datasets.slide_dataset import SlideItem
from span_sparse.files import write_atomically

MODELS = ("span", "transmil", "abmil", "full_attention", "full_attention_stacked")
MODES = ("inference", "training")
SOURCES = ("memory", "store")
BY_BUDGET = ("span", "full_attention_stacked")
NUM_WARM_UP = 3
NUM_EPOCHS = 200


class StackedFullAttention(FullAttention):
    """The same layers over several slides of one size."""

    def forward(self, features: Tensor) -> Tensor:
        """Logits of every slide of `[slides, tokens, features]`."""
        rows = self.project(features)
        for layer in self.layers:
            qkv = layer["qkv"](layer["norm"](rows)).unflatten(-1, (3, self.num_heads, -1))
            q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (slides, heads, tokens, head_channels)
            attended = F.scaled_dot_product_attention(q, k, v)
            rows = rows + layer["output"](attended.transpose(1, 2).flatten(2))
            rows = rows + layer["feed_forward"](rows)
        return self.classify(rows.mean(dim=1))


class Contestant(nn.Module):
    """A model that takes a batch and answers with two logits a slide."""

    def __init__(self, name: str, device: torch.device) -> None:
        super().__init__()
        self.name = name
        if name == "full_attention_stacked":
            self.model: nn.Module = StackedFullAttention(fused=True).to(device)
        else:
            known = {"full_attention": "full_attention_fused", "abmil": "attention_pooling"}
            self.model = build(known.get(name, name), 64, device)[0]

    def forward(self, batch: SlideBatch) -> Tensor:
        """Logits `[slides, 2]`."""
        if self.name == "span":
            place = batch.place if hasattr(self.model, "prepare") else batch.coords
            return self.model(batch.features, place, batch.num_slides)
        if self.name == "full_attention_stacked":
            return self.model(batch.features.unflatten(0, (batch.num_slides, -1)))
        if self.name == "full_attention":
            return self.model(batch.features)
        answer = self.model(batch.features[None]).reshape(1)
        return torch.stack([torch.zeros_like(answer), answer], dim=1)


def samples(num_slides: int, num_patches: int) -> list[SlideSample]:
    """Slides of random features; they share their tensors, and batches made of them do not."""
    features = torch.randn(num_patches, NUM_FEATURES, generator=torch.Generator().manual_seed(0)).half()
    grid = tissue(num_patches)[:, 1:]
    grid = grid[torch.argsort(grid[:, 0].long() * 2**20 + grid[:, 1])].contiguous()
    return [SlideSample(index, features, grid, index % 2) for index in range(num_slides)]


class MemorySource:
    """Joined batches, over and over; on a GPU in page-locked memory."""

    def __init__(self, slides: list[SlideSample], steps: list[list[int]], placement: Placement | None) -> None:
        self.placement = placement
        pinned = placement is not None and placement.pinned
        on_cpu = [collate([slides[slide] for slide in step], as_stored=True, pinned=pinned) for step in steps]
        self.batches = [batch.pin_memory() for batch in on_cpu] if pinned else on_cpu

    def __iter__(self) -> Iterator[SlideBatch]:
        return placed(self._forever(), self.placement)

    def _forever(self) -> Iterator[SlideBatch]:
        while True:
            yield from self.batches


class StoreSource:
    """Batches of a loader over a store, in one epoch without an end: what starting one costs is not measured."""

    def __init__(self, data: SlideDataset, steps: list[list[int]], placement: Placement | None, workers: int) -> None:
        self.loader = SlideLoader(data, workers, placement=placement, batch_sampler=steps * NUM_EPOCHS)

    def __iter__(self) -> Iterator[SlideBatch]:
        return iter(self.loader)


def write_store(folder: Path, slides: list[SlideSample]) -> SlideDataset:
    """A store of the slides."""
    from span_sparse.grid import LatticeSpec
    from span_sparse.store import FeatureStore, SlideRecord
    from span_sparse.types import EncoderIdentity

    lattice = LatticeSpec(224, 0.5).on_slide(0.5)
    encoder = EncoderIdentity("benchmark", "1", "random", NUM_FEATURES, 224, 0.5, "float16")
    store = FeatureStore.create(folder)
    for slide in slides:
        grid = slide.grid.numpy()
        extent = int(grid.max()) * 224 + 224
        record = SlideRecord(
            slide_id=f"s{slide.index:04d}", case_id=f"p{slide.index:04d}", features=slide.features.numpy(), grid=grid,
            coords=lattice.to_px0(grid), lattice=lattice, mpp_source="cohort", encoder=encoder,
            slide_checksum=f"sha256:{slide.index:04x}", width_px0=extent, height_px0=extent, provenance={},
        )  # fmt: skip
        store.write(record)
    items = [SlideItem(f"s{slide.index:04d}", f"p{slide.index:04d}", slide.label) for slide in slides]
    return SlideDataset(store, items)


def reading_speed(data: SlideDataset, workers: int, seconds: float) -> float:
    """Slides/s that the workers read when nobody does anything with them."""
    loader = DataLoader(
        data, batch_size=None, num_workers=workers, collate_fn=_as_it_is, persistent_workers=workers > 0
    )
    for _ in loader:  # workers start, checksums are compared
        pass
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += sum(1 for _ in loader)
    return count / (time.perf_counter() - start)


def _as_it_is(sample: SlideSample) -> SlideSample:
    return sample


class Run:
    """One model in one mode on one device."""

    def __init__(self, contestant: Contestant, mode: str, device: torch.device, precision: str) -> None:
        self.model, self.mode, self.device = contestant.train(mode == "training"), mode, device
        bf16 = torch.autocast(device.type, torch.bfloat16)
        self.precision: Any = bf16 if precision == "bf16" else nullcontext()
        parameters = [one for one in contestant.parameters() if one.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=device.type == "cuda")

    def step(self, batch: SlideBatch) -> None:
        """One pass over a batch, asked for and not waited for."""
        batch = batch.to(self.device)
        if self.mode == "inference":
            with torch.inference_mode(), self.precision:
                self.model(batch)
            return
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision:
            logits = self.model(batch)
        F.cross_entropy(logits.float(), batch.labels).backward()
        self.optimizer.step()

    def speed(self, source: Iterable[SlideBatch], seconds: float, warm_up: int) -> tuple[float, int]:
        """Slides/s, and slides counted, over at least so many seconds after the warm-up."""
        batches = iter(source)
        for _ in range(warm_up):
            self.step(next(batches))
        self.wait()
        start, count = time.perf_counter(), 0
        while not count or time.perf_counter() - start < seconds:
            batch = next(batches)
            self.step(batch)
            count += batch.num_slides
        self.wait()
        elapsed = time.perf_counter() - start
        if hasattr(batches, "close"):
            batches.close()  # pyright: ignore[reportAttributeAccessIssue]
        return count / elapsed, count

    def wait(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(args: argparse.Namespace, num_patches: int) -> Iterator[dict[str, Any]]:
    """The rows of one size, one after the other."""
    device, slides = torch.device(args.device), samples(args.slides, num_patches)
    grouped = list(OrderedBatches([num_patches] * len(slides), max_tokens=args.max_tokens))
    alone = [[slide] for slide in range(len(slides))]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        data, reading = None, None
        if "store" in args.source:
            data = write_store(Path(folder) / "store", slides)
            reading = reading_speed(data, args.workers, args.seconds)
            yield {"model": "reading", "patches": num_patches, "source": "store", "slides_per_s": reading}
        for mode in args.modes:
            for name in args.models:
                torch.manual_seed(0)
                contestant = Contestant(name, device)
                steps = grouped if name in BY_BUDGET else alone
                speeds: dict[str, float] = {}
                for source in args.source:
                    batches, warm_up = _source(args, source, slides, steps, data, contestant)
                    run = Run(contestant, mode, device, args.precision)
                    speed, count = run.speed(batches, args.seconds, warm_up)
                    speeds[source] = speed
                    row = {"model": name, "patches": num_patches, "source": source, "mode": mode}
                    row |= {"slides_per_s": speed, "slides": count, "slides_per_pass": len(steps[0])}
                    if source == "store" and "memory" in speeds and reading is not None:
                        row["share"] = speed / min(reading, speeds["memory"])
                    yield row
                    del batches, run


def _source(
    args: argparse.Namespace,
    source: str,
    slides: list[SlideSample],
    steps: list[list[int]],
    data: SlideDataset | None,
    contestant: Contestant,
) -> tuple[Iterable[SlideBatch], int]:
    """Batches for a model, and how many of them are not counted."""
    placement = placement_for(args.device, contestant.model if contestant.name == "span" else None)
    if placement is not None:
        placement = replace(placement, depth=args.depth, background=not args.same_thread)
    if source == "memory" or data is None:
        return MemorySource(slides, steps, placement), NUM_WARM_UP
    return StoreSource(data, steps, placement, args.workers), max(NUM_WARM_UP, len(steps))


def print_row(row: dict[str, Any], span: dict[tuple[Any, ...], float]) -> None:
    """One line of the table; ratios to SPAN's speed of the same size, source and mode."""
    key = tuple(row.get(name) for name in ("patches", "source", "mode"))
    if row["model"] == "span":
        span[key] = row["slides_per_s"]
    ratio = f"{span[key] / row['slides_per_s']:.2f}" if key in span else ""
    share = f"{row['share']:.2f}" if "share" in row else ""
    print(
        f"{row['model']:<24}{row['patches']:>8} {row['source']:<8}{row.get('mode', ''):<11}"
        f"{row.get('slides_per_pass', ''):>12}{row['slides_per_s']:>12.1f}{ratio:>10}{share:>8}",
        flush=True,
    )


def parse() -> argparse.Namespace:
    """The options, with defaults by device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, nargs="+", default=[10_000], help="of a slide")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--source", nargs="+", choices=SOURCES, default=["memory"])
    parser.add_argument("--slides", type=int, default=60, help="different slides, in memory and in the store")
    parser.add_argument("--max-tokens", type=int, default=200_000, help="patches a batch, where batches have a budget")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each row, beside its warm-up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("bf16", "float32"), help="default: bf16 on CUDA, float32 on the CPU")
    parser.add_argument("--workers", type=int, default=min(8, len(os.sched_getaffinity(0))), help="that read the store")
    parser.add_argument("--depth", type=int, default=1, help="batches made ready beside the one that is computed")
    parser.add_argument("--same-thread", action="store_true", help="make batches ready in the consumer's own thread")
    parser.add_argument("--folder", type=Path, help="where the temporary store goes (default: the system's)")
    parser.add_argument("--json", type=Path, help="write the rows there")
    args = parser.parse_args()
    if args.precision is None:
        args.precision = "bf16" if args.device.startswith("cuda") else "float32"
    args.source = [source for source in SOURCES if source in args.source]  # the store's share needs the memory's speed
    args.models = [name for name in MODELS if name in args.models]
    return args


def main() -> int:
    args = parse()
    device = torch.device(args.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    print(f"{card}, {args.precision}, Python {platform.python_version()}, torch {torch.__version__}")
    print(
        f"{'model':<24}{'patches':>8} {'source':<8}{'mode':<11}{'slides/pass':>12}{'slides/s':>12}{'SPAN ×':>10}"
        f"{'share':>8}"
    )
    rows: list[dict[str, Any]] = []
    span: dict[tuple[Any, ...], float] = {}
    for num_patches in args.patches:
        for row in measure(args, num_patches):
            rows.append(row | {"card": card, "precision": args.precision, "workers": args.workers})
            print_row(row, span)
    if args.json is not None:
        write_atomically(args.json, (json.dumps(rows, indent=2) + "\n").encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
