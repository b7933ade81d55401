from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import zarr

from span_sparse.store import Problem, validate_store
from span_sparse.types import EncoderIdentity


def messages(store):
    return [(problem.slide_id, problem.message) for problem in validate_store(store.path)]


def replace_array(folder, array):
    """Write another array of the format in its place, as a careless program would."""
    shutil.rmtree(folder)
    target = zarr.create_array(
        folder,
        shape=array.shape,
        dtype=array.dtype,
        chunks=array.shape,
        shards=array.shape,
        filters=None,
        compressors=zarr.codecs.Crc32cCodec(),
        config={"write_empty_chunks": True},
    )
    target[...] = array


def test_a_good_store_has_no_problems(store, make_record):
    assert validate_store(store.path) == []
    for slide_id in ("a", "B/c"):
        store.write(make_record(slide_id))
    assert validate_store(store.path) == []


def test_no_store_is_a_problem_and_not_an_exception(tmp_path):
    (problem,) = validate_store(tmp_path / "nope")
    assert problem.slide_id is None
    assert "no such folder" in problem.message


def test_all_problems_of_all_slides_are_found(store, make_record):
    good = make_record("good")
    store.write(good)
    for slide_id in ("corrupt", "incomplete", "missing-grid", "truncated"):
        store.write(make_record(slide_id))
    path = store.path
    (path / "__tmp-1").mkdir()
    (path / "notes.TXT").write_text("x")
    (path / "incomplete" / "zarr.json").unlink()
    shutil.rmtree(path / "missing-grid" / "grid")
    shard = path / "truncated" / "features" / "c" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-9])
    shard = path / "corrupt" / "features" / "c" / "0" / "0"
    shard.write_bytes(b"\1" + shard.read_bytes()[1:])
    store.write(make_record("zother", encoder=EncoderIdentity("uni_v1", "1", "descriptor", 5, 5, 0.5, "float16")))
    found = messages(store)
    expected = [
        (None, "__tmp-1 was left by a killed writer"),
        ("corrupt", "checksum of block 0 differs"),
        ("incomplete", "zarr.json is missing"),
        ("missing-grid", "grid/zarr.json cannot be read"),
        (None, "'notes.TXT' is not the name of a slide group"),
        ("truncated", "the file is truncated"),
        ("zother", "differs from slide 'corrupt': encoder name: 'stain-texture' != 'uni_v1'"),
    ]
    assert [slide_id for slide_id, _ in found] == [slide_id for slide_id, _ in expected]
    for (_, message), (_, text) in zip(found, expected, strict=True):
        assert text in message
    store_read = store.read("good")  # a bad neighbour does not matter
    assert store_read.grid.shape == good.grid.shape


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "features",
            lambda a: np.where(np.arange(len(a))[:, None] < 3, np.float16("nan"), a),
            "3 of 7 patches hold NaN",
        ),
        ("features", lambda a: a.astype(np.float32), "dtype must be float16, found 'float32'"),
        ("features", lambda a: a[:, :4], r"features are [7, 4], its attributes say [7, 5]"),
        ("features", lambda a: a[:6], "one row per patch"),
        ("grid", lambda a: a.astype(np.int64), "dtype must be int32"),
        ("grid", lambda a: np.concatenate([a, a], axis=1), "grid must be int32 [patches, 2], found int32 [7, 4]"),
        ("coords", lambda a: a + 5, "coords of 7 patches are not their cell × 10 px"),
    ],
)
def test_each_wrong_array(store, make_record, name, change, message):
    record = make_record()
    store.write(record)
    array = getattr(store.read("slide-1"), name)
    replace_array(store.path / "slide-1" / name, change(array))
    (found,) = messages(store)
    assert found[0] == "slide-1"
    assert message in found[1]


def test_wrong_cells(store, make_record):
    store.write(make_record(grid=np.array([[0, 1], [2, 3], [4, 5]], np.int32)))
    grid = np.array([[4, 5], [-1, 3], [4, 5]], np.int32)
    replace_array(store.path / "slide-1" / "grid", grid)
    replace_array(store.path / "slide-1" / "coords", grid[:, ::-1].astype(np.int64) * 10)
    texts = [message for _, message in messages(store)]
    assert texts[0].startswith("1 cells are negative")
    assert texts[1] == "1 cells occur more than once"
    assert "not in row-major order" in texts[2]
    assert len(texts) == 3


def test_links_and_foreign_attributes(store, make_record, tmp_path):
    store.write(make_record("a"))
    shutil.move(store.path / "a", tmp_path / "elsewhere")
    (store.path / "a").symlink_to(tmp_path / "elsewhere")
    store.write(make_record("b"))
    document = json.loads((store.path / "b" / "zarr.json").read_text())
    document["attributes"]["lattice"]["step_px0"] = "10"
    del document["attributes"]["encoder"]
    (store.path / "b" / "zarr.json").write_text(json.dumps(document))
    (_, first), (_, second) = messages(store)
    assert "leads out of the store" in first
    assert "step_px0" in second
    assert "'encoder' must be an object" in second


def test_problems_are_plain_values():
    assert Problem(None, "x") == Problem(None, "x")
