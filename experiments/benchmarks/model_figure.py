"""Growth of the model benchmark's figures with the number of patches: slopes, and the drawing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

_COLOURS = {
    "span": "#d95f02",
    "full_attention_fused": "#1b9e77",
    "full_attention_naive": "#66a61e",
    "transmil": "#7570b3",
    "attention_pooling": "#444444",
}


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

    on_cuda = any(str(cell["device"]).startswith("cuda") for cell in cells)
    time_key = ("seconds", "seconds") if on_cuda else ("cpu_seconds", "CPU seconds")
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.5), layout="constrained", sharex=True)
    for column, mode in enumerate(("forward", "forward_backward")):
        for row, (key, label) in enumerate((time_key, ("peak_mb", "peak memory growth, MB"))):
            axis = axes[row, column]
            for name, colour in _COLOURS.items():
                line = [cell for cell in cells if cell["model"] == name and cell["mode"] == mode]
                if line:
                    slope = exponent(line, key, 10_000)
                    text = name if slope is None else f"{name} (slope {slope:.2f} from 10k)"
                    patches = [cell["patches"] for cell in line]
                    axis.plot(patches, [cell[key] for cell in line], "o-", color=colour, label=text, ms=4)
            axis.set(xscale="log", yscale="log", ylabel=label, title=mode.replace("_", " + ") if row == 0 else "")
            axis.grid(alpha=0.3, which="both")
            axis.legend(fontsize=8, loc="upper left")
            if row:
                axis.set_xlabel("patches")
    figure.savefig(path, dpi=120)
