from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from span_sparse.store.checks import is_row_major, row_major_order, validate_record
from span_sparse.types import EncoderIdentity


def test_a_good_record_has_no_problems(make_record):
    assert validate_record(make_record()) == []
    assert validate_record(make_record(case_id=None, provenance={}, precision="float32")) == []


def edit(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: {"features": r.features.astype(np.float64)},
            r"features must be float16 or float32.*found float64 \[7, 5\]",
        ),
        (lambda r: {"features": r.features.astype(">f2")}, "features must be float16 or float32"),
        (lambda r: {"features": r.features[0]}, r"found float16 \[5\]"),
        (lambda r: {"features": r.features.tolist()}, "found list"),
        (lambda r: {"grid": r.grid.astype(np.int64)}, r"grid must be int32 \[patches, 2\], found int64"),
        (lambda r: {"coords": r.coords.astype(np.int32)}, r"coords must be int64 \[patches, 2\], found int32"),
        (lambda r: {"coords": np.zeros((7, 3), np.int64)}, r"found int64 \[7, 3\]"),
        (lambda r: {"grid": r.grid[:-1]}, "one row per patch, found .*'grid': 6"),
        (lambda r: {k: getattr(r, k)[:0] for k in ("features", "grid", "coords")}, "no patches"),
        (lambda r: {"features": edit(r.features, (2, 1), np.nan)}, "features of 1 of 7 patches hold NaN"),
        (
            lambda r: {"features": edit(r.features, ([1, 3], 0), np.inf)},
            "features of 2 of 7 patches hold NaN or infinite",
        ),
        (
            lambda r: {"encoder": dataclasses.replace(r.encoder, dimension=6)},
            "5 channels, the encoder's dimension is 6",
        ),
        (lambda r: {"encoder": dataclasses.replace(r.encoder, precision="float32")}, "are float16, .* is float32"),
        (
            lambda r: {"coords": edit(r.coords, (4, 0), 7)},
            r"coords of 1 patches are not their cell × 10 px from \(0, 0\): patch 4",
        ),
        (lambda r: {"coords": r.coords[:, ::-1]}, "are not their cell"),
        (lambda r: {"slide_id": ""}, "'slide_id' must be"),
        (lambda r: {"width_px0": np.int64(305)}, "positive integer, found .*305.* of type int64"),
    ],
)
def test_each_problem_is_named(make_record, change, message):
    record = make_record()
    (problem,) = validate_record(dataclasses.replace(record, **change(record)))
    assert re.search(message, problem), problem


def cells(*pairs):
    return np.array(pairs, np.int32)


def test_cells_must_lie_on_the_slide_and_once(make_record):
    # The slide has 209 // 10 = 20 whole rows and 305 // 10 = 30 whole columns.
    assert validate_record(make_record(grid=cells((0, 0), (19, 29)))) == []
    assert (
        "1 cells lie outside the slide, first (row, col) (20, 0)"
        in validate_record(make_record(grid=cells((1, 1), (20, 0))))[0]
    )
    assert "first (row, col) (0, 30)" in validate_record(make_record(grid=cells((0, 30))))[0]
    assert (
        "2 cells are negative, first (row, col) (-1, 3)"
        in validate_record(make_record(grid=cells((1, 1), (-1, 3), (0, -2))))[0]
    )
    assert validate_record(make_record(grid=cells((1, 2), (2, 1), (1, 2), (1, 2)))) == ["2 cells occur more than once"]


def test_all_problems_come_together(make_record):
    record = make_record(
        grid=cells((1, 2), (1, 2), (-1, 0), (99, 0)), encoder=EncoderIdentity("a", "1", "b", 9, 5, 0.5, "float32")
    )
    record.features[0, 0] = np.nan
    problems = validate_record(record)
    for text in ("dimension is 9", "precision is float32", "NaN", "negative", "outside", "more than once"):
        assert any(text in problem for problem in problems), text


def test_row_major_order_is_pythons():
    grid = np.random.default_rng(1).integers(-5, 2**31 - 1, (97, 2)).astype(np.int32)
    expected = sorted(grid.tolist())
    ordered = grid[row_major_order(grid)]
    assert ordered.tolist() == expected
    assert is_row_major(ordered)
    assert not is_row_major(ordered[::-1])
    assert not is_row_major(cells((1, 2), (1, 2)))
    assert is_row_major(cells((1, 9), (2, 0)))
