"""How do scores reach QuPath, as objects that can be measured and filtered?

* one detection a patch, with all scores as measurements, coloured by the one that is shown;
* of a segmenter one annotation a connected region of a class, with its area in mm².

Coordinates are level-0 pixels from the corner of what QuPath shows: that is the slide's `bounds` where it has them
(MRXS), and counting from the slide's own origin would put everything thousands of pixels beside the tissue.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import shapely
from numpy.typing import NDArray

from span_sparse.heatmaps.folder import SlideHeatmap
from span_sparse.heatmaps.raster import ColourScale
from span_sparse.wsi.geojson import Shape, feature_collection, write_geojson

UM2_PER_MM2: Final = 1e6
CLASS_COLOURS: Final = ((213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233))
"""Okabe and Ito's, told apart with any kind of colour vision; the seventh class has the first one's again."""


def write_detections(path: Path, heatmap: SlideHeatmap, scale: ColourScale, origin_px0: tuple[int, int]) -> None:
    """Write a polygon for each patch.

    Args:
        path: GeoJSON to write.
        heatmap: the scores.
        scale: of the colours.
        origin_px0: `(x, y)` from where coordinates count.

    Raises:
        OSError: the file cannot be written.
    """
    colours = scale.colours(heatmap.score(scale.score)).tolist()
    rounded = [[float(f"{value:.7g}") for value in row] for row in heatmap.values.tolist()]
    outlines = (
        (
            {
                "objectType": "detection",
                "name": f"row {row}, col {col}",
                "color": colour,
                "measurements": dict(zip(heatmap.names, values, strict=True)),
            },
            box,
        )
        for (row, col), colour, values, box in zip(
            heatmap.grid.tolist(), colours, rounded, _boxes(heatmap, origin_px0), strict=True
        )
    )
    write_geojson(path, feature_collection(outlines))


def write_regions(
    path: Path,
    heatmap: SlideHeatmap,
    patches_of: Mapping[str, NDArray[np.bool_]],
    origin_px0: tuple[int, int],
) -> None:
    """Write the connected regions of each class.

    Args:
        path: GeoJSON to write.
        heatmap: the slide's patches.
        patches_of: by class, which patches belong to it, bool `[patches]`; a class without patches has no region.
        origin_px0: `(x, y)` from where coordinates count.

    Raises:
        OSError: the file cannot be written.
    """
    boxes = _boxes(heatmap, origin_px0)
    pixel_mm2 = heatmap.lattice.slide_mpp**2 / UM2_PER_MM2
    outlines: list[tuple[dict[str, Any], Shape]] = []
    for number, (name, is_of_class) in enumerate(patches_of.items()):
        colour = CLASS_COLOURS[number % len(CLASS_COLOURS)]
        for region in shapely.get_parts(shapely.union_all(boxes[is_of_class])):
            properties = {
                "objectType": "annotation",
                "classification": {"name": name, "color": list(colour)},
                "area_mm2": region.area * pixel_mm2,
            }
            outlines.append((properties, region))
    write_geojson(path, feature_collection(outlines))


def _boxes(heatmap: SlideHeatmap, origin_px0: tuple[int, int]) -> NDArray[Any]:
    corners = heatmap.lattice.to_px0(heatmap.grid) - np.array(origin_px0)
    x0, y0 = corners.T
    edge = heatmap.lattice.patch_px0
    return np.asarray(shapely.box(x0, y0, x0 + edge, y0 + edge), dtype=object)
