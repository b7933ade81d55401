"""GeoJSON against RFC 7946, written down again, and the fields QuPath reads."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import shapely

from span_sparse.grid import Lattice, LatticeSpec
from span_sparse.heatmaps import ColourScale
from span_sparse.heatmaps.outlines import write_detections, write_regions
from span_sparse.wsi.geojson import read_geojson

DEPTH = {"Polygon": 1, "MultiPolygon": 2}


def check_rfc_7946(document: dict) -> None:
    """Raises an assertion for every breach this file could have."""
    assert document["type"] == "FeatureCollection"
    assert "crs" not in document  # section 4: removed from the specification
    for feature in document["features"]:
        assert feature["type"] == "Feature"
        assert isinstance(feature["properties"], dict)
        geometry = feature["geometry"]
        assert set(geometry) == {"type", "coordinates"}
        polygons = [geometry["coordinates"]] if DEPTH[geometry["type"]] == 1 else geometry["coordinates"]
        assert polygons
        for rings in polygons:
            for number, ring in enumerate(rings):
                assert len(ring) >= 4
                assert ring[0] == ring[-1]
                assert all(
                    len(xy) == 2 and all(type(v) in (int, float) and math.isfinite(v) for v in xy) for xy in ring
                )
                area = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(ring))
                assert area > 0 if number == 0 else area < 0  # section 3.1.6
            assert shapely.Polygon(rings[0], rings[1:]).is_valid


def check_qupath(document: dict, kind: str) -> None:
    for feature in document["features"]:
        properties = feature["properties"]
        assert properties["objectType"] == kind
        colours = [properties[key] for key in ("color",) if key in properties]
        if "classification" in properties:
            assert isinstance(properties["classification"]["name"], str)
            colours.append(properties["classification"]["color"])
        assert colours
        assert all(len(rgb) == 3 and all(type(v) is int and 0 <= v <= 255 for v in rgb) for rgb in colours)
        for name, value in properties.get("measurements", {}).items():
            assert isinstance(name, str)
            assert type(value) in (int, float)


def test_a_detection_for_each_patch(tmp_path, make_heatmap):
    heatmap = make_heatmap()
    path = tmp_path / "patches.geojson"
    write_detections(path, heatmap, ColourScale("attention", 0, 3), (0, 0))
    document = json.loads(path.read_text(encoding="utf-8"))
    check_rfc_7946(document)
    check_qupath(document, "detection")
    assert len(document["features"]) == 4
    last = document["features"][3]
    assert last["properties"]["measurements"] == {"attention": 3.0, "gradient_x_input": -3.0}
    assert last["properties"]["color"] == [253, 231, 37]
    outlines = read_geojson(path)
    assert [one.geometry.bounds for one in outlines] == [
        (0, 0, 40, 40), (40, 0, 80, 40), (40, 40, 80, 80), (80, 120, 120, 160),
    ]  # fmt: skip


def test_coordinates_count_from_the_bounds(tmp_path, make_heatmap):
    heatmap = make_heatmap([(3, 2)], lattice=Lattice(LatticeSpec(20, 1.0), 0.5, 40, (5, 3), 4))
    write_detections(tmp_path / "p.geojson", heatmap, ColourScale("attention", 0, 1), (31, 17))
    write_regions(tmp_path / "r.geojson", heatmap, {"tumor": np.array([True])}, (31, 17))
    for name in ("p", "r"):
        (outline,) = read_geojson(tmp_path / f"{name}.geojson")
        assert outline.geometry.bounds == (85 - 31, 123 - 17, 85 + 44 - 31, 123 + 44 - 17)


def test_regions_are_the_union_of_their_patches(tmp_path, make_heatmap):
    ring = [(row, col) for row in range(4) for col in range(4) if (row, col) not in [(1, 1), (2, 2)]]
    cells = [*ring, (5, 4), (6, 5), (9, 9)]  # two that touch by a corner, one alone
    heatmap = make_heatmap(cells, np.zeros(len(cells)))
    is_tumor = np.array([True] * (len(cells) - 1) + [False])
    patches_of = {"tumor": is_tumor, "stroma é": ~is_tumor, "none": np.zeros(len(cells), bool)}
    write_regions(tmp_path / "r.geojson", heatmap, patches_of, (0, 0))
    document = json.loads((tmp_path / "r.geojson").read_text(encoding="utf-8"))
    check_rfc_7946(document)
    check_qupath(document, "annotation")
    names = [feature["properties"]["classification"]["name"] for feature in document["features"]]
    assert set(names) == {"tumor", "stroma é"}
    patch_mm2 = (40 * 0.5 / 1000) ** 2
    area = {name: 0.0 for name in names}
    for name, feature in zip(names, document["features"], strict=True):
        area[name] += feature["properties"]["area_mm2"]
    assert area["tumor"] == pytest.approx((len(cells) - 1) * patch_mm2)
    assert area["stroma é"] == pytest.approx(patch_mm2)
    holes = [ring for feature in document["features"] for ring in feature["geometry"]["coordinates"][1:]]
    assert len(holes) == 2


def test_a_slide_without_a_region_has_a_file_without_one(tmp_path, make_heatmap):
    write_regions(tmp_path / "r.geojson", make_heatmap(), {"tumor": np.zeros(4, bool)}, (0, 0))
    assert json.loads((tmp_path / "r.geojson").read_text()) == {"type": "FeatureCollection", "features": []}
