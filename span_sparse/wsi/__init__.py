"""Slides: open, resolution, tissue, lattice cells. `qc_picture` is imported by its own name (it loads matplotlib)."""

from span_sparse.wsi.mpp import check_resolution, mpp_sources, resolve_mpp
from span_sparse.wsi.openslide_reader import open_slide
from span_sparse.wsi.polygons import tissue_polygons
from span_sparse.wsi.reader import SlideReader, pick_level
from span_sparse.wsi.thumbnail import read_thumbnail
from span_sparse.wsi.tiling import tissue_cells
from span_sparse.wsi.tissue import find_tissue, segment_tissue
from span_sparse.wsi.tissue_overrides import tissue_settings_for
from span_sparse.wsi.tissue_settings import TissueMask, TissueSettings

__all__ = [
    "SlideReader",
    "TissueMask",
    "TissueSettings",
    "check_resolution",
    "find_tissue",
    "mpp_sources",
    "open_slide",
    "pick_level",
    "read_thumbnail",
    "resolve_mpp",
    "segment_tissue",
    "tissue_cells",
    "tissue_polygons",
    "tissue_settings_for",
]
