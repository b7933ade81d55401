from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from shapely.geometry import Polygon

from span_sparse.wsi import TissueMask, tissue_polygons
from span_sparse.wsi.geojson import parse_geojson
from span_sparse.wsi.polygons import rasterise


def tissue_of(mask: np.ndarray, scale_px0: int = 3) -> TissueMask:
    return TissueMask(mask, scale_px0, slide_mpp=0.5, threshold=0.1)


@settings(max_examples=150, deadline=None)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)), st.integers(1, 40))
def test_polygons_give_the_same_mask_back(mask, scale_px0):
    tissue = tissue_of(mask, scale_px0)
    outlines = parse_geojson(json.loads(json.dumps(tissue_polygons(tissue))), "t")
    back = np.zeros_like(mask)
    for outline in outlines:
        assert outline.geometry.geom_type == "Polygon"
        back |= rasterise(outline.geometry, *mask.shape, scale_px0)
    np.testing.assert_array_equal(back, mask)
    assert sum(outline.properties["area_mm2"] for outline in outlines) == pytest.approx(tissue.area_mm2)
    assert sum(outline.geometry.area for outline in outlines) == mask.sum() * scale_px0**2


def test_pieces_holes_and_properties():
    """A ring with a piece in its hole that touches nothing, and a pixel that touches the ring by a corner."""
    mask = np.zeros((9, 12), bool)
    mask[0:7, 0:7] = True
    mask[1:6, 1:6] = False
    mask[3, 3] = True
    mask[7, 7] = True
    features = tissue_polygons(tissue_of(mask), origin_px0=(100, 10))["features"]
    assert [one["properties"]["tissue_id"] for one in features] == [1, 2, 3]
    assert {one["properties"]["objectType"] for one in features} == {"annotation"}
    assert [len(one["geometry"]["coordinates"]) for one in features] == [2, 1, 1]
    assert min(features[1]["geometry"]["coordinates"][0]) == [9 - 100, 9 - 10]
    areas = [one["properties"]["area_mm2"] / (1.5e-3) ** 2 for one in features]
    assert areas == pytest.approx([49 - 25, 1, 1])
    assert tissue_polygons(tissue_of(np.zeros((3, 3), bool)))["features"] == []


def test_rasterising_equals_asking_every_centre():
    rng = np.random.default_rng(0)
    for _ in range(30):
        corners = rng.uniform(-30, 130, (rng.integers(3, 12), 2))
        shape = shapely.make_valid(Polygon(corners)).buffer(0.01)
        x, y = (np.arange(17) + 0.5) * 7, (np.arange(14) + 0.5) * 7
        expected = shapely.contains_xy(shape, *np.meshgrid(x, y))
        np.testing.assert_array_equal(rasterise(shape, 14, 17, 7), expected)


def test_a_large_outline_is_quick():
    """100,000 corners on 8 million pixels; point by point that would take minutes."""
    angle = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)
    radius = 20_000 + 500 * np.sin(angle * 977)
    shape = Polygon(np.stack([25_000 + radius * np.cos(angle), 25_000 + radius * np.sin(angle)], axis=1))
    mask = rasterise(shape, 2500, 3200, 20)
    assert mask.sum() * 400 == pytest.approx(shape.area, rel=1e-3)
