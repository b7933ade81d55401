"""Which cells of the lattice hold tissue?

A cell counts when at least `min_fraction` of its area is tissue. The fraction is exact: cell edges seldom fall on mask
pixels (a 222-px cell over 16-px mask pixels), so the mask's integral image is interpolated between its nodes, which is
exact for a mask that is constant inside its pixels. All in int64, so that equal slides give equal cells everywhere.

Taking the mask pixel at the cell's centre instead loses thin tissue and shifts the border by half a cell.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from span_sparse.grid import Lattice
from span_sparse.wsi.tissue_settings import TissueMask


def tissue_area_px0(tissue: TissueMask, lattice: Lattice, width_px0: int, height_px0: int) -> NDArray[np.int64]:
    """Tissue in each whole cell of the slide, in level-0 pixels, `[rows, cols]`; a full cell has `step_px0²`."""
    rows, cols = lattice.shape(width_px0, height_px0)
    mask_rows, mask_cols = tissue.mask.shape
    integral = np.zeros((mask_rows + 1, mask_cols + 1), dtype=np.int64)
    integral[1:, 1:] = tissue.mask.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    along_rows = _at_edges(integral, np.arange(rows + 1) * lattice.step_px0, tissue.scale_px0)
    at_corners = _at_edges(along_rows.T, np.arange(cols + 1) * lattice.step_px0, tissue.scale_px0).T
    return np.diff(np.diff(at_corners, axis=0), axis=1)


def tissue_cells(
    tissue: TissueMask, lattice: Lattice, width_px0: int, height_px0: int, min_fraction: float = 0.5
) -> NDArray[np.int32]:
    """Cells `(row, col)` of which at least a fraction is tissue.

    Args:
        tissue: mask of the slide.
        lattice: lattice of the slide.
        width_px0: slide width; cells that cross the right or bottom edge are left out.
        height_px0: slide height.
        min_fraction: least share of a cell's area, in (0, 1].

    Returns:
        int32 `[patches, 2]`, ordered by row, then column; possibly empty.

    Raises:
        ValueError: `min_fraction` outside (0, 1].
    """
    if not 0 < min_fraction <= 1:
        raise ValueError(f"min_fraction must be in (0, 1], got {min_fraction}")
    area_px0 = tissue_area_px0(tissue, lattice, width_px0, height_px0)
    return np.argwhere(area_px0 >= min_fraction * lattice.step_px0**2).astype(np.int32)


def _at_edges(integral: NDArray[np.int64], edges_px0: NDArray[np.int64], scale_px0: int) -> NDArray[np.int64]:
    """Rows of an integral image at level-0 positions between its nodes, times `scale_px0`."""
    node, rest_px0 = np.divmod(edges_px0, scale_px0)
    following = np.minimum(node + 1, integral.shape[0] - 1)
    slope = integral[following] - integral[node]
    return integral[node] * scale_px0 + rest_px0[:, None] * slope
