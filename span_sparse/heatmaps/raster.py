"""Which colour has each pixel of an overlay?

A pixel of an overlay is `scale_px0 × scale_px0` level-0 pixels, counted from the slide's origin. Its value is the mean
of the scores of the patches on it, weighted by the area that each has of it; where patches overlap they are averaged.
Pixels that patches cover less than half stay white.

Patches lie on a lattice, so the area splits into a part along y and one along x, each a sparse matrix (pixels × cells)
of lengths: `Y · scores · Xᵀ`. That is exact at any scale, also where a patch's edge lies inside a pixel. Painting whole
pixels instead shifts edges by up to a pixel of the overlay, which is 32 of the slide.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from scipy import sparse

from span_sparse.heatmaps.folder import SlideHeatmap

COLOUR_MAP: Final = "viridis"
"""Perceptually uniform, and told apart by people with any kind of colour vision."""

PERCENTILES: Final = (1.0, 99.0)
"""Ends of the colour scale: one patch in ten thousand must not leave all others in one colour."""

MIN_COVER: Final = 0.5
_SIGNED: Final = ("gradient_x_input", "logit_")
_PROBABILITY: Final = "prob_"


@dataclass(frozen=True, slots=True)
class ColourScale:
    """From scores to colours.

    Attributes:
        score: its name.
        low: score of the darkest colour, and below.
        high: score of the brightest, and above.
        cohort: whether the scale is that of all slides of a run.
    """

    score: str
    low: float
    high: float
    cohort: bool = False

    @classmethod
    def of(cls, score: str, values: NDArray[np.floating[Any]], *, cohort: bool = False) -> ColourScale:
        """The scale for these scores.

        Probabilities have all of [0, 1]; scores with a sign are symmetrical, so that the middle colour is zero; others
        go from one percentile to the other.
        """
        if score.startswith(_PROBABILITY):
            return cls(score, 0.0, 1.0, cohort)
        if score.startswith(_SIGNED):
            high = float(np.percentile(np.abs(values), PERCENTILES[1]))
            low = -high
        else:
            low, high = (float(value) for value in np.percentile(values, PERCENTILES))
        if not high > low:  # all the same
            return cls(score, low, low + 1.0, cohort)
        return cls(score, low, high, cohort)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `scale.json`."""
        return {**asdict(self), "percentiles": list(PERCENTILES), "colour_map": COLOUR_MAP}

    def colours(self, values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
        """RGB bytes `[..., 3]` of scores."""
        table = (colormaps[COLOUR_MAP](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)
        share = np.clip((np.asarray(values, dtype=np.float64) - self.low) / (self.high - self.low), 0, 1)
        return table[np.rint(share * 255).astype(np.uint8)]


class ScoreRaster:
    """One score of a slide's patches, ready to be drawn at any scale.

    Args:
        heatmap: the patches.
        score: which one; the default when None.
    """

    def __init__(self, heatmap: SlideHeatmap, score: str | None = None) -> None:
        self.lattice = heatmap.lattice
        self.dimensions_px0 = heatmap.dimensions_px0
        rows, cols = heatmap.grid.astype(np.int64).T
        (self._rows, row), (self._cols, col) = (np.unique(cells, return_inverse=True) for cells in (rows, cols))
        shape = len(self._rows), len(self._cols)
        scores = heatmap.score(score).astype(np.float64)
        self._scores = sparse.csr_array((scores, (row, col)), shape=shape)
        self._present = sparse.csr_array((np.ones(len(scores)), (row, col)), shape=shape)

    def shape(self, scale_px0: int) -> tuple[int, int]:
        """Rows and columns of an overlay of the whole slide; the last ones may reach beyond it."""
        width, height = self.dimensions_px0
        return -(-height // scale_px0), -(-width // scale_px0)

    def band(self, scale_px0: int, start: int, stop: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Scores and whether there are any, `[stop - start, columns]`, of the rows `start` to `stop` of an overlay.

        Args:
            scale_px0: edge of a pixel in level-0 pixels.
            start: first row.
            stop: row after the last one.
        """
        x0, y0 = self.lattice.origin_px0
        down = self._lengths(self._rows * self.lattice.step_px0 + y0, scale_px0, start, stop)
        right = self._lengths(self._cols * self.lattice.step_px0 + x0, scale_px0, 0, self.shape(scale_px0)[1]).T
        area = (down @ self._present @ right).toarray()
        total = (down @ self._scores @ right).toarray()
        values = np.divide(total, area, out=np.zeros_like(total), where=area > 0)
        return values, area >= MIN_COVER * scale_px0**2

    def _lengths(self, corners_px0: NDArray[np.int64], scale_px0: int, start: int, stop: int) -> sparse.csr_array:
        """Level-0 pixels that each overlay pixel `start` to `stop` shares with each patch, along one axis."""
        ends = corners_px0 + self.lattice.patch_px0
        first = corners_px0 // scale_px0
        pixels = first[:, None] + np.arange(int((-(-ends // scale_px0) - first).max()))
        shared = np.minimum(ends[:, None], (pixels + 1) * scale_px0) - np.maximum(
            corners_px0[:, None], pixels * scale_px0
        )
        cells = np.broadcast_to(np.arange(len(corners_px0))[:, None], pixels.shape)
        keep = (shared > 0) & (pixels >= start) & (pixels < stop)
        return sparse.csr_array(
            (shared[keep].astype(np.float64), (pixels[keep] - start, cells[keep])),
            shape=(stop - start, len(corners_px0)),
        )
