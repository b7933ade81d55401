"""Overlays against loops over level-0 pixels."""

from __future__ import annotations

import numpy as np
import pytest

from span_sparse.grid import Lattice, LatticeSpec
from span_sparse.heatmaps import ColourScale, ScoreRaster

SPEC = LatticeSpec(20, 1.0)


def brute_force(heatmap, scale_px0: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean over all pairs of a level-0 pixel and a patch on it; share of the overlay pixel that pairs cover."""
    width, height = heatmap.dimensions_px0
    rows, cols = -(-height // scale_px0), -(-width // scale_px0)
    total, count = np.zeros((rows * scale_px0, cols * scale_px0)), np.zeros((rows * scale_px0, cols * scale_px0))
    for (x, y), value in zip(heatmap.lattice.to_px0(heatmap.grid), heatmap.score(), strict=True):
        edge = heatmap.lattice.patch_px0
        total[y : y + edge, x : x + edge] += value
        count[y : y + edge, x : x + edge] += 1
    shape = rows, scale_px0, cols, scale_px0
    total, count = (pixels.reshape(shape).sum(axis=(1, 3)) for pixels in (total, count))
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0), count / scale_px0**2


@pytest.mark.parametrize("scale_px0", [1, 2, 7, 16, 40, 200])
@pytest.mark.parametrize(
    "lattice",
    [Lattice(SPEC, 0.5, 37), Lattice(SPEC, 0.5, 20, (3, 19), 9), Lattice(SPEC, 0.5, 24, (1, 0), -5)],
    ids=["plain", "overlapping", "with gaps"],
)
def test_every_pixel_has_the_mean_of_what_lies_on_it(make_heatmap, lattice, scale_px0):
    random = np.random.default_rng(1)
    cells = [divmod(int(cell), 5) for cell in random.permutation(25)[:14]]
    heatmap = make_heatmap(sorted(cells), random.standard_normal(14), lattice, dimensions_px0=(203, 197))
    raster = ScoreRaster(heatmap)
    values, is_covered = raster.band(scale_px0, 0, raster.shape(scale_px0)[0])
    expected, cover = brute_force(heatmap, scale_px0)
    np.testing.assert_allclose(values, expected, atol=1e-6)
    np.testing.assert_array_equal(is_covered, cover >= 0.5)
    bands = [raster.band(scale_px0, row, min(row + 3, len(values)))[0] for row in range(0, len(values), 3)]
    np.testing.assert_array_equal(np.concatenate(bands), values)


def test_a_lattice_of_any_extent_needs_memory_for_its_patches_only(make_heatmap):
    lattice = Lattice(SPEC, 0.5, 1)
    edge = 2**21
    heatmap = make_heatmap([(0, 0), (edge - 2, edge - 2)], [1, 2], lattice, dimensions_px0=(edge, edge))
    values, is_covered = ScoreRaster(heatmap).band(2**14, 127, 128)
    assert values.shape == (1, 128)
    assert values[0, -1] == 2
    assert not is_covered.any()


def test_scales():
    values = np.linspace(-1, 3, 101)
    percentiles = ColourScale.of("attention", values)
    assert (percentiles.low, percentiles.high) == pytest.approx((-0.96, 2.96))
    signed = ColourScale.of("gradient_x_input", values)
    assert signed.low == -signed.high < 0
    assert ColourScale.of("logit_a", values).low == -ColourScale.of("logit_a", values).high
    probability = ColourScale.of("prob_a", values * 0 + 0.4, cohort=True)
    assert (probability.low, probability.high, probability.cohort) == (0, 1, True)
    same = ColourScale.of("attention", np.full(4, 0.25))
    assert same.colours(np.full(4, 0.25)).tolist() == [[68, 1, 84]] * 4
    assert percentiles.colours(np.array([-9, -0.96, 2.96, 9])).tolist() == [
        [68, 1, 84], [68, 1, 84], [253, 231, 37], [253, 231, 37],
    ]  # fmt: skip


def test_colours_get_lighter_with_the_score():
    shades = ColourScale("attention", 0, 1).colours(np.linspace(0, 1, 64)).astype(float)
    luminance = shades @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()
