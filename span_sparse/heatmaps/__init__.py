"""Scores of patches as tables, pictures and outlines. Reads arrays and slides, never models."""

from span_sparse.heatmaps.folder import (
    DONE,
    FAILED,
    INDEX_FILE,
    META_FILE,
    SCALE_FILE,
    SCORES_FILE,
    IndexRow,
    SlideHeatmap,
    folder_name,
    is_complete,
    read_meta,
    read_scores,
    write_index,
    write_meta,
    write_scores,
)
from span_sparse.heatmaps.raster import ColourScale, ScoreRaster
from span_sparse.heatmaps.render import render

__all__ = [
    "DONE",
    "FAILED",
    "INDEX_FILE",
    "META_FILE",
    "SCALE_FILE",
    "SCORES_FILE",
    "ColourScale",
    "IndexRow",
    "ScoreRaster",
    "SlideHeatmap",
    "folder_name",
    "is_complete",
    "read_meta",
    "read_scores",
    "render",
    "write_index",
    "write_meta",
    "write_scores",
]
