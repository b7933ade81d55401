"""Which cells of the lattice hold tissue?

A cell counts when at least `min_fraction` of its area is tissue. The fraction is exact: cell edges seldom fall on mask
pixels (a 222-px cell over 16-px mask pixels), so the mask's integral image is interpolated between its nodes, which is
exact for a mask that is constant inside its pixels. All in int64, so that equal slides give equal cells everywhere.

Taking the mask pixel at the cell's centre instead loses thin tissue and shifts the border by half a cell.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from span_sparse.grid import Lattice
from span_sparse.wsi.tissue_settings import TissueMask


def tissue_area_px0(tissue: TissueMask, lattice: Lattice, width_px0: int, height_px0: int) -> NDArray[np.int64]:
    """Tissue in each whole cell of the slide, in level-0 pixels, `[rows, cols]`; a full cell has `step_px0²`."""
    rows, cols = lattice.shape(width_px0, height_px0)
    rows_px0, cols_px0 = np.arange(rows + 1) * lattice.step_px0, np.arange(cols + 1) * lattice.step_px0
    along_rows = _areas(tissue.mask, rows_px0, tissue.scale_px0)  # (rows, mask columns)
    return _areas(along_rows.T, cols_px0, tissue.scale_px0).T


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


def _areas(
    values: NDArray[np.bool_] | NDArray[np.int64], edges_px0: NDArray[np.int64], scale_px0: int
) -> NDArray[np.int64]:
    """Integral of the rows of mask pixels between consecutive level-0 edges, `[edges - 1, columns]`.

    The integral image is needed at the two nodes around each edge only, so what lies between those nodes is summed in
    one go; an integral of the whole mask has eight times its bytes, twice.
    """
    node, rest_px0 = np.divmod(edges_px0, scale_px0)
    following = np.minimum(node + 1, len(values))
    nodes = np.unique(np.concatenate([node, following]))
    integral = np.zeros((len(nodes), values.shape[1]), dtype=np.int64)
    sums = [values[start:stop].sum(axis=0, dtype=np.int64) for start, stop in pairwise(nodes.tolist())]
    if sums:
        integral[1:] = np.cumsum(sums, axis=0)
    before, behind = integral[np.searchsorted(nodes, node)], integral[np.searchsorted(nodes, following)]
    return np.diff(before * scale_px0 + rest_px0[:, None] * (behind - before), axis=0)
