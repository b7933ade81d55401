"""How fast are patches read, and in how much memory, compared with a bare loop of OpenSlide?

1. A synthetic slide of 100,000 × 80,000 pixels is written: a pyramidal TIFF of JPEG tiles (levels 1, 4 and 16), tile
   by tile out of a few textures, tissue in a box of about `--patches` patches, glass elsewhere. `--cache` keeps it.
2. `span extract` (as a library) with an encoder that does nothing: 1,024 zeros a patch.
3. The bare loop: as many processes, the same cells in the same order, `openslide.read_region` and nothing else.
4. Both in turn, `--repeats` times; the ratio is of the median speeds, from the first patch that is asked for to the
   last that is there. `throughput_ratio_with_start` counts the whole run, start, tissue and writing too.

`peak_rss_mb` is the largest resident memory of any process of the extraction, the collecting one included; the encoder
has none. The target is 1,536 MB per worker, and a ratio of at least 0.85. With `--shrink 2` the slide has half the
pixel size of the patches, so that each patch is read at twice its edge and reduced: the bare loop does not reduce.

`--device cuda` measures something else: a network at the end of the extraction, against the network alone, see
`extract_network.py`; all defaults are for a GPU host of 16 cores, for about a minute. `--device cpu` tries that with a
tiny network.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import tifffile
from PIL import Image

from span_sparse.cohort import read_cohort
from span_sparse.extract import extract_cohort
from span_sparse.extract.engine import Engine
from span_sparse.grid import LatticeSpec
from span_sparse.store import FeatureStore
from span_sparse.types import EncoderIdentity
from span_sparse.version import package_version

WIDTH_PX0, HEIGHT_PX0 = 100_000, 80_000
TILE_PX, PATCH_PX, MPP = 256, 224, 0.5
LEVEL_FACTORS = (1, 4, 16)
BLOCK_PX0 = TILE_PX * LEVEL_FACTORS[-1]
"""The box of tissue is a whole number of these: a tile of any level is tissue or glass, never both."""
NUM_TEXTURES = 16
TARGET_RATIO, TARGET_MB = 0.85, 1536


@dataclass(frozen=True)
class NullEncoder:
    """Costs nothing, and fills as much memory as a real one's features."""

    mpp: float = MPP
    dimension: int = 1024

    @property
    def identity(self) -> EncoderIdentity:
        """As the store wants it."""
        return EncoderIdentity("null", "1", "zeros", self.dimension, PATCH_PX, self.mpp, "float16")

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Zeros."""
        return np.zeros((len(patches), self.dimension), np.float16)


@dataclass(frozen=True)
class NullDevice(NullEncoder):
    """The same, in the one process that would own a GPU."""

    device: str = "simulated"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--patches", type=int, help="about so many patches of tissue a slide (0: all cells)")
    parser.add_argument("--workers", type=int, help="default: 2; with a network all cores but two")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shrink", type=int, default=1, help="level-0 pixels per pixel of a patch")
    parser.add_argument(
        "--device", nargs="?", const="simulated",
        help="without a value: pixels through shared memory, as for a GPU; cuda, cuda:N, cpu: a network there",
    )  # fmt: skip
    parser.add_argument("--cache", type=Path, help="folder that keeps the slide (default: a temporary one)")
    network = parser.add_argument_group("with a network")
    network.add_argument("--encoder", help="its name (default: uni_v1 on cuda, a tiny one on cpu); weights are random")
    network.add_argument("--slides", type=int, default=4, help="slides of the cohort")
    network.add_argument("--seconds", type=float, default=4.0, help="of each measurement but the extraction")
    network.add_argument("--chunks", type=int, nargs="+", default=[64, 256], help="of the bare network")
    options = parser.parse_args()
    has_network = options.device not in (None, "simulated")
    if options.workers is None:
        options.workers = max(1, len(os.sched_getaffinity(0)) - 2) if has_network else 2
    if options.patches is None:
        options.patches = 16_000 if has_network else 6_000
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or Path(folder)
        cache.mkdir(parents=True, exist_ok=True)
        figures = (measure_network if has_network else measure)(Path(folder), cache, options)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json:
        temporary = options.json.with_name(f".{options.json.name}.tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(options.json)


def measure_network(root: Path, cache: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of a network at the end."""
    import extract_network  # torch takes seconds to load, and workers import this file

    edge = extract_network.edge_of(options)
    box = tissue_box(options.patches, edge * options.shrink)
    slide = cache / f"slide-{box[0]}x{box[1]}-{options.shrink}.tiff"
    if not slide.exists():
        write_slide(slide, box, MPP / options.shrink)
    return extract_network.measure(root, slide, options)


def measure(root: Path, cache: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    box = tissue_box(options.patches, PATCH_PX * options.shrink)
    slide = cache / f"slide-{box[0]}x{box[1]}-{options.shrink}.tiff"
    begin_s = time.perf_counter()
    made = not slide.exists()
    if made:
        write_slide(slide, box, MPP / options.shrink)
    made_s = time.perf_counter() - begin_s
    (root / "cohort.csv").write_text(f"slide_id,path\nslide,{slide.name}\n")
    encoder = NullDevice() if options.device else NullEncoder()
    ours: list[Extraction] = []
    bare: list[tuple[float, float]] = []
    for number in range(options.repeats):
        ours.append(extraction(root / f"store{number}", root / "cohort.csv", cache, encoder, options.workers))
        grid = FeatureStore(root / f"store{number}").read("slide").coords
        bare.append(bare_loop(slide, grid, PATCH_PX * options.shrink, options.workers))
    speed = statistics.median(run.patches / run.reading_s for run in ours)
    bare_speed = statistics.median(ours[0].patches / reading_s for reading_s, _ in bare)
    with_start = statistics.median(run.patches / run.total_s for run in ours)
    bare_with_start = statistics.median(ours[0].patches / total_s for _, total_s in bare)
    peak_mb = max(run.peak_rss_mb for run in ours)
    return {
        "throughput_ratio_to_read_region": round(speed / bare_speed, 3),
        "peak_rss_mb": round(peak_mb),
        "targets_met": speed / bare_speed >= TARGET_RATIO and peak_mb <= TARGET_MB,
        "throughput_ratio_with_start": round(with_start / bare_with_start, 3),
        "patches_per_s": round(speed, 1),
        "bare_patches_per_s": round(bare_speed, 1),
        "all_patches_per_s": [round(run.patches / run.reading_s, 1) for run in ours],
        "all_bare_patches_per_s": [round(ours[0].patches / reading_s, 1) for reading_s, _ in bare],
        "patches": ours[0].patches,
        "workers": options.workers,
        "shrink": options.shrink,
        "encoder": "null on a simulated device; not measured on a GPU" if options.device else "null, in the workers",
        "slide": f"{WIDTH_PX0} × {HEIGHT_PX0} px, {slide.stat().st_size / 1e6:.0f} MB",
        "slide_made_s": round(made_s, 1) if made else "cached",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "versions": {
            "python": platform.python_version(),
            **{name: package_version(name) for name in ("span-sparse", "numpy", "openslide-python", "pillow")},
            "openslide": openslide.__library_version__,
        },
    }


def tissue_box(num_patches: int, step_px0: int) -> tuple[int, int]:
    """Width and height of the tissue in level-0 pixels, whole blocks, at least one."""
    most = WIDTH_PX0 // BLOCK_PX0 - 1, HEIGHT_PX0 // BLOCK_PX0 - 1
    wanted = num_patches * step_px0**2 / BLOCK_PX0**2 if num_patches else most[0] * most[1]
    cols = min(most[0], max(1, math.ceil(math.sqrt(wanted))))
    return cols * BLOCK_PX0, min(most[1], max(1, round(wanted / cols))) * BLOCK_PX0


def write_slide(path: Path, box: tuple[int, int], mpp: float) -> None:
    """The slide, under a temporary name first."""
    tissue, glass = textures()
    temporary = path.with_name(f".{path.name}.tmp")
    with tifffile.TiffWriter(temporary, bigtiff=True) as file:
        for level, factor in enumerate(LEVEL_FACTORS):
            width, height = -(-WIDTH_PX0 // factor), -(-HEIGHT_PX0 // factor)
            file.write(
                tiles(width, height, (box[0] // factor, box[1] // factor), BLOCK_PX0 // factor, tissue, glass),
                shape=(height, width, 3),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",
                compression="zlib",
                subfiletype=int(level > 0),
                resolution=(10_000 / (mpp * factor), 10_000 / (mpp * factor)),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    # tifffile writes tiles that are encoded already, but as JPEG only with another package installed
    with tifffile.TiffFile(temporary, mode="r+b") as file:
        for page in file.pages:
            page.tags["Compression"].overwrite(tifffile.COMPRESSION.JPEG)
            page.tags["PhotometricInterpretation"].overwrite(tifffile.PHOTOMETRIC.YCBCR)
    temporary.replace(path)


def textures() -> tuple[list[bytes], bytes]:
    """JPEG tiles of coloured noise, and one of glass."""
    random = np.random.default_rng(0)
    tissue: list[bytes] = []
    for _ in range(NUM_TEXTURES):
        coarse = random.normal(0, 1, (TILE_PX // 8, TILE_PX // 8)).repeat(8, axis=0).repeat(8, axis=1)
        fine = random.normal(0, 1, (TILE_PX, TILE_PX))
        shade = (20 * coarse + 8 * fine)[..., None] * (0.4, 1.0, 0.5)
        tissue.append(jpeg((np.array((205, 130, 180)) + shade).clip(0, 255).astype(np.uint8)))
    return tissue, jpeg(np.full((TILE_PX, TILE_PX, 3), 244, np.uint8))


def jpeg(rgb: np.ndarray) -> bytes:
    """A complete JPEG stream, YCbCr 4:2:0."""
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format="jpeg", quality=80, subsampling="4:2:0")
    return file.getvalue()


def tiles(
    width: int, height: int, box: tuple[int, int], origin: int, tissue: list[bytes], glass: bytes
) -> Iterator[bytes]:
    """Tiles of a level, row by row; tissue from `(origin, origin)` on."""
    for row in range(-(-height // TILE_PX)):
        for col in range(-(-width // TILE_PX)):
            x, y = col * TILE_PX - origin, row * TILE_PX - origin
            inside = 0 <= x < box[0] and 0 <= y < box[1]
            yield tissue[(row * 7 + col * 3) % len(tissue)] if inside else glass


@dataclass(frozen=True)
class Extraction:
    """What one run of ours took."""

    patches: int
    reading_s: float
    total_s: float
    peak_rss_mb: float


def extraction(store: Path, cohort: Path, slides: Path, encoder: NullEncoder, workers: int) -> Extraction:
    """One run in a process of its own, watched from here."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_extract, args=(theirs, store, cohort, slides, encoder, workers))
    process.start()
    theirs.close()
    peak = PeakMemory(process.pid or 0)
    begin_s = time.perf_counter()
    patches, reading_s = ours.recv()
    process.join()
    return Extraction(patches, reading_s, time.perf_counter() - begin_s, peak.stop() / 2**20)


def _extract(connection: Any, store: Path, cohort: Path, slides: Path, encoder: NullEncoder, workers: int) -> None:
    """Times from the first request for patches to the last batch of them."""
    asked: list[float] = []
    came: list[float] = []
    read_request, collect = Engine._read_request, Engine._collect

    def timed_request(self: Any, *arguments: Any) -> Any:
        asked.append(time.perf_counter())
        return read_request(self, *arguments)

    def timed_collect(self: Any, *arguments: Any) -> Any:
        came.append(time.perf_counter())
        return collect(self, *arguments)

    Engine._read_request, Engine._collect = timed_request, timed_collect  # type: ignore[method-assign]
    (status,) = extract_cohort(
        read_cohort(cohort), slides, store, spec=LatticeSpec(PATCH_PX, MPP), encoder=encoder, workers=workers
    )
    assert status.status == "done", status.error
    connection.send((status.num_patches, came[-1] - asked[0]))


class PeakMemory:
    """Largest resident memory of any process below one, sampled (Linux)."""

    def __init__(self, pid: int) -> None:
        self._pid, self._peak, self._running = pid, 0, True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Bytes."""
        self._running = False
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while self._running:
            for pid in descendants(self._pid):
                try:
                    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                except OSError:
                    continue
                peaks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
                self._peak = max(self._peak, *peaks, 0)
            time.sleep(0.2)


def descendants(pid: int) -> list[int]:
    """A process and those it started, and those they started."""
    found = [pid]
    for known in found:
        for path in Path(f"/proc/{known}/task").glob("*/children"):
            try:
                found += [int(text) for text in path.read_text().split()]
            except OSError:
                continue
    return found


def bare_loop(slide: Path, corners: np.ndarray, size_px0: int, workers: int) -> tuple[float, float]:
    """Seconds of reading, and with start of the processes, of the same patches in as many processes."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(workers + 1)
    begin_s = time.perf_counter()
    parts = [corners[number * len(corners) // workers :][: len(corners) // workers + 1] for number in range(workers)]
    processes = [context.Process(target=_bare, args=(barrier, slide, part, size_px0)) for part in parts]
    for process in processes:
        process.start()
    barrier.wait()
    reading_s = time.perf_counter()
    barrier.wait()
    end_s = time.perf_counter()
    for process in processes:
        process.join()
    return end_s - reading_s, time.perf_counter() - begin_s


def _bare(barrier: Any, path: Path, corners: np.ndarray, size_px0: int) -> None:
    with openslide.OpenSlide(path) as slide:
        barrier.wait()
        for x, y in corners.tolist():
            slide.read_region((x, y), 0, (size_px0, size_px0))
        barrier.wait()


if __name__ == "__main__":
    main()
