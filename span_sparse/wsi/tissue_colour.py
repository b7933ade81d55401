"""Which pixels of a thumbnail are stained?

`saturated` (method `otsu`): stain is coloured, glass is not. Otsu's threshold of the saturation, held between a floor
and a ceiling. Otsu always cuts an image in two: without the floor an empty slide yields specks of "tissue" out of
camera noise, without the ceiling a slide full of tissue loses its pale half.

`stained` (method `hed`): colour deconvolution (Ruifrok & Johnston 2001) of the optical density into hematoxylin, eosin
and a neutral grey; tissue is where hematoxylin + eosin are dense, and paler pixels that touch such (hysteresis).
Fat and loose stroma have little saturation but hang on to denser strands. The grey takes up dust, shadows of the
coverslip and black fill; with DAB as third stain, as usual, these would count as hematoxylin.

Near-black pixels (scanner fill, slide edge) have no meaningful colour; both methods leave them out.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.color import rgb_from_hed
from skimage.filters import apply_hysteresis_threshold, threshold_otsu

from span_sparse.wsi.strips import in_strips
from span_sparse.wsi.tissue_settings import TissueSettings

DARKEST_WHITE: Final = 200
"""Glass is at least this bright. On a slide full of tissue the brightest pixels are tissue, and must not become 0."""

SMOOTHING_UM: Final = 12.0
"""Sigma of the stain density: joins the strands between fat cells, and blurs an edge by a tenth of a patch."""

BLOCK_ROWS: Final = 256
"""Rows deconvolved at a time; a whole thumbnail in float64 would take ten times its bytes."""


def saturated(rgb: NDArray[np.uint8], settings: TissueSettings) -> tuple[NDArray[np.bool_], float]:
    """Mask `[rows, cols]` of an RGB picture `[rows, cols, 3]`, and the threshold of the saturation (0 to 1)."""
    table = _saturation_table(settings.value_floor)
    saturation = np.empty(rgb.shape[:2], dtype=np.uint8)

    def smooth(strip: slice) -> NDArray[np.int64]:
        top, bottom = max(strip.start - 1, 0), min(strip.stop + 1, len(rgb))
        red, green, blue = (rgb[top:bottom, :, channel] for channel in range(3))
        brightest = np.maximum(np.maximum(red, green), blue)
        values = table[brightest, brightest - np.minimum(np.minimum(red, green), blue)]
        beyond = int(top == strip.start), int(bottom == strip.stop)  # rows that the picture does not have
        saturation[strip] = median_of_9(np.pad(values, (beyond, (1, 1)), mode="symmetric"))
        return np.bincount(saturation[strip].ravel(), minlength=256)

    counts = np.sum(in_strips(smooth, len(rgb)), axis=0)
    levels = np.flatnonzero(counts)
    is_uniform = len(levels) == 1  # then Otsu returns that value, and nothing is above it
    histogram = counts[levels[0] : levels[-1] + 1], np.arange(levels[0], levels[-1] + 1)
    otsu = 0.0 if is_uniform else float(threshold_otsu(hist=histogram)) / 255
    threshold = min(max(otsu, settings.saturation_floor), settings.saturation_ceiling)
    return saturation > threshold * 255, threshold


def _saturation_table(value_floor: float) -> NDArray[np.uint8]:
    """Saturation from 0 to 255 by brightest channel and difference to the darkest, `[256, 256]`; 0 for near-black."""
    brightest, spread = np.arange(256)[:, None], np.arange(256, dtype=np.float32)
    table = np.clip(spread / np.maximum(brightest, 1).astype(np.uint8) * 255, 0, 255).astype(np.uint8)
    table[brightest[:, 0] < value_floor * 255] = 0
    return table


def median_of_9(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Median of each pixel and its eight neighbours, `[rows - 2, cols - 2]`.

    The median of nine is that of three: the largest of the columns' minima, the median of their medians, the smallest
    of their maxima. Each is a few operations on whole rows, where a general rank filter sorts for every pixel.
    """
    low, middle, high = _sorted3(values[:-2], values[1:-1], values[2:])
    largest_low = np.maximum(np.maximum(low[:, :-2], low[:, 1:-1]), low[:, 2:])
    smallest_high = np.minimum(np.minimum(high[:, :-2], high[:, 1:-1]), high[:, 2:])
    median = _sorted3(middle[:, :-2], middle[:, 1:-1], middle[:, 2:])[1]
    return _sorted3(largest_low, median, smallest_high)[1]


def _sorted3(
    first: NDArray[np.uint8], second: NDArray[np.uint8], third: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    low, high = np.minimum(first, second), np.maximum(first, second)
    middle = np.minimum(high, third)
    return np.minimum(low, middle), np.maximum(low, middle), np.maximum(high, third)


def stained(rgb: NDArray[np.uint8], mpp: float, settings: TissueSettings) -> tuple[NDArray[np.bool_], float]:
    """Mask `[rows, cols]` of an RGB picture of `mpp` µm per pixel, and the lower threshold of the stain density."""
    density = gaussian_filter(stain_density(rgb), sigma=SMOOTHING_UM / mpp)
    density[rgb.max(axis=2) < settings.value_floor * 255] = 0
    return apply_hysteresis_threshold(density, settings.hed_low, settings.hed_high), settings.hed_low


def stain_density(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Hematoxylin + eosin, as optical density (log10 of the light they swallow), `[rows, cols]`.

    White is the 99th percentile of each channel, so that tinted glass has density 0. The stain vectors are those of
    Ruifrok & Johnston, as scikit-image has them.
    """
    stains = np.stack([rgb_from_hed[0], rgb_from_hed[1], np.ones(3)])
    unmix = np.linalg.inv(stains / np.linalg.norm(stains, axis=1, keepdims=True))
    white = np.maximum(np.percentile(rgb.reshape(-1, 3), 99, axis=0), DARKEST_WHITE)
    grey_levels = np.maximum(np.arange(256), 1)
    tables = [np.maximum(np.log10(white[channel] / grey_levels), 0) for channel in range(3)]
    density = np.empty(rgb.shape[:2], dtype=np.float32)
    for top in range(0, len(rgb), BLOCK_ROWS):
        block = rgb[top : top + BLOCK_ROWS]
        optical = np.stack([table[block[..., channel]] for channel, table in enumerate(tables)], axis=-1)
        density[top : top + BLOCK_ROWS] = np.maximum(optical @ unmix[:, :2], 0).sum(axis=-1)
    return density
