"""Where on the slide is tissue?

1. A thumbnail of about 8 µm per pixel (a cell or two).
2. Colour saturation, median-filtered: stain is coloured, glass is not. Near-black pixels (scanner fill, slide edge)
   have no meaningful saturation and are left out.
3. Otsu's threshold, held between a floor and a ceiling. Otsu always cuts an image in two: without the floor an empty
   slide yields specks of "tissue" out of camera noise, without the ceiling a slide full of tissue loses its pale half.
4. Objects smaller than a patch are dropped, pinholes of that size filled, both by area in mm².

Nothing left is an error: an empty bag must never reach a model.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from skimage.filters import threshold_otsu
from skimage.measure import label

from span_sparse.errors import LatticeError, TissueNotFoundError
from span_sparse.grid import Lattice
from span_sparse.wsi.reader import SlideReader
from span_sparse.wsi.thumbnail import read_thumbnail

MAX_MASK_PIXELS: Final = 32_000_000
"""A larger thumbnail is made coarser (a whole-scan MRXS would need 100 million pixels at 8 µm)."""

UM2_PER_MM2: Final = 1e6


@dataclass(frozen=True, slots=True)
class TissueSettings:
    """How tissue is told from glass; stored with the features.

    Attributes:
        thumbnail_mpp: µm per pixel of the thumbnail; a coarser slide is taken as it is.
        saturation_floor: least saturation (HSV, 0 to 1) of tissue, whatever Otsu says.
        saturation_ceiling: saturation that is tissue, whatever Otsu says.
        value_floor: pixels whose brightest channel is below this (0 to 1) are black fill.
        min_object_mm2: smaller pieces are dropped.
        max_hole_mm2: smaller holes are filled.
    """

    thumbnail_mpp: float = 8.0
    saturation_floor: float = 0.05
    saturation_ceiling: float = 0.12
    value_floor: float = 0.1
    min_object_mm2: float = 0.01
    max_hole_mm2: float = 0.01

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the provenance of a store."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class TissueMask:
    """Tissue of one slide.

    Attributes:
        mask: bool `[rows, cols]`; pixel `(row, col)` covers the level-0 pixels
            `x in [col·scale_px0, (col+1)·scale_px0)`, `y` likewise.
        scale_px0: edge of a mask pixel in level-0 pixels.
        slide_mpp: µm per pixel of level 0.
        threshold: saturation that was used.
    """

    mask: NDArray[np.bool_]
    scale_px0: int
    slide_mpp: float
    threshold: float

    @property
    def mpp(self) -> float:
        """µm per pixel of the mask."""
        return self.scale_px0 * self.slide_mpp

    @property
    def area_mm2(self) -> float:
        """Area of the tissue."""
        return float(self.mask.sum()) * self.mpp**2 / UM2_PER_MM2


def find_tissue(reader: SlideReader, slide_mpp: float, settings: TissueSettings | None = None) -> TissueMask:
    """Tissue of a slide, at least one piece of it.

    Args:
        reader: an open slide.
        slide_mpp: µm per pixel of level 0, from `resolve_mpp`.
        settings: thresholds; the defaults fit H&E and other coloured stains.

    Raises:
        TissueNotFoundError: no piece is large and coloured enough.
        SlideError: the slide cannot be read.
    """
    settings = settings or TissueSettings()
    tissue = segment_tissue(reader, slide_mpp, settings)
    require_tissue(tissue, settings, reader.path)
    return tissue


def segment_tissue(reader: SlideReader, slide_mpp: float, settings: TissueSettings) -> TissueMask:
    """As `find_tissue`, but the mask may be empty (for showing what was not found)."""
    too_many = math.sqrt(reader.width_px0 * reader.height_px0 / MAX_MASK_PIXELS)
    scale_px0 = max(1, round(settings.thumbnail_mpp / slide_mpp), math.ceil(too_many))
    mask, threshold = tissue_of_thumbnail(read_thumbnail(reader, scale_px0), scale_px0 * slide_mpp, settings)
    return TissueMask(mask, scale_px0, slide_mpp, threshold)


def require_tissue(tissue: TissueMask, settings: TissueSettings, path: Path) -> None:
    """Raise `TissueNotFoundError` for an empty mask."""
    if not tissue.mask.any():
        raise TissueNotFoundError(
            f"{path}: no tissue found (no piece of at least {settings.min_object_mm2:g} mm² with a colour saturation "
            f"above {tissue.threshold:.3f}, at {tissue.mpp:.3g} µm/px); look at the slide with `span inspect`, "
            "and leave it out if it is empty"
        )


def require_room(reader: SlideReader, lattice: Lattice) -> None:
    """Raise `LatticeError` for a slide on which not one whole cell fits."""
    if 0 in lattice.shape(reader.width_px0, reader.height_px0):
        raise LatticeError(
            f"{reader.path}: {reader.width_px0} × {reader.height_px0} px is less than one patch of "
            f"{lattice.step_px0} px ({lattice.step_um:.4g} µm); choose a smaller patch size or leave it out"
        )


def require_cells(grid: NDArray[np.int32], lattice: Lattice, reader: SlideReader) -> None:
    """Raise `TissueNotFoundError` when no cell of the lattice holds enough tissue."""
    if not len(grid):
        raise TissueNotFoundError(
            f"{reader.path}: tissue, but no whole cell of {lattice.step_px0} px ({lattice.step_um:.4g} µm) with enough "
            f"of it on {reader.width_px0} × {reader.height_px0} px; choose a smaller patch size or leave it out"
        )


def tissue_of_thumbnail(
    rgb: NDArray[np.uint8], mpp: float, settings: TissueSettings
) -> tuple[NDArray[np.bool_], float]:
    """Mask `[rows, cols]` and saturation threshold of an RGB picture `[rows, cols, 3]` of `mpp` µm per pixel."""
    brightest = rgb.max(axis=2)
    spread = brightest - rgb.min(axis=2)
    saturation = (spread.astype(np.float32) / np.maximum(brightest, 1) * 255).astype(np.uint8)
    saturation[brightest < settings.value_floor * 255] = 0
    saturation = median_filter(saturation, size=3)
    is_uniform = saturation.min() == saturation.max()  # then Otsu returns that value, and nothing is above it
    otsu = 0.0 if is_uniform else float(threshold_otsu(saturation)) / 255
    threshold = min(max(otsu, settings.saturation_floor), settings.saturation_ceiling)
    mask = saturation > threshold * 255
    pixel_mm2 = mpp**2 / UM2_PER_MM2
    mask = _drop_small(mask, settings.min_object_mm2 / pixel_mm2)
    return ~_drop_small(~mask, settings.max_hole_mm2 / pixel_mm2, keep_at_border=True), threshold


def _drop_small(mask: NDArray[np.bool_], min_pixels: float, *, keep_at_border: bool = False) -> NDArray[np.bool_]:
    """Without the 4-connected components of fewer than `min_pixels` pixels; those cut by the border may be larger."""
    components = np.asarray(label(mask, connectivity=1))
    keep = np.bincount(components.ravel()) >= min_pixels
    if keep_at_border:
        border = (components[0], components[-1], components[:, 0], components[:, -1])
        keep[np.unique(np.concatenate(border))] = True
    keep[0] = False
    return keep[components]
