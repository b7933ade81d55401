"""What does it cost to augment a slide of 20,000 patches, and how little could it cost?

1. A slide of 20,000 cells is augmented many times with every operation on (probability 1: mirror, shear, quarter turn,
   tilt), with another seed each time; the median is `ms_20k_tokens`. One thread, as in a worker of a DataLoader.
2. The default settings (probability ¾) and the eight symmetries of the square are timed in turns with it; so are the
   two options that touch features, on 1,024 float16 channels.
3. The floor is what nobody can go below: the cells are read once and written once (8 bytes each), at the speed at which
   one thread of this machine copies memory. What lies between is the number of passes: each of the four shears reads
   and writes the cells, and converts one axis to float64 and back.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from span_sparse.datasets.augment import AugmentationSettings, augment, square_symmetry
from span_sparse.version import package_version

NUM_TOKENS, CHANNELS = 20_000, 1_024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--repeats", type=int, default=401, help="slides of each kind")
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = json.dumps(measure(options.repeats), indent=2)
    print(text)
    if options.json:
        temporary = options.json.with_name(f".{options.json.name}.tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(options.json)


def measure(repeats: int) -> dict[str, Any]:
    """All figures; times in milliseconds."""
    grid = make_grid()
    features = torch.randn(NUM_TOKENS, CHANNELS, generator=torch.Generator().manual_seed(0)).half()

    def with_settings(**settings: Any) -> Callable[[int], object]:
        chosen = AugmentationSettings(**settings)
        return lambda seed: augment(grid, features, chosen, 0.0, torch.Generator().manual_seed(seed))

    cells_only = timed(
        {
            "all_operations": with_settings(probability=1.0),
            "default_settings": with_settings(),
            "square_symmetry": lambda seed: square_symmetry(grid, seed % 8),
        },
        repeats,
    )
    with_features = timed(
        {
            "token_drop_0.1": with_settings(probability=0.0, token_drop=0.1),
            "feature_noise_0.1": with_settings(probability=0.0, feature_noise=0.1),
        },
        max(repeats // 20, 3),
    )
    bandwidth = copy_gb_per_s()
    cells_bytes = 2 * grid.nbytes  # read and written
    floor_ms = cells_bytes / bandwidth / 1e6
    return {
        "ms_20k_tokens": round(statistics.median(cells_only["all_operations"]), 4),
        "limit_ms": 5.0,
        "floor_ms": round(floor_ms, 4),
        "times_floor": round(statistics.median(cells_only["all_operations"]) / floor_ms, 1),
        "floor_bytes": cells_bytes,
        "memory_gb_per_s": round(bandwidth, 2),
        "medians_ms": {name: round(statistics.median(of), 4) for name, of in {**cells_only, **with_features}.items()},
        "percentile_90_ms": {name: round(statistics.quantiles(of, n=10)[-1], 4) for name, of in cells_only.items()},
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "load_average_1_min": round(os.getloadavg()[0], 1),
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "versions": {
            "python": platform.python_version(),
            **{name: package_version(name) for name in ("span-sparse", "torch")},
        },
    }


def make_grid() -> torch.Tensor:
    """A disc of tissue with gaps: 20,000 cells, row-major."""
    side = 220
    cells = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    generator = torch.Generator().manual_seed(0)
    inside = (cells - side / 2).norm(dim=1) < side / 2
    tissue = cells[inside][torch.rand(int(inside.sum()), generator=generator) < 0.6]
    assert len(tissue) >= NUM_TOKENS
    return tissue[:NUM_TOKENS].int()


def timed(variants: dict[str, Callable[[int], object]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every call, the variants in turns after a warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(repeats + 1):
        for name, change in variants.items():
            start = time.perf_counter()
            result = change(number)
            elapsed = time.perf_counter() - start
            del result
            if number:
                times[name].append(elapsed * 1e3)
    return times


def copy_gb_per_s() -> float:
    """Bytes read and written per second when one thread copies 256 MB."""
    source = torch.zeros(2**28, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds[1:]) / 1e9


if __name__ == "__main__":
    main()
