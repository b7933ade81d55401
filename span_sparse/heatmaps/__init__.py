"""Scores of patches as tables, pictures and outlines. Reads arrays and slides, never models."""

from span_sparse.heatmaps.folder import (
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

__all__ = [
    "IndexRow",
    "SlideHeatmap",
    "folder_name",
    "is_complete",
    "read_meta",
    "read_scores",
    "write_index",
    "write_meta",
    "write_scores",
]
