"""Which parts of the tissue are out of focus?

The tissue is read at 2 µm per pixel, where a nucleus has a few pixels and a sharp border, in blocks of 128 µm. Per
block: the variance of the Laplacian over the variance of the grey values (Pech-Pacheco 2000, normalised). The Laplacian
holds the fine detail; dividing makes pale and dark stains comparable. Thumbnails of 8 µm look the same in and out of
focus.

On H&E of two scanners the ratio of sharp blocks is 1.8 to 9; blurred by a Gaussian of 1 µm it is 0.5 to 5, of 3 µm 0.02
to 0.33. Blocks without detail of their own, such as mucus, show the camera's noise, which is sharp: they are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import laplace

from span_sparse.errors import MppError, SlideError
from span_sparse.grid import BoxPx0
from span_sparse.wsi.reader import SlideReader

FOCUS_MPP: Final = 2.0
BLOCK_UM: Final = 128.0
BLOCK_PX: Final = round(BLOCK_UM / FOCUS_MPP)
MAX_BLOCKS_A_READ: Final = 32

LEAST_SHARPNESS: Final = 0.4
"""Between the 0.5 of the softest block blurred by 1 µm, which every scanner has, and the 0.33 at 3 µm."""

LEAST_TISSUE: Final = 0.5
"""Share of tissue from which on a block is judged; edges of tissue are sharp whatever is inside."""


def out_of_focus(reader: SlideReader, slide_mpp: float, tissue: NDArray[np.bool_], scale_px0: int) -> NDArray[np.bool_]:
    """Blocks of the tissue that are out of focus, bool like the mask.

    Args:
        reader: an open slide.
        slide_mpp: µm per pixel of level 0.
        tissue: bool `[rows, cols]`, one pixel for `scale_px0` level-0 pixels.
        scale_px0: edge of a mask pixel.

    Raises:
        MppError: the slide is coarser than 2 µm per pixel.
    """
    if slide_mpp > FOCUS_MPP:
        raise MppError(
            f"{reader.path}: has {slide_mpp:.4g} µm/px, focus can be judged at {FOCUS_MPP:g} or finer; switch "
            "reject_blur off for this slide"
        )
    block_px0 = round(BLOCK_UM / slide_mpp)
    rows, cols = (((np.arange(count) + 0.5) * scale_px0 // block_px0).astype(int) for count in tissue.shape)
    shape = rows[-1] + 1, cols[-1] + 1
    index = (rows[:, None] * shape[1] + cols).ravel()
    num_pixels = np.bincount(index, minlength=shape[0] * shape[1])
    num_tissue = np.bincount(index, weights=tissue.ravel(), minlength=shape[0] * shape[1])
    judged = (num_tissue >= LEAST_TISSUE * num_pixels).reshape(shape)
    blurred = np.zeros(shape, dtype=bool)
    for row, start, stop in _runs(judged):
        box = BoxPx0(start * block_px0, row * block_px0, stop * block_px0, (row + 1) * block_px0)
        try:
            rgb = reader.read_region(box, ((stop - start) * BLOCK_PX, BLOCK_PX))
        except SlideError:  # what cannot be read cannot be judged; its patches will tell
            continue
        blurred[row, start:stop] = [sharpness(block) < LEAST_SHARPNESS for block in np.split(rgb, stop - start, axis=1)]
    return blurred[np.ix_(rows, cols)] & tissue


def sharpness(rgb: NDArray[np.uint8]) -> float:
    """Variance of the Laplacian over the variance, of the mean of the channels; infinite for one flat colour."""
    grey = rgb.mean(axis=2, dtype=np.float32)
    variance = float(grey.var())
    return float(laplace(grey)[1:-1, 1:-1].var()) / variance if variance > 0 else float("inf")


def _runs(judged: NDArray[np.bool_]) -> Iterator[tuple[int, int, int]]:
    """Neighbouring blocks of a row as `(row, start, stop)`, of bounded length."""
    for row in range(len(judged)):
        edges = np.flatnonzero(np.diff(judged[row].astype(np.int8), prepend=0, append=0))
        for start, stop in edges.reshape(-1, 2).tolist():
            for first in range(start, stop, MAX_BLOCKS_A_READ):
                yield row, first, min(first + MAX_BLOCKS_A_READ, stop)
