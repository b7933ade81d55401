"""Geometry of the pyramid of a batch: sites, windows and the maps between levels.

The maps depend on coordinates alone, not on features, and are shared by all layers of a level, by the decoder and by
whoever maps scores back to patches. Per level spconv is asked for the strided map to the next one, for the cells of the
attention, and for the cells' neighbours. Each of these calls waits for the device, so on CUDA they run on a stream of
their own: they wait for each other, not for the layers that compute meanwhile, and a level is built when the network
arrives at it (or all of them beforehand, `Pyramid.build`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
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


class Pyramid:
    """The levels of a batch, finest first, each built when it is first asked for.

    Args:
        sites: of level 0.
        order: permutation of the caller's rows into level 0's order: `level(0).sites.coords == coords[order]`; None
            where they are in this order.
        shape: of the network.
    """

    def __init__(self, sites: SparseSites, order: Int[Tensor, " tokens"] | None, shape: PyramidShape) -> None:
        self.sites, self.order, self.shape = sites, order, shape
        self._levels: list[Level] = []
        self._ready: torch.cuda.Event | None = None
        if sites.coords.is_cuda:
            self._ready = torch.cuda.Event()
            self._ready.record()

    @property
    def levels(self) -> tuple[Level, ...]:
        """All levels."""
        return tuple(self.level(number) for number in range(self.shape.num_levels))

    def level(self, number: int) -> Level:
        """One level.

        Raises:
            BatchError: a dilated kernel reads no patch of a slide.
        """
        while len(self._levels) <= number:
            self._levels.append(self._next_aside() if self.sites.coords.is_cuda else self._next())
        return self._levels[number]

    def build(self) -> Pyramid:
        """Builds all levels on the current stream, and returns itself."""
        while len(self._levels) < self.shape.num_levels:
            self._levels.append(self._next())
        return self

    def tensors(self) -> Iterator[Tensor]:
        """Everything that lies on the device so far."""
        yield from self.sites.tensors()
        if self.order is not None:
            yield self.order
        for level in self._levels:
            yield from level.tensors()

    def _next_aside(self) -> Level:
        """The next level, built on the geometry's stream; the current one waits for it."""
        device, current = self.sites.coords.device, torch.cuda.current_stream(self.sites.coords.device)
        stream = _geometry_stream(device)
        assert self._ready is not None
        with torch.cuda.stream(stream):
            stream.wait_event(self._ready)
            level = self._next()
        current.wait_stream(stream)
        for tensor in level.tensors():
            tensor.record_stream(current)
        return level

    def _next(self) -> Level:
        shape, number = self.shape, len(self._levels)
        if number == 0:
            level = Level(self.sites, window_maps(self.sites, shape.window_size), None)
        else:
            finer = self._levels[-1].sites
            sites, children = strided_map(finer, shape.kernel_size, shape.stride, shape.dilation)
            if shape.dilation > 1 and 0 in sites.counts:  # without dilation every site is read
                raise BatchError(
                    f"slide {sites.counts.index(0)} of the batch has no cell at pyramid level {number}: with stride "
                    f"{shape.stride} and dilation {shape.dilation} no kernel reads its patches; use dilation 1 or more "
                    "patches"
                )
            level = Level(sites, window_maps(sites, shape.window_size), children)
        if on_device(self.sites.coords):
            _ = level.windows.seen  # asks spconv too
        return level


@cache
def _geometry_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


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
        pyramid = Pyramid(SparseSites(place.coords, num_slides, (rows, cols), place.offsets), None, shape)
    else:
        pyramid = Pyramid(*make_sites(place, num_slides, multiple), shape)
    return pyramid if pyramid.sites.coords.is_cuda else pyramid.build()
