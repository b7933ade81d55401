from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import shapely
from shapely.geometry import MultiPolygon, Polygon

from span_sparse.errors import AnnotationError
from span_sparse.wsi.geojson import (
    MAX_DEPTH,
    feature_collection,
    geojson_bytes,
    parse_geojson,
    read_geojson,
    write_geojson,
)

SQUARE = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
HOLE = [[2, 2], [4, 2], [4, 4], [2, 4], [2, 2]]


def polygon(*rings: object) -> dict:
    return {"type": "Polygon", "coordinates": list(rings)}


def feature(geometry: object, **properties: object) -> dict:
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def area_of(document: object) -> float:
    return sum(outline.geometry.area for outline in parse_geojson(document, "a.geojson"))


@pytest.mark.parametrize(
    ("document", "area"),
    [
        (polygon(SQUARE), 100),
        (polygon(SQUARE, HOLE), 96),
        (polygon(SQUARE[:-1]), 100),  # open ring
        (polygon([[*xy, 7.5] for xy in SQUARE]), 100),  # heights
        (feature(polygon(SQUARE)), 100),
        ([feature(polygon(SQUARE)), feature(polygon(HOLE))], 104),
        ({"type": "FeatureCollection", "features": [feature(None), feature(polygon(SQUARE))]}, 100),
        ({"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE], [HOLE]]}, 100),
        ({"type": "GeometryCollection", "geometries": [polygon(HOLE), {"type": "Point", "coordinates": [1, 1]}]}, 4),
        (polygon([[0, 0], [10, 10], [10, 0], [0, 10]]), 50),  # a bow tie, even-odd: two triangles
        (polygon([[0, 0], [5, 5], [0, 0], [5, 5]]), 0),  # a line drawn forth and back
        ({"type": "FeatureCollection", "features": []}, 0),
    ],
)
def test_areas(document, area):
    assert area_of(document) == pytest.approx(area)
    assert all(outline.geometry.is_valid for outline in parse_geojson(document, "a"))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"type": "FeatureCollection"}, "needs a list `features`, found null"),
        ([feature(polygon(SQUARE)), 7], "feature 2 of 2: expected a GeoJSON object, found 7"),
        ({"type": "Feature", "properties": [], "geometry": None}, "expected an object as `properties`"),
        ({"type": "Polygons"}, 'found type "Polygons"'),
        (polygon([[0, 0], [1, 1]]), "at least three corners"),
        (polygon([[0, 0], [1, None], [1, 1]]), r"expected positions \[x, y\].*\[1, null\]"),
        (polygon([[0, 0], [True, 1], [1, 1]]), r"expected positions"),
        (polygon([[0, 0], ["1", 1], [1, 1]]), r"expected positions"),
        (polygon([[0, 0], [math.nan, 1], [1, 1]]), r"expected positions"),
        (polygon([[0, 0], [1e300, 1], [1, 1]]), r"at most 2\^31"),
        (polygon([[0, 0], [1], [1, 1]]), r"expected positions"),
        (polygon(3), "a list of positions, found 3"),
        ({"type": "Polygon", "coordinates": {}}, "a list of coordinates"),
        (feature("x"), 'expected a geometry, found "x"'),
    ],
)
def test_what_is_no_geojson_is_named(document, message):
    with pytest.raises(AnnotationError, match=r"^a\.geojson: .*" + message):
        parse_geojson(document, "a.geojson")


def test_nesting_is_bounded(tmp_path):
    nested: dict = polygon(SQUARE)
    for _ in range(MAX_DEPTH):
        nested = {"type": "GeometryCollection", "geometries": [nested]}
    assert area_of(nested) == 100
    with pytest.raises(AnnotationError, match="nested deeper than 8"):
        area_of({"type": "GeometryCollection", "geometries": [nested]})
    path = tmp_path / "deep.geojson"
    path.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(AnnotationError, match=r"deep\.geojson: is nested too deeply"):
        read_geojson(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b'{"type": NaN}', b'{"a": ' + b"9" * 5000 + b"}", b'\x00{"type": 1}']
)
def test_files_that_are_no_json(tmp_path, content):
    (tmp_path / "x.geojson").write_bytes(content)
    with pytest.raises(AnnotationError, match=r"x\.geojson: is not JSON") as caught:
        read_geojson(tmp_path / "x.geojson")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(AnnotationError, match=r"absent\.geojson: cannot be read: No such file"):
        read_geojson(tmp_path / "absent.geojson")
    (tmp_path / "large.geojson").write_text(" " * 100)
    monkeypatch.setattr("span_sparse.wsi.geojson.MAX_FILE_BYTES", 99)
    with pytest.raises(AnnotationError, match=r"large\.geojson: has 0 MiB, expected at most"):
        read_geojson(tmp_path / "large.geojson")


def test_what_is_written_is_valid_closed_and_right_handed(tmp_path):
    clockwise = Polygon(SQUARE[::-1], [HOLE])
    two = MultiPolygon([Polygon(SQUARE), Polygon([[20.5, 0], [30, 0], [30, 9]])])
    collection = feature_collection([({"name": "é"}, clockwise), ({}, two)])
    write_geojson(tmp_path / "out.geojson", collection)
    assert (tmp_path / "out.geojson").read_bytes() == geojson_bytes(collection)
    written = json.loads((tmp_path / "out.geojson").read_text(encoding="utf-8"))
    assert [one["geometry"]["type"] for one in written["features"]] == ["Polygon", "MultiPolygon"]
    first, second = (one["geometry"]["coordinates"] for one in written["features"])
    for rings in (first, *second):
        for number, ring in enumerate(rings):
            assert ring[0] == ring[-1]
            assert signed_area(ring) * (1 if number == 0 else -1) > 0
    back = read_geojson(tmp_path / "out.geojson")
    assert back[0].properties == {"name": "é"}
    assert back[0].geometry.equals(clockwise)
    assert back[1].geometry.equals(two)
    assert "[0,0]" in json.dumps(first, separators=(",", ":"))  # whole numbers without ".0"
    with pytest.raises(ValueError, match="without area"):
        feature_collection([({}, Polygon())])


def signed_area(ring: list[list[float]]) -> float:
    """Shoelace formula."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(ring)) / 2


@pytest.mark.realdata
def test_export_of_qupath(real_slides):
    outlines = read_geojson(real_slides / "annotations" / "qupath-0.5.geojson")
    assert [outline.properties["name"] for outline in outlines] == ["UT", "I", "I"]
    again = parse_geojson(feature_collection((one.properties, one.geometry) for one in outlines), "again")
    assert all(shapely.equals(one.geometry, two.geometry) for one, two in zip(outlines, again, strict=True))
