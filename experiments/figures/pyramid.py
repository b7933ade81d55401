"""Draws the picture of the README: one slide's patches at three pyramid levels, with an attention window.

python experiments/figures/pyramid.py docs/pyramid.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
from scipy.ndimage import gaussian_filter

from span_sparse.files import replacing
from span_sparse.sparse import build_pyramid

SIDE, WINDOW = 24, 3


def main() -> int:
    noise = gaussian_filter(np.random.default_rng(3).standard_normal((SIDE, SIDE)), 3.2)
    cells = np.argwhere(noise > np.quantile(noise, 0.55))
    coords = torch.from_numpy(np.concatenate([np.zeros((len(cells), 1)), cells], axis=1)).int()
    levels = build_pyramid(coords, 1, num_levels=3, window_size=WINDOW).levels
    mpl.rcParams.update({"svg.hashsalt": "pyramid", "font.size": 10, "svg.fonttype": "none"})
    figure, axes = plt.subplots(1, 3, figsize=(9.8, 4.1), layout="constrained")
    for number, (axis, level) in enumerate(zip(axes, levels, strict=True)):
        scale = 2**number
        for _, row, col in level.sites.coords.tolist():
            axis.add_patch(Rectangle((col * scale, row * scale), scale, scale, fc="#9ecae1", ec="white", lw=0.8))
        width = 2 * WINDOW * scale
        for offset, style, label in ((0, "-", "regular window"), (-WINDOW * scale, "--", "shifted window")):
            corner = (width + offset if width * 2 <= SIDE else offset,) * 2
            axis.add_patch(Rectangle(corner, width, width, fill=False, ec="#d95f02", lw=1.8, ls=style, label=label))
        axis.set(xlim=(-0.5, SIDE + 0.5), ylim=(SIDE + 0.5, -0.5), aspect="equal", xticks=[], yticks=[])
        axis.set_title(f"level {number}: {len(level.sites)} cells of {scale} × {scale} patches", fontsize=10, pad=8)
        for spine in axis.spines.values():
            spine.set_color("#bbbbbb")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    with replacing(Path(sys.argv[1])) as stream:
        figure.savefig(
            stream,
            format=Path(sys.argv[1]).suffix[1:],
            metadata={"Date": None} if sys.argv[1].endswith("svg") else None,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
