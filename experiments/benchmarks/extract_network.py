"""The speed of a network at the end of an extraction, against its own.

`extract.py --device cuda` runs this. On one host, one after the other, with a network of random weights:

1. *bare*: the network on inputs that lie on the device, in chunks of 64 and of 256; the faster is the yardstick.
2. *stream*: batches of 256 host patches through the encoder's stream, as the engine does it; *calls*: the same, one
   call a batch, each waited for.
3. *extraction*: a cohort of `--slides` synthetic slides, all of it: tissue, reading, encoding, writing. Watched is the
   stream between engine and encoder: when it was loaded, when the first vectors came, how long it had no batch.
   *Loaded* is when the network and the libraries of the first worker are.

Nothing is downloaded: weights of the encoder's shapes are drawn and written to a file, the slides are one file under
several names. With `--device cpu` a tiny network stands in, to try the benchmark itself.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from span_sparse.cohort import read_cohort
from span_sparse.extract import extract_cohort
from span_sparse.extract.encoders.torch_encoder import TorchEncoder
from span_sparse.extract.encoders.transform import Transform
from span_sparse.extract.encoding_stream import EncodingStream
from span_sparse.extract.workers import WorkerPool
from span_sparse.grid import LatticeSpec
from span_sparse.types import EncoderIdentity

BATCH = 256
TINY_PX = 64
STREAM_TARGET, EXTRACTION_TARGET, IDLE_TARGET, FIRST_TARGET_S = 0.95, 0.9, 0.1, 2.0


@dataclass
class Watched:
    """An encoder that one process owns, and what its stream did."""

    encoder: TorchEncoder
    device: str = "one process"
    loaded_s: float = 0.0
    first_submit_s: float = 0.0
    first_result_s: float = 0.0
    last_result_s: float = 0.0
    idle_s: float = 0.0
    num_patches: int = 0
    pools: list[WorkerPool[Any]] = field(default_factory=list)

    @property
    def identity(self) -> EncoderIdentity:
        """Of the encoder."""
        return self.encoder.identity

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Not watched."""
        return self.encoder(patches)

    def encoding_stream(self) -> WatchedStream:
        """The watched stream."""
        return WatchedStream(self, self.encoder.encoding_stream())


@dataclass
class WatchedStream:
    """Notes times, and hands on."""

    log: Watched
    stream: EncodingStream
    sizes: list[int] = field(default_factory=list)

    def prepare(self) -> None:
        """Load."""
        self.stream.prepare()
        self.log.loaded_s = time.perf_counter()

    def submit(self, patches: np.ndarray) -> None:
        """Note how long there was no batch."""
        now_s = time.perf_counter()
        if not self.log.first_submit_s:
            self.log.first_submit_s = now_s
        elif not self.sizes:
            self.log.idle_s += now_s - self.log.last_result_s
        self.sizes.append(len(patches))
        self.stream.submit(patches)

    def ready(self) -> bool:
        """As it is."""
        return self.stream.ready()

    def collect(self) -> np.ndarray:
        """Count."""
        vectors = self.stream.collect()
        self.log.num_patches += self.sizes.pop(0)
        self.log.last_result_s = time.perf_counter()
        self.log.first_result_s = self.log.first_result_s or self.log.last_result_s
        return vectors


@dataclass(frozen=True)
class LoadTiny:
    """A network of one convolution."""

    def __call__(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """The network."""
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(3, 32, 16, stride=16).to(device).eval().requires_grad_(False)
        return lambda inputs: layer(inputs).mean(dim=(2, 3))


def make_encoder(options: argparse.Namespace, folder: Path) -> TorchEncoder:
    """The encoder of this name with random weights; a tiny one on the CPU unless a name is given."""
    if options.encoder is None and options.device == "cpu":
        transform = Transform(56, 56, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
        return TorchEncoder(EncoderIdentity("tiny", "1", "mean", 32, TINY_PX, 0.5, "float16"), transform, LoadTiny())
    import_timm()
    from span_sparse.extract.encoders import load_encoder
    from span_sparse.extract.encoders.catalogue import SPECS
    from span_sparse.extract.encoders.networks import keep

    name = options.encoder or "uni_v1"
    spec = SPECS[name]
    if spec.convert is not keep:
        raise SystemExit(f"--encoder {name}: its weights have other names than its network; take uni_v1 or the like")
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in spec.build().state_dict().items()}
    path = folder / "random.pt"
    torch.save({key: random_tensor(shape) for key, shape in shapes.items()}, path)
    made = load_encoder(name, weights=path, device=options.device, precision="float16")
    assert isinstance(made, TorchEncoder)
    return made


def random_tensor(shape: torch.Size) -> Tensor:
    """Normal numbers that repeat after a million, for a billion take minutes to draw."""
    numbers = torch.randn(2**20, generator=torch.Generator().manual_seed(0)) * 0.02
    return numbers.repeat(-(-shape.numel() // len(numbers)))[: shape.numel()].reshape(shape).clone()


def edge_of(options: argparse.Namespace) -> int:
    """Pixels of a patch's edge."""
    if options.encoder is None and options.device == "cpu":
        return TINY_PX
    from span_sparse.extract.encoders.catalogue import SPECS

    return SPECS[options.encoder or "uni_v1"].input_size_px


def import_timm() -> Any:
    """timm, also where no torchvision fits torch: then with the stand-in of the tests."""
    path = Path(__file__).parents[2] / "tests/extract/encoders/torchvision_shim.py"
    spec = importlib.util.spec_from_file_location("torchvision_shim", path)
    assert spec is not None
    assert spec.loader is not None
    shim = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = shim
    spec.loader.exec_module(shim)
    return shim.import_timm()


def bare(encoder: TorchEncoder, chunk: int, seconds: float) -> float:
    """Patches per second of the network on inputs that are there."""
    device = torch.device(encoder.device)
    edge = encoder.transform.crop_px
    with torch.inference_mode(), encoder._autocast(device):
        network = encoder.load(device)
        inputs = torch.randn(chunk, 3, edge, edge, device=device)

        def run() -> None:
            network(inputs)

        return chunk * rate(run, device, seconds)


def rate(run: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Calls per second; the median of five spans."""
    run()
    wait_for(device)
    begin_s = time.perf_counter()
    run()
    wait_for(device)
    calls = max(1, round(seconds / 5 / (time.perf_counter() - begin_s)))
    rates: list[float] = []
    for _ in range(5):
        begin_s = time.perf_counter()
        for _ in range(calls):
            run()
        wait_for(device)
        rates.append(calls / (time.perf_counter() - begin_s))
    return statistics.median(rates)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def streamed(encoder: TorchEncoder, patches: np.ndarray, seconds: float) -> float:
    """Patches per second through the encoder's stream, two batches in it, from host memory."""
    stream = encoder.encoding_stream()
    stream.prepare()
    batches = np.split(patches, len(patches) // BATCH)
    num_done, number = 0, 0
    stream.submit(batches[-1])
    begin_s = time.perf_counter()
    while time.perf_counter() - begin_s < seconds:
        stream.submit(batches[number % len(batches)])
        num_done += len(stream.collect())
        number += 1
    num_done += len(stream.collect())
    return num_done / (time.perf_counter() - begin_s)


def called(encoder: TorchEncoder, patches: np.ndarray, seconds: float) -> float:
    """Patches per second of calls with host arrays, one after the other."""
    return BATCH * rate(lambda: encoder(patches[:BATCH]), torch.device(encoder.device), seconds)


def cohort_of(root: Path, slide: Path, count: int) -> Path:
    """A table of slides that are one file under several names."""
    for number in range(count):
        (slide.parent / f"copy{number}.tiff").unlink(missing_ok=True)
        os.link(slide, slide.parent / f"copy{number}.tiff")
    table = root / "cohort.csv"
    rows = [f"s{number},{number},copy{number}.tiff" for number in range(count)]
    table.write_text("\n".join(["slide_id,case_id,path", *rows]) + "\n")
    return table


def measure(root: Path, slide: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures; the slide is written already, for patches of this encoder."""
    encoder = make_encoder(options, root)
    device = torch.device(encoder.device)
    seconds, edge = options.seconds, encoder.identity.input_size_px
    by_chunk = {chunk: bare(encoder, chunk, seconds) for chunk in options.chunks}
    best = max(by_chunk.values())
    patches = np.random.default_rng(0).integers(0, 256, (4 * BATCH, edge, edge, 3), dtype=np.uint8)
    in_stream, in_calls = streamed(encoder, patches, seconds), called(encoder, patches, seconds)
    encoder._stream = None
    gc.collect()

    log = Watched(encoder)
    table = cohort_of(root, slide, options.slides)
    start = WorkerPool.start

    def noted(pool: WorkerPool[Any]) -> None:
        log.pools.append(pool)
        start(pool)

    WorkerPool.start = noted  # type: ignore[method-assign]
    begin_s = time.perf_counter()
    statuses = extract_cohort(
        read_cohort(table), slide.parent, root / "store", spec=LatticeSpec(edge, encoder.identity.mpp),
        encoder=log, workers=options.workers, batch_size=BATCH,
    )  # fmt: skip
    end_s = time.perf_counter()
    WorkerPool.start = start  # type: ignore[method-assign]
    ready_s = min((lane.ready_s for pool in log.pools for lane in pool.lanes if lane.ready_s), default=begin_s)
    failed = [status.error for status in statuses if status.status != "done"]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(statuses)} slides failed, the first: {failed[0]}")
    encoding_s = log.last_result_s - log.first_submit_s
    whole = log.num_patches / encoding_s
    first_s = log.first_result_s - max(log.loaded_s, ready_s)
    idle = log.idle_s / encoding_s
    return {
        "stream_to_bare": round(in_stream / best, 3),
        "calls_to_bare": round(in_calls / best, 3),
        "extraction_to_bare": round(whole / best, 3),
        "extraction_to_bare_from_loaded_to_written": round(log.num_patches / (end_s - log.loaded_s) / best, 3),
        "share_of_time_without_a_batch": round(idle, 3),
        "loaded_to_first_patch_s": round(first_s, 2),
        "targets_met": bool(
            in_stream / best >= STREAM_TARGET and whole / best >= EXTRACTION_TARGET
            and idle < IDLE_TARGET and first_s <= FIRST_TARGET_S
        ),
        "bare_patches_per_s": {str(chunk): round(value, 1) for chunk, value in by_chunk.items()},
        "stream_patches_per_s": round(in_stream, 1),
        "calls_patches_per_s": round(in_calls, 1),
        "extraction_patches_per_s": round(whole, 1),
        "start_to_workers_ready_s": round(ready_s - begin_s, 2),
        "start_to_loaded_s": round(log.loaded_s - begin_s, 2),
        "start_to_first_batch_s": round(log.first_submit_s - begin_s, 2),
        "start_to_first_patch_s": round(log.first_result_s - begin_s, 2),
        "last_patch_to_end_s": round(end_s - log.last_result_s, 2),
        "slides": options.slides,
        "patches": log.num_patches,
        "workers": options.workers,
        "encoder": f"{encoder.identity.name}, random weights, {encoder.compute}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "torch": torch.__version__,
    }  # fmt: skip
