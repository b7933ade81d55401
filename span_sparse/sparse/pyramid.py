"""Geometry of the pyramid of a batch: sites, windows and the maps between levels.

The maps depend on coordinates alone, not on features, and are shared by all layers of a level, by the decoder and by
whoever maps scores back to patches. Per level spconv is asked for the strided map to the next one, for the cells of the
attention, and for the cells' neighbours. On CUDA each of these calls waits for everything that the device was asked
before, on any stream, so all levels are built before the first layer is launched: between the layers the device would
stand still once a level.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from span_sparse.errors import BatchError
from span_sparse.sparse.indice_maps import KernelMap, strided_map
from span_sparse.sparse.operators import on_device
from span_sparse.sparse.sites import SparseSites, make_sites
from span_sparse.sparse.valid_coords import ValidCoords, check_extents
from span_sparse.sparse.windows import WindowMaps, window_maps


@dataclass(frozen=True, slots=True)
class PyramidShape:
    """What the geometry of a network depends on besides the coordinates.

    Attributes:
        num_levels: levels, 1 or more.
        window_size: `w` of the window attention.
        kernel_size: taps per axis of the down-sampling.
        stride: down-sampling factor per level.
        dilation: step of the taps.
    """

    num_levels: int
    window_size: int
    kernel_size: int = 2
    stride: int = 2
    dilation: int = 1


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

    def tensors(self) -> Iterator[Tensor]:
        """Everything that lies on the device so far."""
        yield from self.sites.tensors()
        yield from self.windows.tensors()
        if self.children is not None:
            yield from self.children.tensors()


@dataclass(frozen=True, eq=False)
class Pyramid:
    """The levels of a batch.

    Attributes:
        levels: finest first.
        order: permutation of the caller's rows into level 0's order: `levels[0].sites.coords == coords[order]`; None
            where they are in this order.
        shape: of the network.
    """

    levels: tuple[Level, ...]
    order: Int[Tensor, " tokens"] | None
    shape: PyramidShape

    @property
    def sites(self) -> SparseSites:
        """The sites of level 0: the patches."""
        return self.levels[0].sites

    def tensors(self) -> Iterator[Tensor]:
        """Everything that lies on the device so far."""
        if self.order is not None:
            yield self.order
        for level in self.levels:
            yield from level.tensors()


def _level(sites: SparseSites, children: KernelMap | None, window_size: int) -> Level:
    level = Level(sites, window_maps(sites, window_size), children)
    if on_device(sites.coords):
        _ = level.windows.seen  # asks spconv too
    return level


def _levels(sites: SparseSites, shape: PyramidShape) -> Iterator[Level]:
    yield _level(sites, None, shape.window_size)
    for number in range(1, shape.num_levels):
        sites, children = strided_map(sites, shape.kernel_size, shape.stride, shape.dilation)
        if shape.dilation > 1 and 0 in sites.counts:  # without dilation every site is read
            raise BatchError(
                f"slide {sites.counts.index(0)} of the batch has no cell at pyramid level {number}: with stride "
                f"{shape.stride} and dilation {shape.dilation} no kernel reads its patches; use dilation 1 or more "
                "patches"
            )
        yield _level(sites, children, shape.window_size)


def build_pyramid(
    place: Int[Tensor, "tokens 3"] | ValidCoords | Pyramid,
    num_slides: int,
    *,
    num_levels: int,
    window_size: int,
    kernel_size: int = 2,
    stride: int = 2,
    dilation: int = 1,
) -> Pyramid:
    """The geometry of a batch; coordinates that nobody has validated yet are validated.

    Args:
        place: `(slide, row, col)` of every patch in any order, or valid coordinates, or a geometry that is there.
        num_slides: slides in the batch.
        num_levels: levels, 1 or more.
        window_size: `w` of the window attention.
        kernel_size: taps per axis of the down-sampling.
        stride: down-sampling factor per level.
        dilation: step of the taps.

    Raises:
        BatchError: the coordinates are not a valid batch (see `make_sites`), a dilated kernel reads no patch of a
            slide, or a geometry of another shape.
    """
    shape = PyramidShape(num_levels, window_size, kernel_size, stride, dilation)
    if isinstance(place, Pyramid):
        if place.shape != shape:
            raise BatchError(f"the batch's geometry was built for {place.shape}, the network needs {shape}")
        return place
    multiple = stride ** (num_levels - 1)
    if isinstance(place, ValidCoords):
        rows, cols = (-(-extent // multiple) * multiple for extent in place.extents)
        check_extents(num_slides, (rows, cols))
        sites, order = SparseSites(place.coords, num_slides, (rows, cols), place.offsets), None
    else:
        sites, order = make_sites(place, num_slides, multiple)
    return Pyramid(tuple(_levels(sites, shape)), order, shape)
