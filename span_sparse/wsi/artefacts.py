"""Which parts of a thumbnail are ink or folds, not tissue to learn from?

Ink of felt pens is told by hue and saturation, each colour with a range that H&E and DAB do not reach over an area as
large as a stroke. Hematoxylin has a hue of 240° to 290°, eosin 310° to 345°, DAB 15° to 40°; averaged over 8 µm tissue
rarely has a saturation above 0.7. Strokes are wide: what is smaller than `MIN_INK_MM2` is pigment, dirt or blood.

A fold is two layers of tissue, so its optical density is twice that of what is folded (Beer-Lambert), and it is a
ribbon: narrow, and much longer than wide. Density alone would take lymph follicles and tumour nests for folds. A fold
of pale tissue beside dense tissue is not found.

Both look at colour only. What is found depends on scanner and stain: the QC picture shows it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_closing, binary_dilation, distance_transform_edt, gaussian_filter, maximum
from skimage.color import rgb2hsv
from skimage.measure import label
from skimage.morphology import disk

from span_sparse.wsi.strips import in_strips
from span_sparse.wsi.tissue_settings import UM2_PER_MM2


class Ink(NamedTuple):
    """A colour of felt pens: hue in degrees (around the circle when low > high), saturation and value in [0, 1]."""

    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]


INKS: Final = {
    "green": Ink((80, 185), (0.25, 1.0), (0.2, 1.0)),  # no stain in use is green
    "blue": Ink((185, 236), (0.45, 1.0), (0.3, 1.0)),  # counterstain of IHC reaches down to 215°, but is paler
    "red": Ink((348, 12), (0.72, 1.0), (0.3, 1.0)),  # blood and eosin are less saturated, DAB is browner
    "black": Ink((0, 360), (0.0, 0.35), (0.0, 0.3)),  # tissue so dark is coloured
}

MIN_INK_MM2: Final = 0.05
"""A dot of a fine pen has 0.3 mm across; clumps of carbon or melanin are smaller than this."""

INK_MARGIN_UM: Final = 40.0
"""Ink fades out over this width; there it colours the tissue without reaching the ranges above."""

FOLD_DENSITY: Final = 1.3
"""Over the 90th percentile of the tissue's density: darker than the dense parts are as a single layer. Over the median
instead, at the 2.0 of two layers, the epidermis of every skin section is a fold."""

FOLD_MAX_WIDTH_UM: Final = 250.0
MIN_FOLD_MM2: Final = 0.01
FOLD_ELONGATION: Final = 3.0
"""Area over that of the largest disc inside. A disc has 1, a ribbon twice as long as wide 2.5."""


def ink(rgb: NDArray[np.uint8], mpp: float) -> NDArray[np.bool_]:
    """Ink of an RGB picture `[rows, cols, 3]` of `mpp` µm per pixel, bool `[rows, cols]`."""
    found = np.zeros(rgb.shape[:2], dtype=bool)

    def find(strip: slice) -> None:
        may_be = _may_be_ink(rgb[strip])
        found[strip][may_be] = _is_ink(rgb[strip][may_be])

    in_strips(find, len(rgb))
    if not found.any():
        return found
    found = binary_closing(found, disk(1))
    components = np.asarray(label(found, connectivity=1))
    large = np.bincount(components.ravel()) >= MIN_INK_MM2 * UM2_PER_MM2 / mpp**2
    large[0] = False
    strokes = large[components]
    if not strokes.any():
        return strokes
    return np.asarray(binary_dilation(strokes, disk(max(1, round(INK_MARGIN_UM / mpp)))), dtype=bool)


def _may_be_ink(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels among which all ink is, told by comparisons of bytes: few of glass and tissue, whose hue costs more.

    A hue of 60° to 240° has more green than red, one of 300° to 60° most red. Saturations are those of the least
    saturated pen of that side, rounded down.
    """
    red, green, blue = (rgb[..., channel] for channel in range(3))
    brightest = np.maximum(np.maximum(red, green), blue)
    spread = brightest - np.minimum(np.minimum(red, green), blue)
    cold = (green > red) & (spread >= brightest // 4)
    warm = (red == brightest) & (spread >= brightest // 2 + brightest // 5)
    return cold | warm | (brightest <= 77)


def _is_ink(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of the pixels `[pixels, 3]` have the colour of a pen, bool `[pixels]`."""
    hue, saturation, value = rgb2hsv(pixels[:, None]).reshape(-1, 3).T
    hue = hue * 360
    found = np.zeros(len(pixels), dtype=bool)
    for pen in INKS.values():
        low, high = pen.hue
        in_hue = (low <= hue) & (hue <= high) if low <= high else (low <= hue) | (hue <= high)
        in_saturation = (pen.saturation[0] <= saturation) & (saturation <= pen.saturation[1])
        found |= in_hue & in_saturation & (pen.value[0] <= value) & (value <= pen.value[1])
    return found


def folds(rgb: NDArray[np.uint8], tissue: NDArray[np.bool_], mpp: float) -> NDArray[np.bool_]:
    """Folds of the tissue (bool `[rows, cols]`) of an RGB picture `[rows, cols, 3]`, bool `[rows, cols]`."""
    if not tissue.any():
        return np.zeros_like(tissue)
    luminance = rgb.mean(axis=2, dtype=np.float32)
    density = gaussian_filter(np.log10(255 / np.maximum(luminance, 1)), sigma=8.0 / mpp)
    dense = tissue & (density > FOLD_DENSITY * np.percentile(density[tissue], 90))
    components = np.asarray(label(dense, connectivity=2))
    num_pixels = np.bincount(components.ravel())
    half_width = maximum(distance_transform_edt(dense), components, np.arange(len(num_pixels)))
    half_width_px = np.maximum(np.asarray(half_width, dtype=np.float64), 0.5)
    is_fold = (
        (num_pixels >= MIN_FOLD_MM2 * UM2_PER_MM2 / mpp**2)
        & (half_width_px * 2 * mpp <= FOLD_MAX_WIDTH_UM)
        & (num_pixels / (np.pi * half_width_px**2) >= FOLD_ELONGATION)
    )
    is_fold[0] = False
    return np.asarray(binary_dilation(is_fold[components], disk(1)), dtype=bool) & tissue
