from __future__ import annotations

import numpy as np
import openslide
import pytest
from openslide.deepzoom import DeepZoomGenerator

from span_sparse.errors import SlideError
from span_sparse.grid import BoxPx0
from span_sparse.wsi import deep_zoom, open_slide
from span_sparse.wsi.deep_zoom import DeepZoomPyramid, read_tile


@pytest.mark.parametrize(("width", "height"), [(1000, 300), (256, 256), (257, 1), (2048, 2049), (1, 1)])
def test_levels_and_tiles_are_those_of_deep_zoom(make_slide, width, height):
    path = make_slide([np.zeros((height, width, 3), np.uint8)])
    other = DeepZoomGenerator(openslide.OpenSlide(path), tile_size=256, overlap=0)
    pyramid = DeepZoomPyramid(width, height)
    assert pyramid.max_level == other.level_count - 1
    for level in range(other.level_count):
        assert pyramid.num_tiles(level) == other.level_tiles[level]
        columns, rows = other.level_tiles[level]
        for column, row in {(0, 0), (columns - 1, rows - 1)}:
            assert pyramid.tile(level, column, row)[1] == other.get_tile_dimensions(level, (column, row))
        assert pyramid.tile(level, columns, 0) is None
        assert pyramid.tile(level, 0, rows) is None
    assert pyramid.tile(pyramid.max_level + 1, 0, 0) is None
    assert pyramid.num_tiles(pyramid.min_level) == (1, 1)


def test_the_tiles_of_the_finest_level_are_the_slide(make_slide):
    picture = np.random.default_rng(0).integers(0, 255, (300, 600, 3), dtype=np.uint8)
    with open_slide(make_slide([picture])) as reader:
        pyramid = DeepZoomPyramid(reader.width_px0, reader.height_px0)
        columns, rows = pyramid.num_tiles(pyramid.max_level)
        bands = [
            np.concatenate([read_tile(reader, *pyramid.tile(pyramid.max_level, c, r)) for c in range(columns)], axis=1)
            for r in range(rows)
        ]
    np.testing.assert_array_equal(np.concatenate(bands), picture)


def test_a_tile_read_in_parts_is_the_same(make_slide, monkeypatch):
    ramp = np.broadcast_to((np.arange(512)[:, None] // 2).astype(np.uint8), (512, 512))
    path = make_slide([np.stack([ramp, ramp.T, ramp], axis=2)])
    with open_slide(path) as reader:
        whole = read_tile(reader, BoxPx0(0, 0, 512, 512), (256, 256))
        monkeypatch.setattr(deep_zoom, "MAX_PART_PX", 100 * 100)
        parts = read_tile(reader, BoxPx0(0, 0, 512, 512), (256, 256))
        assert abs(whole.astype(int) - parts).max() <= 2
        monkeypatch.setattr(deep_zoom, "MAX_SOURCE_PX", 400 * 400)
        with pytest.raises(SlideError, match="no level coarse enough"):
            read_tile(reader, BoxPx0(0, 0, 512, 512), (256, 256))
