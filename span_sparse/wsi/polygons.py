"""How does a mask become polygons that other programs show, and polygons a mask?

`tissue_polygons` follows the edges of mask pixels, so nothing is lost: one feature per piece of tissue (pixels that
share an edge), holes kept, in level-0 pixels. `rasterise` is the inverse: a mask pixel is inside when its centre is,
by the even-odd rule. Outlines at the 0.5 level between pixel centres, as `find_contours` draws them, cut corners and
never give the same mask back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from span_sparse.wsi.geojson import Shape, feature_collection
from span_sparse.wsi.tissue_settings import UM2_PER_MM2, TissueMask

TISSUE_COLOUR = [0, 122, 51]


def tissue_polygons(tissue: TissueMask, origin_px0: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """The tissue as a GeoJSON FeatureCollection of plain values, as QuPath reads it.

    Args:
        tissue: a mask; may be empty.
        origin_px0: `(x, y)` from where the coordinates count. QuPath counts from the corner of a slide's `bounds`.

    Returns:
        One feature per piece, ordered by its first pixel, with `objectType`, `classification`, `tissue_id` (from 1) and
        `area_mm2`. Pixels that lie partly outside the slide are whole, as in the mask.
    """
    pixel_mm2 = tissue.slide_mpp**2 / UM2_PER_MM2
    outlines: list[tuple[dict[str, Any], Shape]] = []
    for number, shape in enumerate(_pieces(tissue.mask), start=1):
        in_px0 = shapely.transform(shape, lambda xy: xy * tissue.scale_px0 - np.array(origin_px0))
        properties = {
            "objectType": "annotation",
            "classification": {"name": "Tissue", "color": TISSUE_COLOUR},
            "tissue_id": number,
            "area_mm2": in_px0.area * pixel_mm2,
        }
        outlines.append((properties, in_px0))
    return feature_collection(outlines)


def rasterise(shape: shapely.Geometry, rows: int, cols: int, scale_px0: int) -> NDArray[np.bool_]:
    """Mask pixels whose centres lie inside a valid geometry, bool `[rows, cols]`.

    Every edge crosses the centre lines of the rows it spans (its smaller y included, its larger not, so that a
    corner counts once); a pixel is inside when an odd number of crossings lies left of its centre.

    Args:
        shape: in level-0 pixels.
        rows: of the mask.
        cols: of the mask.
        scale_px0: edge of a mask pixel in level-0 pixels.
    """
    edges = [_edges(ring) for part in shapely.get_parts(shape) for ring in (part.exterior, *part.interiors)]
    x0, y0, x1, y1 = (np.concatenate(edges) / scale_px0 - 0.5).T  # centres are whole numbers now
    low, high = np.minimum(y0, y1), np.maximum(y0, y1)
    first = np.clip(np.ceil(low), 0, rows).astype(np.int64)
    count = np.clip(np.ceil(high), 0, rows).astype(np.int64) - first
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    slope = np.divide(x1 - x0, y1 - y0, out=np.zeros_like(x0), where=y1 != y0)
    x = x0[edge] + (row - y0[edge]) * slope[edge]
    col = np.clip(np.ceil(x), 0, cols).astype(np.int64)
    toggles = np.bincount(row * (cols + 1) + col, minlength=rows * (cols + 1)).reshape(rows, cols + 1)[:, :cols]
    return np.bitwise_xor.accumulate(toggles & 1, axis=1).astype(bool)


def _edges(ring: shapely.LinearRing) -> NDArray[np.float64]:
    corners = shapely.get_coordinates(ring)
    return np.concatenate([corners[:-1], corners[1:]], axis=1)


def _pieces(mask: NDArray[np.bool_]) -> list[Any]:
    """One polygon per 4-connected component, in mask pixels, ordered by their first pixel.

    The borders between set and other pixels, cut where they turn or cross, are a planar graph; its faces are the pieces
    and their holes. Whether a face is set says the pixel below its first corner.
    """
    lines = np.concatenate([_borders(mask), _borders(mask.T)[..., ::-1]])
    faces = shapely.get_parts(shapely.polygonize(np.asarray(shapely.linestrings(lines), dtype=object)))
    firsts = [_first_corner(face) for face in faces]
    order = sorted((row, col, number) for number, (row, col) in enumerate(firsts) if mask[row, col])
    return [faces[number] for _, _, number in order]


def _borders(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Horizontal borders `[lines, 2, 2]` as pairs of corners `(x, y)`, cut where the set side changes."""
    change = np.diff(mask.astype(np.int8), axis=0, prepend=0, append=0)
    lines: list[NDArray[np.int64]] = []
    for side in (1, -1):
        edges = np.diff((change == side).astype(np.int8), axis=1, prepend=0, append=0)
        rows, starts = np.nonzero(edges == 1)
        _, stops = np.nonzero(edges == -1)
        lines.append(np.stack([starts, rows, stops, rows], axis=1))
    return np.concatenate(lines).reshape(-1, 2, 2).astype(np.float64)


def _first_corner(face: shapely.Polygon) -> tuple[int, int]:
    """Row and column of a face's topmost, of these leftmost, pixel."""
    corners = shapely.get_coordinates(face.exterior)
    x, y = corners[np.lexsort(corners.T)[0]]
    return int(y), int(x)
