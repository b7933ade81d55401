"""What is made of one slide's scores? Every file of its folder but `scores.csv` and `meta.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import SlideError
from span_sparse.heatmaps.folder import SCORES_FILE, SlideHeatmap
from span_sparse.heatmaps.gallery import write_gallery
from span_sparse.heatmaps.outlines import write_detections, write_regions
from span_sparse.heatmaps.picture import write_picture
from span_sparse.heatmaps.pyramid import write_pyramid
from span_sparse.heatmaps.raster import ColourScale
from span_sparse.wsi import SlideReader


def render(
    folder: Path,
    heatmap: SlideHeatmap,
    scale: ColourScale,
    *,
    reader: SlideReader | None = None,
    regions: Mapping[str, NDArray[np.bool_]] | None = None,
) -> dict[str, str]:
    """Write pictures and outlines of a slide's scores; those of an earlier run that are not made now are removed.

    Args:
        folder: of the slide; must exist.
        heatmap: the scores.
        scale: colours of the score that is shown.
        reader: the open slide; None: pictures on white, no gallery.
        regions: of a segmenter, which patches belong to each class.

    Returns:
        Names of the folder's files by what they are.

    Raises:
        SlideError: the slide cannot be read, or is not the one the features were made of.
        OSError: a file cannot be written.
    """
    if reader is not None and (reader.width_px0, reader.height_px0) != heatmap.dimensions_px0:
        width, height = heatmap.dimensions_px0
        raise SlideError(
            f"{reader.path}: has {reader.width_px0} × {reader.height_px0} px, the slide of the features "
            f"{width} × {height}; it is another slide or another scan of it"
        )
    bounds = None if reader is None else reader.bounds
    origin_px0 = (0, 0) if bounds is None else (bounds.x0, bounds.y0)
    files = {"scores": SCORES_FILE, "png": "heatmap.png", "tif": "heatmap.tif", "patches": "patches.geojson"}
    write_picture(folder / files["png"], heatmap, scale, reader)
    write_pyramid(folder / files["tif"], heatmap, scale)
    write_detections(folder / files["patches"], heatmap, scale, origin_px0)
    optional = {"regions": "regions.geojson", "gallery": "gallery.png"}
    for name in optional.values():
        (folder / name).unlink(missing_ok=True)
    if regions is not None:
        files["regions"] = optional["regions"]
        write_regions(folder / files["regions"], heatmap, regions, origin_px0)
    if reader is not None:
        files["gallery"] = optional["gallery"]
        write_gallery(folder / files["gallery"], heatmap, scale.score, reader)
    return files
