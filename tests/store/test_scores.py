from __future__ import annotations

import os

import numpy as np
import pytest
import zarr

from span_sparse.errors import StoreError
from span_sparse.store import FeatureStore, validate_store
from span_sparse.store.scores import read_scores, write_scores

NAMES = ("attention", "prob_é")


@pytest.fixture
def store(tiny_cohort, monkeypatch) -> FeatureStore:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return FeatureStore(tiny_cohort.store)


def scores_of(store: FeatureStore, seed: int = 0) -> np.ndarray:
    num_patches = store.metadata("s03").num_patches
    return np.random.default_rng(seed).standard_normal((num_patches, 2)).astype(np.float32)


def test_scores_come_back_and_the_slide_is_as_it_was(store) -> None:
    before = {path: path.read_bytes() for path in sorted(store.path.rglob("*")) if path.is_file()}
    values = scores_of(store)
    write_scores(store, "s03", "run-1", NAMES, values, {"checkpoint": "best.ckpt"})
    found = read_scores(store, "s03", "run-1")
    assert (found.names, found.about) == (NAMES, {"checkpoint": "best.ckpt"})
    np.testing.assert_array_equal(found.values, values)
    np.testing.assert_array_equal(zarr.open_array(store.path / "s03" / "scores-run-1", mode="r")[...], values)
    assert {path: path.read_bytes() for path in before} == before
    assert validate_store(store.path) == []
    assert not list(store.path.glob("__tmp-*"))


def test_scores_are_replaced_and_go_with_the_slide(store) -> None:
    write_scores(store, "s03", "a", NAMES, scores_of(store), {})
    write_scores(store, "s03", "a", NAMES, scores_of(store, 1), {})
    np.testing.assert_array_equal(read_scores(store, "s03", "a").values, scores_of(store, 1))
    store.write(store.read("s03"), overwrite=True)
    with pytest.raises(StoreError, match="no scores 'a'; `span heatmap --into-store a`"):
        read_scores(store, "s03", "a")


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "x" * 65])
def test_names_that_are_no_names(store, name) -> None:
    with pytest.raises(StoreError, match="expected a name of up to 64 letters"):
        write_scores(store, "s03", name, NAMES, scores_of(store), {})


def test_scores_of_another_slide_are_refused(store) -> None:
    with pytest.raises(StoreError, match=r"expected float32 \[21, 2\], found float32 \[20, 2\]"):
        write_scores(store, "s03", "a", NAMES, scores_of(store)[1:], {})
    with pytest.raises(StoreError, match="found float64"):
        write_scores(store, "s03", "a", NAMES, scores_of(store).astype(np.float64), {})
    with pytest.raises(StoreError, match="does not exist"):
        write_scores(store, "s99", "a", NAMES, scores_of(store), {})
    assert not (store.path / "s99").exists()


def test_damage_and_links_are_refused(store, tmp_path) -> None:
    write_scores(store, "s03", "a", NAMES, scores_of(store), {})
    shard = store.path / "s03" / "scores-a" / "c" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StoreError, match="checksum"):
        read_scores(store, "s03", "a")
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="leads out of the store"):
        read_scores(store, "s03", "a")
