"""Where on the slide is tissue?

1. A thumbnail of about 8 µm per pixel (a cell or two).
2. Colour (`tissue_colour`) by the method asked for; or a file drawn by the user (`tissue_file`), and nothing else.
3. Artefacts are taken out: ink, and on request folds (`artefacts`) and what is out of focus (`focus`).
4. Objects smaller than a patch are dropped, pinholes of that size filled, both by area in mm².
5. Where the thumbnail could not be read, tissue is assumed: the patches are tried, and those that cannot be read either
   are recorded as failed instead of being taken for glass.

Nothing left is an error: an empty bag must never reach a model.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label

from span_sparse.errors import LatticeError, TissueNotFoundError
from span_sparse.grid import Lattice
from span_sparse.wsi.artefacts import folds, ink
from span_sparse.wsi.focus import out_of_focus
from span_sparse.wsi.reader import SlideReader
from span_sparse.wsi.strips import in_strips
from span_sparse.wsi.thumbnail import read_thumbnail, thumbnail_shape
from span_sparse.wsi.tissue_colour import saturated, stained
from span_sparse.wsi.tissue_file import mask_from_file
from span_sparse.wsi.tissue_settings import HED, MASK, UM2_PER_MM2, TissueMask, TissueSettings

MAX_MASK_PIXELS: Final = 32_000_000
"""A larger thumbnail is made coarser (a whole-scan MRXS would need 100 million pixels at 8 µm)."""


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
    """As `find_tissue`, but the mask may be empty (for showing what was not found).

    Raises:
        SlideError: the slide cannot be read; a few unreadable tiles are none.
        AnnotationError: the mask file cannot be used.
    """
    too_many = math.sqrt(reader.width_px0 * reader.height_px0 / MAX_MASK_PIXELS)
    scale_px0 = max(1, round(settings.thumbnail_mpp / slide_mpp), math.ceil(too_many))
    mpp, shape = scale_px0 * slide_mpp, thumbnail_shape(reader, scale_px0)
    if settings.method == MASK:
        mask = mask_from_file(Path(settings.mask_file), reader, settings.mask_origin, *shape, scale_px0)
        return TissueMask(mask, scale_px0, slide_mpp, 0.0, MASK)
    unreadable = np.zeros(shape, dtype=bool)
    rgb = read_thumbnail(reader, scale_px0, unreadable)
    found, threshold = _coloured(rgb, mpp, settings)
    removed: dict[str, NDArray[np.bool_]] = {}
    if settings.reject_pen:
        removed["pen"] = ink(rgb, mpp) & ~unreadable
    if settings.reject_folds:
        removed["folds"] = folds(rgb, found & ~_any(removed, shape), mpp)
    if settings.reject_blur:
        removed["blur"] = out_of_focus(reader, slide_mpp, found & ~_any(removed, shape), scale_px0)
    without = _any(removed, shape)
    mask = (_cleaned(found & ~without, mpp, settings) & ~without) | unreadable
    return TissueMask(mask, scale_px0, slide_mpp, threshold, settings.method, removed)


def require_tissue(tissue: TissueMask, settings: TissueSettings, path: Path) -> None:
    """Raise `TissueNotFoundError` for an empty mask."""
    if tissue.mask.any():
        return
    if settings.method == MASK:
        raise TissueNotFoundError(
            f"{path}: the mask {settings.mask_file} marks nothing on it; correct the mask or leave the slide out"
        )
    what = "a stain density" if settings.method == HED else "a colour saturation"
    removed = ", ".join(f"{name} {share:.0%}" for name, share in tissue.removed_shares.items() if share)
    raise TissueNotFoundError(
        f"{path}: no tissue found (no piece of at least {settings.min_object_mm2:g} mm² with {what} "
        f"above {tissue.threshold:.3f}, at {tissue.mpp:.3g} µm/px{', removed: ' + removed if removed else ''}); look "
        "at the slide with `span inspect`, try another tissue method, and leave it out if it is empty"
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
    """Mask `[rows, cols]` and threshold of an RGB picture `[rows, cols, 3]` of `mpp` µm per pixel; with artefacts."""
    found, threshold = _coloured(rgb, mpp, settings)
    return _cleaned(found, mpp, settings), threshold


def _coloured(rgb: NDArray[np.uint8], mpp: float, settings: TissueSettings) -> tuple[NDArray[np.bool_], float]:
    return stained(rgb, mpp, settings) if settings.method == HED else saturated(rgb, settings)


def _any(masks: dict[str, NDArray[np.bool_]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    return np.logical_or.reduce([np.zeros(shape, dtype=bool), *masks.values()])


def _cleaned(mask: NDArray[np.bool_], mpp: float, settings: TissueSettings) -> NDArray[np.bool_]:
    pixel_mm2 = mpp**2 / UM2_PER_MM2
    mask = _drop_small(mask, settings.min_object_mm2 / pixel_mm2)
    return ~_drop_small(~mask, settings.max_hole_mm2 / pixel_mm2, keep_at_border=True)


def _drop_small(mask: NDArray[np.bool_], min_pixels: float, *, keep_at_border: bool = False) -> NDArray[np.bool_]:
    """Without the 4-connected components of fewer than `min_pixels` pixels; those cut by the border may be larger."""
    components = np.asarray(label(mask, connectivity=1))
    num_components = int(components.max(initial=0)) + 1
    parts = in_strips(lambda strip: np.bincount(components[strip].ravel(), minlength=num_components), len(mask))
    keep = np.sum(parts, axis=0) >= min_pixels
    if keep_at_border:
        border = (components[0], components[-1], components[:, 0], components[:, -1])
        keep[np.unique(np.concatenate(border))] = True
    keep[0] = False
    kept = np.empty(mask.shape, dtype=np.bool_)

    def look_up(strip: slice) -> None:
        kept[strip] = keep[components[strip]]

    in_strips(look_up, len(mask))
    return kept
