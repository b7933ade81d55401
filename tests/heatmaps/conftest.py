from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from span_sparse.grid import Lattice, LatticeSpec
from span_sparse.heatmaps import SlideHeatmap

CELLS = [(0, 0), (0, 1), (1, 1), (3, 2)]


@pytest.fixture
def make_heatmap() -> Callable[..., SlideHeatmap]:
    """Four patches, the scores 0, 1, 2, 3 as `attention` and their negatives as `gradient_x_input`."""

    def make(cells=CELLS, attention=None, lattice: Lattice | None = None, **changes) -> SlideHeatmap:
        values = np.arange(len(cells)) if attention is None else np.asarray(attention, dtype=float)
        settings = {
            "slide_id": "s 1", "case_id": "p1", "checkpoint": "best.ckpt", "names": ("attention", "gradient_x_input"),
            "values": np.stack([values, -values], axis=1).astype(np.float32), "default_score": "attention",
            "grid": np.array(cells, dtype=np.int32), "dimensions_px0": (135, 170),
            "lattice": LatticeSpec(20, 1.0).on_slide(0.5) if lattice is None else lattice,
            "predicted": {"y_pred": "b", "prob_a": 0.25, "prob_b": 0.75},
        }  # fmt: skip
        return SlideHeatmap(**(settings | changes))

    return make
