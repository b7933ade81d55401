"""Sparse sites and the maps between them; the only package that imports spconv."""

from span_sparse.sparse.convolution import InverseConvolution, StridedConvolution
from span_sparse.sparse.depthwise import depthwise_convolution
from span_sparse.sparse.indice_maps import KernelMap, neighbour_map, strided_map
from span_sparse.sparse.pyramid import Level, Pyramid, build_pyramid
from span_sparse.sparse.sites import SparseSites, make_sites
from span_sparse.sparse.valid_coords import ValidCoords, validated
from span_sparse.sparse.windows import WindowMaps, window_maps

__all__ = [
    "InverseConvolution",
    "KernelMap",
    "Level",
    "Pyramid",
    "SparseSites",
    "StridedConvolution",
    "ValidCoords",
    "WindowMaps",
    "build_pyramid",
    "depthwise_convolution",
    "make_sites",
    "neighbour_map",
    "strided_map",
    "validated",
    "window_maps",
]
