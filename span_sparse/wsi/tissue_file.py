"""What if somebody has outlined the tissue already?

A picture (PNG or TIFF, any size with the slide's proportions, not zero is tissue) or a GeoJSON in level-0 pixels makes
a mask like any other; nothing is dropped, filled or rejected. Picture pixels and mask pixels seldom meet, so the exact
share of each mask pixel that is tissue is taken, and half of it decides.

A mask drawn on another slide, or on a crop, would shift the tissue without any error: proportions that differ are
refused. QuPath shows and exports only the `bounds` of a slide that has some (MRXS); `mask_origin` says which is meant.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Final

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image

from span_sparse.errors import AnnotationError
from span_sparse.grid import BoxPx0
from span_sparse.wsi.geojson import read_geojson
from span_sparse.wsi.polygons import rasterise
from span_sparse.wsi.reader import SlideReader
from span_sparse.wsi.tissue_settings import BOUNDS

PROPORTION_TOLERANCE: Final = 0.01
GEOJSON_SUFFIXES: Final = (".geojson", ".json")


def mask_from_file(
    path: Path, reader: SlideReader, origin: str, rows: int, cols: int, scale_px0: int
) -> NDArray[np.bool_]:
    """The user's mask of a slide, bool `[rows, cols]`.

    Args:
        path: PNG, TIFF or GeoJSON.
        reader: the open slide.
        origin: `slide` or `bounds`: what the file shows.
        rows: of the result.
        cols: of the result.
        scale_px0: edge of a pixel of the result in level-0 pixels.

    Raises:
        AnnotationError: the file cannot be read, has other proportions than the slide, or outlines what lies outside.
    """
    frame = BoxPx0(0, 0, reader.width_px0, reader.height_px0)
    if origin == BOUNDS:
        if reader.bounds is None:
            raise AnnotationError(
                f"{path}: is said to show the bounds of {reader.path}, which has none; set tissue_mask_origin to slide"
            )
        frame = reader.bounds
    if path.suffix.lower() in GEOJSON_SUFFIXES:
        return _from_geojson(path, reader, frame, rows, cols, scale_px0)
    picture = _read_picture(path)
    height, width = picture.shape
    frame_width, frame_height = frame.x1 - frame.x0, frame.y1 - frame.y0
    ratio = (width / height) / (frame_width / frame_height)
    if abs(ratio - 1) > max(PROPORTION_TOLERANCE, 1 / width + 1 / height):
        raise AnnotationError(
            f"{path}: has {width} × {height} px, proportions {width / height:.4g}, but the slide's {origin} has "
            f"{frame_width} × {frame_height} px, {frame_width / frame_height:.4g}; it belongs to another slide or crop"
        )
    edges_y = (np.arange(rows + 1) * scale_px0 - frame.y0) * height / frame_height
    edges_x = (np.arange(cols + 1) * scale_px0 - frame.x0) * width / frame_width
    along_y = _sums_between(picture, edges_y)
    covered = _sums_between(along_y.T, edges_x).T
    inside = np.outer(np.diff(np.clip(edges_y, 0, height)), np.diff(np.clip(edges_x, 0, width)))
    return (covered > 0) & (covered >= 0.5 * inside * (1 - 1e-9))


def _from_geojson(
    path: Path, reader: SlideReader, frame: BoxPx0, rows: int, cols: int, scale_px0: int
) -> NDArray[np.bool_]:
    outlines = read_geojson(path)
    if not outlines:
        raise AnnotationError(f"{path}: holds no polygon; draw the tissue as areas, or choose another tissue method")
    union = shapely.union_all([outline.geometry for outline in outlines])
    shape = shapely.transform(union, lambda xy: xy + np.array([frame.x0, frame.y0]))
    left, top, right, bottom = shape.bounds
    if right <= 0 or bottom <= 0 or left >= reader.width_px0 or top >= reader.height_px0:
        raise AnnotationError(
            f"{path}: its polygons lie at x {left:.0f} to {right:.0f}, y {top:.0f} to {bottom:.0f}, outside the slide "
            f"of {reader.width_px0} × {reader.height_px0} px; they must be in pixels of level 0"
        )
    return rasterise(shape, rows, cols, scale_px0)


def _read_picture(path: Path) -> NDArray[np.bool_]:
    """What is neither zero nor transparent in a picture, bool `[height, width]`; of a palette, the index counts."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("error", UserWarning)  # "Truncated File Read", "Corrupt EXIF data", ...
            with Image.open(path, formats=("PNG", "TIFF")) as image:
                opacity = image.has_transparency_data and image.mode in ("RGBA", "LA")
                pixels = np.asarray(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise AnnotationError(
            f"{path}: is too large for a tissue mask ({error}); 8 µm per pixel is enough, make it smaller"
        ) from error
    except Exception as error:  # whatever Pillow's readers raise on a damaged file: KeyError, struct.error, ...
        raise AnnotationError(
            f"{path}: cannot be read as a tissue mask ({error}); expected PNG, TIFF or GeoJSON (.geojson, .json)"
        ) from error
    is_set = pixels != 0
    if is_set.ndim == 2:
        return is_set
    return is_set[..., :-1].any(axis=2) & is_set[..., -1] if opacity else is_set.any(axis=2)


def _sums_between(picture: NDArray[np.bool_] | NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums over the rows between neighbouring edges, `[len(edges) - 1, cols]`; parts of rows count in part."""
    inside = np.clip(edges, 0, len(picture))
    result = np.empty((len(edges) - 1, picture.shape[1]))
    for left in range(0, picture.shape[1], 1024):  # of running sums in float64, only a strip at a time
        strip = picture[:, left : left + 1024]
        sums = np.concatenate([np.zeros((1, strip.shape[1])), np.cumsum(strip, axis=0, dtype=np.float64)])
        node = np.minimum(inside.astype(np.int64), len(strip) - 1)
        rest = (inside - node)[:, None]
        at_edges = sums[node] * (1 - rest) + sums[node + 1] * rest
        result[:, left : left + 1024] = np.diff(at_edges, axis=0)
    return result
