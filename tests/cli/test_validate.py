from __future__ import annotations

import json
import re

import numpy as np
import pytest

from span_sparse.cli.validate import build_parser, run
from span_sparse.errors import CohortError, ConfigError, StoreError
from span_sparse.grid import LatticeSpec
from span_sparse.store import FeatureStore, SlideRecord
from span_sparse.types import EncoderIdentity


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    store = FeatureStore.create(tmp_path / "store")
    lattice = LatticeSpec(224, 0.5).on_slide(0.25)
    for slide_id, num_patches in (("a/1", 3), ("b", 4)):
        grid = np.stack(np.divmod(np.arange(num_patches), 2), axis=1).astype(np.int32)
        record = SlideRecord(
            slide_id=slide_id,
            case_id=f"case of {slide_id}",
            features=np.ones((num_patches, 6), np.float16),
            grid=grid,
            coords=lattice.to_px0(grid),
            lattice=lattice,
            mpp_source="openslide",
            encoder=EncoderIdentity("stain-texture", "1", "descriptor", 6, 224, 0.5, "float16"),
            slide_checksum=f"sha256:{num_patches}",
            width_px0=4480,
            height_px0=4480,
            provenance={},
        )
        store.write(record)
    return store


def validate(*words: object) -> int:
    return run(build_parser().parse_args([str(word) for word in words]))


@pytest.fixture
def printed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    return lambda: re.sub(r"\s+", " ", capsys.readouterr().out)


def test_a_good_store(store, printed):
    assert validate(store.path) == 0
    assert printed() == ("ok: 2 slides, 7 patches, encoder stain-texture 1 (6 × float16), 224 px at 0.5 µm/px ")


def test_problems_are_listed_by_slide(store, printed):
    shard = store.path / "b" / "features" / "c" / "0" / "0"
    shard.write_bytes(b"\1" + shard.read_bytes()[1:])
    (store.path / "__tmp-0").mkdir()
    assert validate(store.path) == 1
    text = printed()
    assert "2 problems in" in text
    assert re.search(r"b │ .*b/features/c/0/0: checksum of block 0 differs", text)
    assert "(store) │ __tmp-0 was left by a killed writer" in text


def test_cohort_and_store_are_compared_both_ways(store, printed, tmp_path):
    table = tmp_path / "cohort.csv"
    table.write_text("slide_id\na/1\n[red]c\n")
    assert validate(store.path, "--cohort", table) == 1
    text = printed()
    assert re.search(r"\[red\]c │ is in .*cohort\.csv but not in the store", text)
    assert re.search(r" b │ is in the store but not in .*cohort\.csv", text)
    assert "2 problems" in text
    table.write_text("slide_id\nb\na/1\n")
    assert validate(store.path, "--cohort", table) == 0
    with pytest.raises(CohortError, match=r"nope\.csv cannot be read"):
        validate(store.path, "--cohort", tmp_path / "nope.csv")


def test_the_table_contradicts_the_store(store, printed, tmp_path):
    table = tmp_path / "cohort.csv"
    table.write_text("slide_id,case_id,mpp\na/1,case of a/1,0.2505\nb,case 7,2.5\nc,,\n")
    process_list = tmp_path / "store.process_list.csv"
    process_list.write_text(
        "slide_id,status,error,seconds,num_patches,failed_patches\nc,failed,no tissue found,1,0,0\n"
    )
    output = tmp_path / "out" / "findings.json"
    assert validate(store.path, "--cohort", table, "--json", output) == 1
    document = json.loads(output.read_text())
    assert (document["num_slides"], document["num_patches"], document["remarks"]) == (2, 7, [])
    found = [(one["slide_id"], one["message"]) for one in document["problems"]]
    assert [slide_id for slide_id, _ in found] == ["c", "b", "b"]
    assert found[0][1].endswith("not in the store; its extraction failed: no tissue found")
    assert "was made at 0.25 µm/px (from openslide)" in found[1][1]
    assert "says 2.5; correct the table" in found[1][1]
    assert "case 'case of b' in the store and to 'case 7'" in found[2][1]
    assert "3 problems" in printed()


def test_workers_find_the_same(store, printed):
    assert validate(store.path, "--workers", 2) == 0
    assert "ok: 2 slides, 7 patches" in printed()
    with pytest.raises(ConfigError, match="--workers must be at least 0"):
        validate(store.path, "--workers", -1)


def test_fix_deletes_old_leftovers(store, printed, monkeypatch):
    (store.path / "__tmp-0").mkdir()
    (store.path / "__tmp-0" / "zarr.json").write_text("{}")
    assert validate(store.path, "--fix") == 1
    assert "deleted 0 leftovers" in printed()
    import time

    later = time.time() + 3700
    monkeypatch.setattr(time, "time", lambda: later)
    assert validate(store.path, "--fix") == 0
    assert "deleted 1 leftovers" in printed()
    assert not (store.path / "__tmp-0").exists()


def test_no_store_and_an_empty_one(tmp_path, printed):
    with pytest.raises(StoreError, match="no such folder"):
        validate(tmp_path / "nope")
    FeatureStore.create(tmp_path / "empty")
    assert validate(tmp_path / "empty") == 1
    assert "holds no slides" in printed()
