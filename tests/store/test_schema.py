from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from span_sparse.errors import StoreError
from span_sparse.store.schema import parse_attributes, validate_attributes


@pytest.fixture
def attributes(make_record) -> dict[str, Any]:
    return make_record().metadata().as_attributes()


def test_attributes_survive_json(make_record, attributes):
    assert parse_attributes(json.loads(json.dumps(attributes)), "here") == make_record().metadata()


def test_keys_on_disk_are_pinned(attributes):
    assert attributes == {
        "format": "span-sparse-features",
        "version": 2,
        "slide_id": "slide-1",
        "case_id": "case-1",
        "num_patches": 7,
        "lattice": {
            "patch_size_px": 5,
            "target_mpp": 0.5,
            "slide_mpp": 0.25,
            "step_px0": 10,
            "origin_px0": [0, 0],
            "overlap_px0": 0,
        },
        "mpp_source": "cohort",
        "encoder": {
            "name": "stain-texture",
            "revision": "1",
            "readout": "descriptor",
            "dimension": 5,
            "input_size_px": 5,
            "mpp": 0.5,
            "precision": "float16",
        },
        "slide_checksum": "sha256:00ff",
        "width_px0": 305,
        "height_px0": 209,
        "provenance": {"made by": "a test", "numbers": [1, 2.5, None]},
        "optional_arrays": [],
        "ratio_classes": [],
        "complete": True,
    }


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "other", "must be 'span-sparse-features', found 'other'"),
        ("version", 3, "format version 3 is not known, this program reads versions 1 and 2"),
        ("version", True, "format version True is not known"),
        ("complete", 1, "not marked complete"),
        ("complete", None, "not marked complete"),
        ("slide_id", "", "'slide_id' must be a non-empty text"),
        ("slide_checksum", None, "'slide_checksum' must be a non-empty text"),
        ("case_id", 7, "'case_id' must be a non-empty text or null"),
        ("num_patches", 0, "'num_patches' must be a positive integer, found 0"),
        ("num_patches", True, "'num_patches' must be a positive integer, found True"),
        ("width_px0", 1.5, "'width_px0' must be a positive integer"),
        ("encoder", [], "'encoder' must be an object"),
        ("encoder.dimension", "5", "encoder 'dimension' must be a positive integer, found '5'"),
        ("encoder.precision", "int8", "precision must be one of float16, float32"),
        ("encoder.mpp", float("nan"), "encoder 'mpp' must be a positive number"),
        ("lattice.step_px0", -1, "lattice 'step_px0' must be a positive integer"),
        ("lattice.slide_mpp", 0, "lattice 'slide_mpp' must be a positive number"),
        ("lattice.origin_px0", [0, 10], "lattice 'origin_px0' must be two integers in [0, 10), found [0, 10]"),
        ("lattice.origin_px0", [0, -1], "must be two integers in [0, 10)"),
        ("lattice.origin_px0", [0.0, 1], "must be two integers in [0, 10)"),
        ("lattice.origin_px0", None, "must be two integers in [0, 10)"),
        ("lattice.overlap_px0", -10, "lattice 'overlap_px0' must be an integer above -10, found -10"),
        ("lattice.overlap_px0", None, "must be an integer above -10"),
        ("optional_arrays", ["../features"], "'optional_arrays' must list some of ratios, failed_grid"),
        ("optional_arrays", ["source_rows", "source_rows"], "'optional_arrays' must list some of"),
        ("optional_arrays", [["ratios"]], "'optional_arrays' must list some of"),
        ("optional_arrays", ["ratios"], "'ratio_classes' must name each class of the array 'ratios' once"),
        ("ratio_classes", ["tumor"], "and be empty without that array, found ['tumor']"),
        ("ratio_classes", "tumor", "'ratio_classes' must name each class"),
        ("provenance", {"a": float("nan")}, "plain JSON"),
        ("provenance", {"a": (1, 2)}, "plain JSON"),
        ("provenance", {1: 2}, "plain JSON"),
        ("provenance", {"a": {1, 2}}, "plain JSON"),
        ("provenance", None, "plain JSON"),
    ],
)
def test_each_wrong_attribute_is_named(attributes, path, value, message):
    broken = copy.deepcopy(attributes)
    *parents, last = path.split(".")
    target = broken
    for parent in parents:
        target = target[parent]
    target[last] = value
    problems = validate_attributes(broken)
    assert len(problems) == 1
    assert message in problems[0]


def test_every_missing_key_is_a_problem_and_all_are_reported(attributes):
    for key in attributes:
        assert validate_attributes({name: value for name, value in attributes.items() if name != key}), key
    with pytest.raises(StoreError, match=r"^here: .*complete.*slide_id.*num_patches.*encoder.*lattice"):
        parse_attributes({"format": "span-sparse-features", "version": 1}, "here")
    assert validate_attributes([]) == ["attributes must be a JSON object, found list"]


def test_unknown_attributes_are_ignored(attributes, make_record):
    assert parse_attributes(attributes | {"thumbnail": "x"}, "here") == make_record().metadata()
