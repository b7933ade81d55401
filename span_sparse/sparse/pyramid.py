"""What is the geometry of the whole pyramid of a batch? Sites, windows and the maps between levels, built once.

The maps depend on coordinates alone, not on features, so they are built before the first layer runs and shared by all
layers of a level, by the decoder and by whoever maps scores back to patches.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from span_sparse.errors import BatchError
from span_sparse.sparse.indice_maps import KernelMap, strided_map
from span_sparse.sparse.sites import SparseSites, make_sites
from span_sparse.sparse.windows import WindowMaps, window_maps


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the pyramid.

    Attributes:
        sites: active cells.
        windows: attention windows.
        children: map from the next finer level's sites; None at level 0.
    """

    sites: SparseSites
    windows: WindowMaps
    children: KernelMap | None


@dataclass(frozen=True, slots=True)
class Pyramid:
    """All levels of a batch, finest first.

    Attributes:
        levels: finest first.
        order: permutation of the caller's rows into level 0's order: `levels[0].sites.coords == coords[order]`.
    """

    levels: tuple[Level, ...]
    order: Int[Tensor, " tokens"]


def build_pyramid(
    coords: Int[Tensor, "tokens 3"],
    num_slides: int,
    *,
    num_levels: int,
    window_size: int,
    kernel_size: int = 2,
    stride: int = 2,
    dilation: int = 1,
) -> Pyramid:
    """Validates a batch and builds the geometry of its pyramid.

    Args:
        coords: `(slide, row, col)` of every patch, in any order.
        num_slides: slides in the batch.
        num_levels: levels, 1 or more.
        window_size: `w` of the window attention.
        kernel_size: taps per axis of the down-sampling.
        stride: down-sampling factor per level.
        dilation: step of the taps.

    Raises:
        BatchError: the coordinates are not a valid batch (see `make_sites`), or a dilated kernel reads no patch of a
            slide.
    """
    sites, order = make_sites(coords, num_slides, multiple_of=stride ** (num_levels - 1))
    levels = [Level(sites, window_maps(sites, window_size), None)]
    for number in range(1, num_levels):
        sites, children = strided_map(sites, kernel_size, stride, dilation)
        if 0 in sites.counts:
            raise BatchError(
                f"slide {sites.counts.index(0)} of the batch has no cell at pyramid level {number}: with stride "
                f"{stride} and dilation {dilation} no kernel reads its patches; use dilation 1 or more patches"
            )
        levels.append(Level(sites, window_maps(sites, window_size), children))
    return Pyramid(tuple(levels), order)
