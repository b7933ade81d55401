"""What do the files of the annotation programs mean? One function each, all to the same `Gathering`.

* **ASAP**: `Annotation` elements with a `Type` and the group they are in (`PartOfGroup`), which is their class; outside
  a group it is called `None`, as ASAP writes it. Splines are taken by the straight lines between their points.
* **Aperio ImageScope**: layers (`Annotation`) with regions. The class is the layer's name, else its description, else
  the region's text, else the layer's colour. A negative region (`NegativeROA`) is a hole in the other regions of its
  layer. Rectangles and ellipses may be given by two corners of the box around them.
* **QuPath** and other GeoJSON: `properties.classification`, else `properties.name`, else `unclassified`. Detections,
  cells and tiles are no annotations and left out.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import shapely
from shapely.geometry import Polygon

from span_sparse.wsi.annotations.shapes import Gathering, ellipse_corners, rectangle_corners
from span_sparse.wsi.annotations.xml_file import Node
from span_sparse.wsi.geojson import Shape, parse_geojson, valid_shape

NO_GROUP: Final = "None"
UNCLASSIFIED: Final = "unclassified"

_ASAP_REGIONS: Final = frozenset({"polygon", "spline", "rectangle", ""})
_APERIO_KINDS: Final = {"0": "polygon", "1": "rectangle", "2": "ellipse"}
_WITHOUT_TEXT: Final = frozenset({"", "null"})
_NOT_DRAWN: Final = frozenset({"detection", "cell", "tile", "tma_core", "root"})
_NOT_DRAWN_IDS: Final = frozenset({"PathDetectionObject", "PathCellObject", "PathTileObject", "PathRootObject"})
"""QuPath before 0.3 wrote these as the `id` of a feature."""


def gather_asap(root: Node) -> Gathering:
    """Annotations of an ASAP file, from its root `ASAP_Annotations`."""
    gathered = Gathering()
    for number, one in enumerate(root.all("Annotations", "Annotation"), start=1):
        kind = one.attributes.get("Type", "").lower()
        if kind not in _ASAP_REGIONS:
            gathered.num_ignored += 1
            continue
        corners = np.concatenate([np.empty((0, 2)), *(node.corners() for node in one.all("Coordinates"))])
        if kind == "rectangle":
            corners = rectangle_corners(corners)
        group = one.attributes.get("PartOfGroup", "").strip() or NO_GROUP
        gathered.add(group, gathered.shape(corners), one.attributes.get("Name", "") or f"annotation {number}")
    return gathered


def gather_aperio(root: Node) -> Gathering:
    """Annotations of an ImageScope file, from its root `Annotations`."""
    gathered = Gathering()
    for layer in root.all("Annotation"):
        positive: list[tuple[str, Shape, str]] = []
        holes: list[Shape] = []
        for region in layer.all("Regions", "Region"):
            shape = _aperio_shape(region, gathered)
            if shape is None:
                continue
            if region.attributes.get("NegativeROA", "0").strip() not in ("", "0"):
                holes.append(shape)
                continue
            source = f"layer {layer.attributes.get('Id', '?')} region {region.attributes.get('Id', '?')}"
            positive.append((_aperio_class(layer, region), shape, source))
        hole = shapely.union_all(holes) if holes else None
        for name, shape, source in positive:
            rest = shape if hole is None else _without(shape, hole)
            gathered.num_degenerate += rest is None
            gathered.add(name, rest, source)
    return gathered


def gather_geojson(document: Any, name: str) -> Gathering:
    """Annotations of a GeoJSON document.

    Raises:
        AnnotationError: it is no valid GeoJSON; names the feature.
    """
    gathered = Gathering()
    outlines = {outline.number: outline for outline in parse_geojson(document, name)}
    if isinstance(document, dict):
        document = document["features"] if document.get("type") == "FeatureCollection" else [document]
    for number, feature in enumerate(document, start=1):
        outline = outlines.get(number)
        if _is_not_drawn(feature):
            gathered.num_ignored += 1
        elif outline is not None:
            gathered.num_repaired += outline.repaired
            gathered.add(_qupath_class(outline.properties), outline.geometry, f"feature {number}")
        elif "olygon" in str((feature.get("geometry") or feature).get("type")):
            gathered.num_degenerate += 1
        else:
            gathered.num_ignored += 1
    return gathered


def _aperio_shape(region: Node, gathered: Gathering) -> Shape | None:
    stated = region.attributes.get("GeoShape", "").lower()  # of some exporters; their `Type` then means something else
    kind = stated or _APERIO_KINDS.get(region.attributes.get("Type", "0").strip())
    if kind is None or "line" in kind or "arrow" in kind:
        gathered.num_ignored += 1
        return None
    corners = np.concatenate([np.empty((0, 2)), *(node.corners() for node in region.all("Vertices"))])
    if kind == "ellipse" and 2 <= len(corners) <= 4:
        corners = ellipse_corners(corners)
    elif kind == "rectangle":
        corners = rectangle_corners(corners)
    return gathered.shape(corners)


def _aperio_class(layer: Node, region: Node) -> str:
    described = [
        attribute.attributes.get("Value", "")
        for attribute in layer.all("Attributes", "Attribute")
        if attribute.attributes.get("Name") == "Description"
    ]
    for text in (layer.attributes.get("Name", ""), *described, region.attributes.get("Text", "")):
        if text.strip() not in _WITHOUT_TEXT:
            return text.strip()
    colour = layer.attributes.get("LineColor", "").strip()
    if not colour.isdecimal() or len(colour) > 10:
        return UNCLASSIFIED
    blue, green, red = (int(colour) >> shift & 255 for shift in (16, 8, 0))  # a Windows COLORREF
    return f"#{red:02x}{green:02x}{blue:02x}"


def _without(shape: Shape, hole: shapely.Geometry) -> Shape | None:
    parts = [part for part in shapely.get_parts(shape.difference(hole)) if isinstance(part, Polygon)]
    return valid_shape(shapely.MultiPolygon(parts)) if parts else None


def _is_not_drawn(feature: dict[str, Any]) -> bool:
    properties = feature.get("properties") or {}
    kind = properties.get("objectType", properties.get("object_type", ""))
    return str(kind).lower() in _NOT_DRAWN or str(feature.get("id")) in _NOT_DRAWN_IDS


def _qupath_class(properties: dict[str, Any]) -> str:
    classification = properties.get("classification")
    if isinstance(classification, dict):
        names = classification.get("names")  # QuPath 0.4 and later write derived classes as a list
        given = classification.get("name") or (": ".join(map(str, names)) if isinstance(names, list) else "")
    else:
        given = classification
    for text in (given, properties.get("name")):
        if isinstance(text, str) and text.strip():
            return text.strip()
    return UNCLASSIFIED
