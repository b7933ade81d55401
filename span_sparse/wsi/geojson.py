"""How do outlines come in from GeoJSON, and leave so that other programs can read them?

Coordinates are level-0 pixels `(x, y)`, not degrees: QuPath and its kin use RFC 7946 for its syntax only.

1. `read_geojson` reads a file, `parse_geojson` what was read: FeatureCollection, Feature, GeometryCollection (nested a
   few levels deep), Polygon and MultiPolygon with holes. Points and lines have no area and are left out.
2. Every ring is checked (numbers, finite, three corners), an open one closed, a geometry that crosses itself repaired
   (even-odd), since people draw by hand. What has no area after that is left out.
3. `feature_collection` and `write_geojson` write closed, valid, right-handed rings (RFC 7946, 3.1.6): outer rings
   counterclockwise, holes clockwise, by the signed area of the numbers as they stand.

Handing the parsed file to shapely directly instead accepts `NaN`, `null` and self-crossing rings, and the first
intersection with a cell then fails, or gives an area that means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, TypeAlias

import numpy as np
import shapely
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.polygon import orient

from span_sparse.errors import AnnotationError
from span_sparse.files import write_atomically

MAX_FILE_BYTES: Final = 256 * 1024**2
"""Parsed JSON takes about ten times the file; outlines of tissue and tumour have kilobytes, of every nucleus 100 MB."""

MAX_DEPTH: Final = 8
"""Of geometry collections within each other."""

MAX_COORDINATE_PX0: Final = 2**31
"""No slide is so large; the areas of such polygons are still exact in float64."""

_WITHOUT_AREA: Final = frozenset({"Point", "MultiPoint", "LineString", "MultiLineString"})

Shape: TypeAlias = Polygon | MultiPolygon


class Outline(NamedTuple):
    """One outlined region.

    Attributes:
        properties: the feature's properties, as they are in the file; empty for a bare geometry.
        geometry: valid, with area, in level-0 pixels.
        number: of the feature in its file, from 1; those without area are left out, so numbers have gaps.
        repaired: the file's polygon crossed itself.
    """

    properties: dict[str, Any]
    geometry: Shape
    number: int = 1
    repaired: bool = False


def read_geojson(path: Path) -> list[Outline]:
    """The outlines of a GeoJSON file.

    Args:
        path: the file, UTF-8.

    Raises:
        AnnotationError: the file cannot be read, is too large, no JSON, or no valid GeoJSON.
    """
    return parse_geojson(load_geojson(path), str(path))


def load_geojson(path: Path) -> Any:
    """The JSON document of a file, for `parse_geojson`.

    Raises:
        AnnotationError: the file cannot be read, is too large, or no JSON.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise AnnotationError(
                f"{path}: has {path.stat().st_size / 1024**2:.0f} MiB, expected at most {MAX_FILE_BYTES // 1024**2}; "
                "export annotations only, without cell detections"
            )
        return json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refuse_constant)
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read: {error.strerror or error}") from error
    except RecursionError as error:
        raise AnnotationError(f"{path}: is nested too deeply for GeoJSON") from error
    except ValueError as error:  # also bytes that are no UTF-8, and integers of thousands of digits
        raise AnnotationError(f"{path}: is not JSON ({error}); export the annotations as GeoJSON again") from error


def parse_geojson(document: Any, name: str) -> list[Outline]:
    """The outlines of a parsed GeoJSON document.

    Args:
        document: what `json.load` gave: an object, or a list of features (older QuPath).
        name: of the file, for messages.

    Raises:
        AnnotationError: it is no valid GeoJSON; names the feature, counted from 1.
    """
    if isinstance(document, dict) and document.get("type") == "FeatureCollection":
        document = document.get("features")
        if not isinstance(document, list):
            raise AnnotationError(f"{name}: a FeatureCollection needs a list `features`, found {_show(document)}")
    features = document if isinstance(document, list) else [document]
    outlines: list[Outline] = []
    for number, feature in enumerate(features, start=1):
        try:
            properties, geometry = _feature(feature)
            polygons = list(_polygons(geometry, depth=0))
            shape = _union_of([good for polygon in polygons if (good := valid_shape(polygon)) is not None])
        except AnnotationError as error:
            raise AnnotationError(f"{name}: feature {number} of {len(features)}: {error}") from None
        if shape is not None:
            repaired = not all(polygon.is_valid for polygon in polygons)
            outlines.append(Outline(properties, shape, number, repaired))
    return outlines


def feature_collection(outlines: Iterable[tuple[dict[str, Any], Shape]]) -> dict[str, Any]:
    """A GeoJSON FeatureCollection of plain values, one feature for each outline.

    Args:
        outlines: properties (plain values) and geometry in level-0 pixels; a geometry that crosses itself is repaired.

    Raises:
        ValueError: a geometry without area.
    """
    features: list[dict[str, Any]] = []
    for properties, geometry in outlines:
        shape = valid_shape(geometry)
        if shape is None:
            raise ValueError(f"a geometry without area cannot be written: {geometry.wkt[:80]}")
        parts = [_rings(polygon) for polygon in shapely.get_parts(shape)]
        kind, coordinates = ("Polygon", parts[0]) if len(parts) == 1 else ("MultiPolygon", parts)
        features.append(
            {"type": "Feature", "properties": properties, "geometry": {"type": kind, "coordinates": coordinates}}
        )
    return {"type": "FeatureCollection", "features": features}


def geojson_bytes(collection: dict[str, Any]) -> bytes:
    """The file's content for what `feature_collection` made."""
    return json.dumps(collection, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def write_geojson(path: Path, collection: dict[str, Any]) -> None:
    """Write what `feature_collection` made, under a temporary name first.

    Raises:
        OSError: the file cannot be written.
    """
    write_atomically(path, geojson_bytes(collection))


def _feature(feature: Any) -> tuple[dict[str, Any], Any]:
    """Properties and geometry of a Feature, or of a bare geometry."""
    if not isinstance(feature, dict):
        raise AnnotationError(f"expected a GeoJSON object, found {_show(feature)}")
    if feature.get("type") != "Feature":
        return {}, feature
    properties = feature.get("properties")
    if properties is not None and not isinstance(properties, dict):
        raise AnnotationError(f"expected an object as `properties`, found {_show(properties)}")
    return properties or {}, feature.get("geometry")


def _polygons(geometry: Any, depth: int) -> Iterator[Polygon]:
    """The polygons of a geometry, as they are drawn; None, points and lines have none."""
    if geometry is None:  # RFC 7946, 3.2: an unlocated feature
        return
    if not isinstance(geometry, dict):
        raise AnnotationError(f"expected a geometry, found {_show(geometry)}")
    kind = geometry.get("type")
    if kind == "GeometryCollection":
        if depth >= MAX_DEPTH:
            raise AnnotationError(f"geometry collections are nested deeper than {MAX_DEPTH} levels")
        for member in _list(geometry.get("geometries"), "geometries"):
            yield from _polygons(member, depth + 1)
    elif kind in ("Polygon", "MultiPolygon"):
        coordinates = _list(geometry.get("coordinates"), "coordinates")
        for rings in [coordinates] if kind == "Polygon" else coordinates:
            corners = [_ring(ring) for ring in _list(rings, "rings")]
            if corners:
                yield Polygon(corners[0], corners[1:])
    elif kind not in _WITHOUT_AREA:
        raise AnnotationError(f"expected a polygon or another GeoJSON geometry, found type {_show(kind)}")


def _ring(ring: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Corners `(x, y)` of a ring; heights are dropped."""
    positions = _list(ring, "positions")
    for position in positions:
        if (
            not isinstance(position, list)
            or len(position) < 2
            or not all(type(value) in (int, float) and abs(value) <= MAX_COORDINATE_PX0 for value in position[:2])
        ):
            raise AnnotationError(f"expected positions [x, y] in level-0 pixels, at most 2^31, found {_show(position)}")
    corners = np.array([position[:2] for position in positions], dtype=np.float64).reshape(-1, 2)
    if len(corners) and (corners[0] != corners[-1]).any():
        corners = np.concatenate([corners, corners[:1]])
    if len(corners) < 4:
        raise AnnotationError(f"a ring needs at least three corners, found {_show(ring)}")
    return corners


def valid_shape(geometry: Shape) -> Shape | None:
    """The geometry made valid, without lines and points; None when nothing with an area is left."""
    if geometry.is_valid:
        return geometry if geometry.area > 0 else None
    return _union_of([part for part in _flat(shapely.make_valid(geometry)) if isinstance(part, Polygon)])


def _union_of(shapes: Sequence[Shape]) -> Shape | None:
    with_area = [shape for shape in shapes if shape.area > 0]
    if len(with_area) <= 1:
        return with_area[0] if with_area else None
    union = shapely.union_all(with_area)
    polygons = [part for part in _flat(union) if isinstance(part, Polygon) and part.area > 0]
    return polygons[0] if len(polygons) == 1 else MultiPolygon(polygons)


def _flat(geometry: shapely.Geometry) -> Iterator[shapely.Geometry]:
    for part in shapely.get_parts(geometry):
        if hasattr(part, "geoms"):
            yield from _flat(part)
        else:
            yield part


def _rings(polygon: Polygon) -> list[list[list[float]]]:
    turned = orient(polygon, 1.0)
    return [
        [[_plain(x), _plain(y)] for x, y in shapely.get_coordinates(ring)]
        for ring in (turned.exterior, *turned.interiors)
    ]


def _plain(value: float) -> float:
    return int(value) if float(value).is_integer() else float(value)


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise AnnotationError(f"expected a list of {what}, found {_show(value)}")
    return value


def _show(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
