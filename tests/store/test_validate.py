from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import zarr

from span_sparse.grid import Lattice, LatticeSpec
from span_sparse.store import Problem, validate_store
from span_sparse.store.validate import examine_store
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
        (None, "'notes.TXT' is not the name of a slide group"),
        ("corrupt", "checksum of block 0 differs"),
        ("incomplete", "zarr.json is missing"),
        ("missing-grid", "grid/zarr.json cannot be read"),
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
    assert texts[1].startswith("1 cells occur more than once; ")
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


def on_slide(make_record, slide_id, slide_mpp, width_px0=40_000, **changes):
    """Patches of 112 µm on a slide of so many µm per pixel."""
    lattice = LatticeSpec(224, 0.5).on_slide(slide_mpp)
    grid = np.array([[0, 0], [0, 1], [1, 0]], np.int32)
    encoder = EncoderIdentity("stain-texture", "1", "descriptor", 5, 224, 0.5, "float16")
    values = {"lattice": lattice, "grid": grid, "coords": lattice.to_px0(grid), "encoder": encoder}
    size = {"width_px0": width_px0, "height_px0": 25_000, "slide_checksum": f"sha256:{slide_id}"}
    return make_record(slide_id, **values | size | changes)


def test_resolutions_that_nobody_can_have_meant(store, make_record):
    for number in range(4):
        store.write(on_slide(make_record, f"a{number}", 0.25))
    store.write(on_slide(make_record, "overview", 1.25))  # 8x beside 40x: meant
    assert messages(store) == []
    store.write(on_slide(make_record, "ten-times", 2.5))
    store.write(on_slide(make_record, "dpi", 0.01))
    store.write(on_slide(make_record, "huge", 0.25, width_px0=500_000))
    step = Lattice(LatticeSpec(224, 0.5), 0.25, 45)
    grid = np.array([[0, 0], [0, 1], [1, 0]], np.int32)
    store.write(on_slide(make_record, "unit", 0.25, lattice=step, coords=step.to_px0(grid)))
    found = messages(store)
    assert [slide_id for slide_id, _ in found] == ["dpi", "dpi", "huge", "ten-times", "unit"]
    for (_, message), text in zip(
        found,
        [
            "0.01 µm/px (from cohort) is implausible, expected 0.05 to 50",
            "beside a median of 0.25 in this store: a factor of 25",
            "500000 × 25000 px at 0.25 µm/px are 125 mm, expected at most 110",
            "2.5 µm/px (from cohort) beside a median of 0.25 in this store: a factor of 10",
            "patches of 45 px at 0.25 µm/px are 11.25 µm wide, the lattice asks for 112",
        ],
        strict=True,
    ):
        assert text in message
        assert "column `mpp` of the cohort table" in message


@pytest.mark.parametrize(
    ("change", "explanation"),
    [
        (lambda a: a[:, ::-1], "they are (y, x), expected (x, y)"),
        (lambda a: a + 224, "they are the patches' centres"),
        (lambda a: a // 4, "they are in µm"),
        (lambda a: (a + 224) // 4, "they are centres in µm"),
        (lambda a: a // 2, "they are pixels at the target resolution"),
        (lambda a: a // 448, "they are cells (col, row)"),
        (lambda a: a[:, ::-1] // 448, "they are cells (row, col)"),
        (lambda a: a + np.array([7, -3]), "all are shifted by (x, y) (7, -3) px"),
        (lambda a: a + np.arange(3)[:, None] * 7, ""),
    ],
)
def test_mixed_up_coordinates_are_explained(store, make_record, change, explanation):
    grid = np.array([[2, 1], [3, 5], [6, 0]], np.int32)
    lattice = LatticeSpec(224, 0.5).on_slide(0.25)
    store.write(on_slide(make_record, "a", 0.25, grid=grid, coords=lattice.to_px0(grid)))
    replace_array(store.path / "a" / "coords", np.ascontiguousarray(change(lattice.to_px0(grid))))
    (message,) = [text for _, text in messages(store)]
    assert message.startswith("coords of 3 patches") or not explanation
    assert f"({explanation}" in message if explanation else "(they" not in message
    assert message.endswith("; extract or import this slide again")


def test_other_annotation_classes_are_a_problem_and_missing_ones_a_remark(store, make_record):
    def ratios(*classes):
        return {"ratios": np.zeros((7, len(classes)), np.float32), "ratio_classes": classes}

    store.write(make_record("a", slide_checksum="x:1", **ratios("tumor")))
    store.write(make_record("b", slide_checksum="x:2"))
    examination = examine_store(store.path)
    assert examination.problems == ()
    assert "1 of 2 slides have no annotations, first 'b'" in examination.remarks[0].message
    store.write(make_record("c", slide_checksum="x:3", **ratios("stroma", "tumor")))
    ((slide_id, message),) = messages(store)
    assert slide_id == "c"
    assert "['stroma', 'tumor'], slide 'a' has ['tumor']; run `span annotate --overwrite`" in message


def test_failed_cells_and_repeated_files_are_remarks(store, make_record):
    grid = np.array([[0, 1], [0, 2]], np.int32)
    store.write(make_record("a", grid=grid, failed_grid=np.array([[3, 3], [4, 4], [5, 5]], np.int32)))
    store.write(make_record("b"))
    examination = examine_store(store.path)
    assert examination.problems == ()
    assert (examination.num_slides, examination.num_patches) == (2, 9)
    first, second = examination.remarks
    assert (first.slide_id, second.slide_id) == ("a", "b")
    assert "3 of 5 cells with tissue could not be read" in first.message
    assert "same file as slide 'a'" in second.message


def test_several_processes_find_the_same(store, make_record):
    for slide_id in "abc":
        store.write(make_record(slide_id))
    shard = store.path / "b" / "features" / "c" / "0" / "0"
    shard.write_bytes(b"\1" + shard.read_bytes()[1:])
    told = []
    assert examine_store(store.path, 2, lambda *done: told.append(done)) == examine_store(store.path)
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert "checksum" in examine_store(store.path).problems[0].message


def test_problems_are_plain_values():
    assert Problem(None, "x") == Problem(None, "x")
