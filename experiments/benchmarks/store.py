"""What does it cost to read a slide from the store, measured against `numpy.load` and against HDF5?

1. One slide of 10,000 × 1,024 float16 is written to a store and to an `.npy` file, in a temporary folder.
2. Both are read in turns (so that both see the same machine), many times; the median of each is taken. Files are in the
   page cache: what is measured is the software, not the disk.
3. The floor is what nobody can go below: the bytes of the features over the speed at which this machine copies memory.

`read_ratio_to_numpy` is `FeatureStore.read` (arrays, metadata and checks) by `numpy.load` (features alone); it must
stay below 2. The first read of a slide by an open store also compares checksums: `first_read_ratio_to_numpy`.
`read_ratio_to_row_chunked_h5` is `FeatureStore.read` by h5py reading the features from a file with chunks of one row,
the layout in which TRIDENT and CLAM write them; it must stay below 0.1. That file is opened, read whole and closed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from span_sparse.grid import LatticeSpec
from span_sparse.store import FeatureStore, SlideRecord
from span_sparse.types import EncoderIdentity
from span_sparse.version import package_version

NUM_PATCHES, CHANNELS = 10_000, 1_024
SLIDE_ID = "slide"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--repeats", type=int, default=41, help="reads of each kind")
    parser.add_argument("--folder", type=Path, help="where the temporary files go (default: the system's)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        figures = measure(Path(folder), options.repeats)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json:
        temporary = options.json.with_name(f".{options.json.name}.tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(options.json)


def measure(folder: Path, repeats: int) -> dict[str, Any]:
    """All figures; times in milliseconds."""
    record = make_record()
    store = FeatureStore.create(folder / "store")
    start = time.perf_counter()
    store.write(record)
    write_ms = (time.perf_counter() - start) * 1e3
    np.save(folder / "features.npy", record.features)
    buffer = np.empty_like(record.features)
    readers: dict[str, Callable[[], object]] = {
        "numpy_load_ms": lambda: np.load(folder / "features.npy"),
        "store_read_ms": lambda: store.read(SLIDE_ID),
        "store_first_read_ms": lambda: FeatureStore(store.path).read(SLIDE_ID),
        "floor_ms": lambda: np.copyto(buffer, record.features),
        "h5py_row_chunks_ms": hdf5_reader(folder / "features.h5", record.features),
    }
    times = medians_ms(readers, repeats)
    numpy_ms = times["numpy_load_ms"]
    return {
        "read_ratio_to_numpy": round(times["store_read_ms"] / numpy_ms, 3),
        "read_ratio_to_row_chunked_h5": round(times["store_read_ms"] / times["h5py_row_chunks_ms"], 4),
        "first_read_ratio_to_numpy": round(times["store_first_read_ms"] / numpy_ms, 3),
        "megabytes": record.features.nbytes / 1e6,
        "memory_copy_gb_per_s": round(record.features.nbytes / times["floor_ms"] / 1e6, 2),
        **{name: round(value, 3) for name, value in times.items()},
        "write_ms": round(write_ms, 1),
        "repeats": repeats,
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "versions": {
            "python": platform.python_version(),
            **{name: package_version(name) for name in ("span-sparse", "numpy", "zarr", "google-crc32c", "h5py")},
        },
    }


def make_record() -> SlideRecord:
    """A slide of 100 × 100 cells full of tissue."""
    lattice = LatticeSpec(224, 0.5).on_slide(0.25)
    grid = np.stack(np.divmod(np.arange(NUM_PATCHES), 100), axis=1).astype(np.int32)
    return SlideRecord(
        slide_id=SLIDE_ID,
        case_id=None,
        features=np.random.default_rng(0).standard_normal((NUM_PATCHES, CHANNELS)).astype(np.float16),
        grid=grid,
        coords=lattice.to_px0(grid),
        lattice=lattice,
        mpp_source="openslide",
        encoder=EncoderIdentity("noise", "1", "normal", CHANNELS, 224, 0.5, "float16"),
        slide_checksum="sha256:" + "0" * 64,
        width_px0=100 * 448,
        height_px0=100 * 448,
        provenance={},
    )


def hdf5_reader(path: Path, features: np.ndarray) -> Callable[[], object]:
    """Reads the features from an HDF5 file with one row a chunk."""
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features, chunks=(1, features.shape[1]))

    def read() -> object:
        with h5py.File(path, "r") as file:
            return file["features"][...]

    return read


def medians_ms(readers: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median time of each, measured in turns after one warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in readers}
    for round_number in range(repeats + 1):
        for name, read in readers.items():
            start = time.perf_counter()
            result = read()
            elapsed = time.perf_counter() - start
            del result
            if round_number:
                times[name].append(elapsed * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
