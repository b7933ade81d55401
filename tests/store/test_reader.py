from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from span_sparse.errors import StoreError
from span_sparse.grid import LatticeSpec
from span_sparse.store import FeatureStore, reader
from span_sparse.store.naming import group_name
from span_sparse.store.shard import read_array
from span_sparse.types import EncoderIdentity


def edit_attributes(group, **changes):
    document = json.loads((group / "zarr.json").read_text())
    document["attributes"] |= changes
    (group / "zarr.json").write_text(json.dumps(document))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    slide_id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=18),
    case_id=st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9),
    num_patches=st.integers(1, 50),
    precision=st.sampled_from(["float16", "float32"]),
    seed=st.integers(0, 99),
    provenance=st.dictionaries(st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.text(max_size=5)),
)
def test_round_trip(tmp_path, make_record, assert_same, slide_id, case_id, num_patches, precision, seed, provenance):
    store = FeatureStore.create(tmp_path / "store")
    record = make_record(slide_id, num_patches, case_id=case_id, precision=precision, seed=seed, provenance=provenance)
    store.write(record, overwrite=True)
    assert_same(record, store.read(slide_id))
    assert store.metadata(slide_id) == record.metadata()
    assert store.has(slide_id)
    assert slide_id in store.slide_ids


def test_slides_are_listed_sorted_and_only_complete_ones(store, make_record):
    for slide_id in ("b", "A/2", "a", ".hidden", "é"):
        store.write(make_record(slide_id))
    (store.path / "__tmp-123").mkdir()
    (store.path / "README.txt").write_text("x")
    (store.path / "empty").mkdir()
    edit_attributes(store.path / "b", complete=False)
    assert store.slide_ids == (".hidden", "A/2", "a", "é")
    assert [store.has(name) for name in ("a", "b", "empty", "c", "README.txt")] == [True, False, False, False, False]


def test_plain_zarr_reads_the_store(store, make_record):
    record = make_record("x/y", num_patches=11)
    store.write(record)
    group = zarr.open_group(store.path, mode="r")
    assert dict(group.attrs) == {"format": "span-sparse-features", "version": 2}
    slide = group["x=2fy"]
    found = store.read("x/y")
    for name in ("features", "grid", "coords"):
        np.testing.assert_array_equal(slide[name][...], getattr(found, name), strict=True)
    assert slide.attrs["slide_id"] == "x/y"


def test_write_refuses_what_is_there_and_overwrites_on_request(store, make_record, assert_same):
    store.write(make_record())
    with pytest.raises(StoreError, match=r"slide 'slide-1' is already in .*pass overwrite"):
        store.write(make_record(seed=1))
    store.write(make_record(seed=2, num_patches=3), overwrite=True)
    assert_same(make_record(seed=2, num_patches=3), store.read("slide-1"))


def test_an_incomplete_slide_is_replaced_without_asking(store, make_record):
    store.write(make_record())
    (store.path / "slide-1" / "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"slide 'slide-1' .* is not complete: zarr.json is missing"):
        store.read("slide-1")
    store.write(make_record())
    assert store.read("slide-1").grid.shape == (7, 2)


def test_write_names_all_problems_and_writes_nothing(store, make_record):
    record = make_record()
    record.features[:2] = np.nan
    broken = dataclasses.replace(record, coords=record.coords + 1)
    with pytest.raises(
        StoreError, match=r"slide 'slide-1' cannot be written to .*2 of 7.*NaN.*7 patches are not their"
    ):
        store.write(broken)
    assert [entry.name for entry in store.path.iterdir()] == ["zarr.json"]


def test_missing_slide(store):
    with pytest.raises(StoreError, match=r"slide 'nope' in .* does not exist; run `span extract`"):
        store.read("nope")
    assert not store.has("nope")


def test_opening_what_is_no_store_says_what_was_found(tmp_path):
    with pytest.raises(StoreError, match="no such folder"):
        FeatureStore(tmp_path / "nope")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="it is a file"):
        FeatureStore(tmp_path / "file")
    with pytest.raises(StoreError, match="cannot be made"):
        FeatureStore.create(tmp_path / "file")
    with pytest.raises(StoreError, match=r"zarr.json is missing, it holds file"):
        FeatureStore(tmp_path)
    with pytest.raises(StoreError, match=r"not empty \(file\) and not a store"):
        FeatureStore.create(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="the folder is empty"):
        FeatureStore(tmp_path / "empty")
    zarr.create_group(tmp_path / "other", attributes={"ome": {}})
    with pytest.raises(StoreError, match="'format' must be 'span-sparse-features', found None"):
        FeatureStore(tmp_path / "other")
    with pytest.raises(StoreError, match="'format' must be"):
        FeatureStore.create(tmp_path / "other")
    (tmp_path / "empty" / "zarr.json").write_text("[]")
    with pytest.raises(StoreError, match="not the root group"):
        FeatureStore(tmp_path / "empty")


def test_unknown_versions_are_refused(store, make_record):
    store.write(make_record())
    edit_attributes(store.path / "slide-1", version=3)
    with pytest.raises(StoreError, match=r"slide 'slide-1'.*format version 3 is not known"):
        store.read("slide-1")
    edit_attributes(store.path, version=99)
    with pytest.raises(StoreError, match=r"format version 99 is not known, this program reads versions 1 and 2"):
        FeatureStore(store.path)


def test_groups_without_the_mark_are_refused(store, make_record):
    store.write(make_record())
    document = json.loads((store.path / "slide-1" / "zarr.json").read_text())
    del document["attributes"]["complete"]
    (store.path / "slide-1" / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreError, match="not marked complete"):
        store.metadata("slide-1")
    document["node_type"] = "array"
    (store.path / "slide-1" / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreError, match="not a Zarr v3 group"):
        store.metadata("slide-1")


def test_renamed_folders_are_refused(store, make_record):
    store.write(make_record("a"))
    (store.path / "a").rename(store.path / "b")
    with pytest.raises(StoreError, match=r"slide 'b' .* says it is slide 'a'"):
        store.read("b")


@pytest.mark.parametrize("inner", ["", "zarr.json", "features", "features/c", "features/c/0/0", "grid/zarr.json"])
def test_links_out_of_the_store_are_refused(store, make_record, tmp_path, inner):
    store.write(make_record())
    inside = store.path / "slide-1" / inner
    outside = tmp_path / "outside"
    shutil.move(inside, outside)
    inside.symlink_to(outside)
    with pytest.raises(StoreError, match=r"leads out of the store through a link, to .*outside.*refused"):
        store.read("slide-1")
    if inner == "":
        assert not store.has("slide-1")
        with pytest.raises(StoreError, match="symbolic link"):
            store.write(make_record())
        assert (outside / "features").exists()


def test_links_in_a_circle_and_pipes_are_refused(store, make_record):
    store.write(make_record("a"))
    shard = store.path / "a" / "grid" / "c" / "0" / "0"
    shard.unlink()
    shard.symlink_to(shard)
    with pytest.raises(StoreError, match=r"grid/c/0/0 cannot be (followed|read)"):
        store.read("a")
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(StoreError, match="not a regular file"):
        store.read("a")


def test_a_store_reached_through_a_link_is_fine(store, make_record, tmp_path):
    store.write(make_record())
    (tmp_path / "link").symlink_to(store.path)
    assert FeatureStore(tmp_path / "link").read("slide-1").grid.shape == (7, 2)


def test_features_that_contradict_the_attributes_are_refused(store, make_record):
    store.write(make_record())
    for changes in ({"num_patches": 8}, {"encoder": make_record(channels=6).encoder.as_dict()}):
        store.write(make_record(), overwrite=True)
        edit_attributes(store.path / "slide-1", **changes)
        with pytest.raises(StoreError, match=r"features are \[7, 5\], its attributes say"):
            store.read("slide-1")


def test_arrays_of_different_length_are_refused(store, make_record):
    store.write(make_record())
    store.write(make_record("longer", num_patches=8))
    shutil.rmtree(store.path / "slide-1" / "grid")
    shutil.move(store.path / "longer" / "grid", store.path / "slide-1" / "grid")
    with pytest.raises(StoreError, match=r"one row per patch, found .*'grid': 8"):
        store.read("slide-1")


def test_damage_is_found_at_the_first_read_and_after_a_replacement(store, make_record):
    store.write(make_record())
    shard = store.path / "slide-1" / "features" / "c" / "0" / "0"
    assert store.read("slide-1") is not None
    data = bytearray(shard.read_bytes())
    data[0] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match="checksum of block 0 differs"):
        FeatureStore(store.path).read("slide-1")
    store.write(make_record(), overwrite=True)
    shard.write_bytes(data)
    with pytest.raises(StoreError, match="checksum of block 0 differs"):
        store.read("slide-1")


def test_a_slide_replaced_in_the_middle_of_a_read_is_read_again(store, make_record, assert_same, monkeypatch):
    """Old features with the new grid would be the worst of all results: both have seven rows."""
    old, new = make_record(seed=1), make_record(seed=2)
    store.write(old)
    calls: list[str] = []

    def replace_after_features(folder, dtypes, *, verify):
        array = read_array(folder, dtypes, verify=verify)
        calls.append(folder.name)
        if len(calls) == 1:
            FeatureStore(store.path).write(new, overwrite=True)
        return array

    monkeypatch.setattr(reader, "read_array", replace_after_features)
    assert_same(new, store.read("slide-1"))
    assert calls == ["features", "grid", "coords"] * 2


def test_common_identity(store, make_record):
    with pytest.raises(StoreError, match="holds no slides"):
        store.common_identity()
    store.write(make_record("a"))
    store.write(make_record("b", lattice=LatticeSpec(5, 0.5).on_slide(0.249)))  # another scanner is no difference
    encoder = EncoderIdentity("stain-texture", "1", "descriptor", 5, 5, 0.5, "float16")
    assert store.common_identity() == (encoder, LatticeSpec(5, 0.5))
    changed = dataclasses.replace(encoder, revision="2")
    store.write(make_record("c", encoder=changed, lattice=LatticeSpec(10, 0.25).on_slide(0.25)))
    assert store.common_identity(["b", "a"]) == (encoder, LatticeSpec(5, 0.5))
    with pytest.raises(
        StoreError,
        match=r"slides 'a' and 'c' .*encoder revision: '1' != '2'; lattice patch_size_px: 5 != 10; lattice target",
    ):
        store.common_identity()


def test_open_stores_travel_to_workers(store, make_record):
    store.write(make_record())
    assert pickle.loads(pickle.dumps(store)).read("slide-1").grid.shape == (7, 2)


def test_reading_starts_no_thread(store, make_record):
    """Data-loading workers are forked: an event loop's thread would not survive that."""
    store.write(make_record())
    program = (
        "import sys, threading; from pathlib import Path; from span_sparse.store import FeatureStore\n"
        "before = threading.active_count(); FeatureStore(Path(sys.argv[1])).read('slide-1')\n"
        "assert threading.active_count() == before; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(store.path)], check=True)


def test_folder_names_are_looked_up_by_the_encoded_id(store, make_record):
    for slide_id in ("../outside", "/absolute", "a/../b"):
        store.write(make_record(slide_id))
        assert (store.path / group_name(slide_id)).parent == store.path
        assert (store.path / group_name(slide_id)).is_dir()
    assert not (store.path.parent / "outside").exists()
