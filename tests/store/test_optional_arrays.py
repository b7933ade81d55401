"""Annotation ratios, unreadable cells and what an import came from: arrays that a slide may have besides."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from span_sparse.errors import StoreError
from span_sparse.grid import Lattice, LatticeSpec
from span_sparse.store import FeatureStore, SlideRecord, validate_store
from span_sparse.store.checks import validate_record

CELLS = np.array([[4, 5], [0, 3], [2, 1]], np.int32)


@pytest.fixture
def record(make_record) -> SlideRecord:
    """Rows out of order; each value says which cell it belongs to."""
    return dataclasses.replace(
        make_record(grid=CELLS),
        ratios=np.array([[0.45, 0], [0.03, 1], [0.21, 0.5]], np.float32),
        ratio_classes=("tumor", "necrosis"),
        failed_grid=np.array([[9, 9], [1, 1]], np.int32),
        source_rows=np.array([[45], [3], [21]], np.int64),
        source_coords=np.array([[5.25, 4], [3.25, 0], [1.25, 2]], np.float64),
    )


def test_rows_stay_with_their_cells(store, record):
    store.write(record)
    found = store.read("slide-1")
    assert found.grid.tolist() == [[0, 3], [2, 1], [4, 5]]
    np.testing.assert_array_equal(found.ratios, np.array([[0.03, 1], [0.21, 0.5], [0.45, 0]], np.float32), strict=True)
    np.testing.assert_array_equal(found.failed_grid, np.array([[1, 1], [9, 9]], np.int32), strict=True)
    np.testing.assert_array_equal(found.source_rows, np.array([[3], [21], [45]]), strict=True)
    np.testing.assert_array_equal(found.source_coords, np.array([[3.25, 0], [1.25, 2], [5.25, 4]]), strict=True)
    assert found.ratio_classes == ("tumor", "necrosis")
    assert found.metadata() == record.metadata() == store.metadata("slide-1")
    assert validate_store(store.path) == []
    assert zarr.open_array(store.path / "slide-1" / "ratios", mode="r")[1, 1] == 0.5


def test_without_them_there_are_no_files(store, make_record):
    store.write(make_record())
    found = store.read("slide-1")
    assert (found.ratios, found.ratio_classes, found.failed_grid, found.source_rows) == (None, (), None, None)
    assert sorted(path.name for path in (store.path / "slide-1").iterdir()) == [
        "coords",
        "features",
        "grid",
        "zarr.json",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratios": np.zeros((2, 2), np.float32)}, "ratios must be float32 [3, 2], found float32 [2, 2]"),
        ({"ratios": np.zeros((3, 2))}, "ratios must be float32 [3, 2], found float64"),
        ({"ratio_classes": ("tumor",)}, "ratios must be float32 [3, 1], found float32 [3, 2]"),
        ({"ratio_classes": ("tumor", "tumor")}, "'ratio_classes' must name each class"),
        ({"ratios": None}, "be empty without that array, found ['tumor', 'necrosis']"),
        ({"ratios": np.full((3, 2), 1.5, np.float32)}, "ratios must lie in [0, 1], those of 3 of 3 patches do not"),
        ({"ratios": np.array([[0, 1], [0, np.nan], [0, 0]], np.float32)}, "those of 1 of 3 patches"),
        ({"failed_grid": CELLS[:1]}, "failed_grid holds cells that have a patch"),
        ({"failed_grid": np.array([[1, 1], [1, 1]], np.int32)}, "failed_grid must hold cells of the slide, each once"),
        ({"failed_grid": np.array([[20, 0]], np.int32)}, "failed_grid must hold cells of the slide"),
        ({"failed_grid": np.zeros((0, 2), np.int32)}, "failed_grid must be int32 [cells, 2], found int32 [0, 2]"),
        ({"source_rows": np.array([[1], [1], [2]])}, "source_rows must be different rows from 0 on"),
        ({"source_rows": np.array([[1], [-1], [2]])}, "source_rows must be different rows from 0 on"),
        ({"source_rows": np.array([1, 2, 3])}, "source_rows must be int64 [3, 1], found int64 [3]"),
        ({"source_coords": np.array([["a"]])}, "source_coords must be int32 or int64 or float32 or float64 [3, axes]"),
    ],
)
def test_each_problem_is_named_and_nothing_is_written(store, record, changes, message):
    broken = dataclasses.replace(record, **changes)
    (problem,) = validate_record(broken)
    assert message in problem
    with pytest.raises(StoreError, match=re.escape(message)):
        store.write(broken)
    assert store.slide_ids == ()


def test_an_array_that_vanished_or_grew_is_noticed(store: FeatureStore, record: SlideRecord):
    store.write(record)
    shard = store.path / "slide-1" / "ratios" / "c" / "0" / "0"
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(StoreError, match=r"ratios.*cannot be read: No such file"):
        FeatureStore(store.path).read("slide-1")
    shard.write_bytes(b"\x01" + content[1:])
    with pytest.raises(StoreError, match="checksum of block 0 differs"):
        FeatureStore(store.path).read("slide-1")


def test_a_link_out_of_the_store_is_refused(store: FeatureStore, record: SlideRecord, tmp_path: Path):
    store.write(record)
    array = store.path / "slide-1" / "source_coords"
    array.rename(tmp_path / "elsewhere")
    array.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="leads out of the store"):
        store.read("slide-1")


def test_a_lattice_with_origin_and_overlap(store, make_record):
    """By hand: patches of 12 px every 10 px from (3, 7); the last that fits 30 px starts at 13 (13 + 12 = 25)."""
    lattice = Lattice(LatticeSpec(6, 0.5), 0.25, 10, origin_px0=(3, 7), overlap_px0=2)
    grid = np.array([[0, 0], [1, 2]], np.int32)
    values: dict[str, Any] = {"lattice": lattice, "width_px0": 35, "height_px0": 29}
    record = make_record(grid=grid, coords=np.array([[3, 7], [23, 17]]), **values)
    store.write(record)
    assert store.read("slide-1").lattice == lattice
    assert validate_store(store.path) == []
    (problem,) = validate_record(make_record(grid=grid, coords=np.array([[3, 7], [23, 16]]), **values))
    assert "coords of 1 patches are not their cell × 10 px from (3, 7)" in problem
    (problem,) = validate_record(
        make_record(grid=grid, coords=np.array([[3, 7], [23, 17]]), **values | {"height_px0": 28})
    )
    assert "1 cells lie outside the slide, first (row, col) (1, 2)" in problem
