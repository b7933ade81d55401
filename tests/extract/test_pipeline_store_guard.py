from __future__ import annotations

import os

import pytest

from span_sparse.errors import StoreError
from span_sparse.extract.store_guard import clean_store
from span_sparse.store import FeatureStore, writer
from span_sparse.store.naming import TEMPORARY_PREFIX


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    store = tmp_path / "store"
    FeatureStore.create(store)
    leftover = store / f"{TEMPORARY_PREFIX}abc"
    leftover.mkdir()
    with clean_store(store):
        assert not leftover.exists()
        leftover.mkdir()  # now a slide under construction
        with clean_store(store):
            assert leftover.exists()
        assert leftover.exists()
    with clean_store(store):
        assert not leftover.exists()


def test_a_root_document_that_another_run_takes_for_a_leftover(tmp_path, monkeypatch):
    """The other run makes the store and cleans it between the writing of our root document and its renaming."""
    path = tmp_path / "store"
    write = writer._write_group_document
    others = []

    def interrupted(document, attributes):
        write(document, attributes)
        if not others:
            others.append(document)
            with clean_store(path):
                assert not document.exists()

    monkeypatch.setattr(writer, "_write_group_document", interrupted)
    with clean_store(path):
        assert FeatureStore(path).slide_ids == ()
    assert len(others) == 1


def test_beside_hosts_whose_locks_are_unseen_young_leftovers_stay(tmp_path):
    FeatureStore.create(tmp_path / "store")
    leftover = tmp_path / "store" / f"{TEMPORARY_PREFIX}abc"
    leftover.mkdir()
    with clean_store(tmp_path / "store", several_hosts=True):
        assert leftover.exists()
    os.utime(leftover, (1, 1))
    with clean_store(tmp_path / "store", several_hosts=True):
        assert not leftover.exists()


def test_creates_a_store_and_refuses_another_folder(tmp_path):
    with clean_store(tmp_path / "deep" / "store"):
        assert FeatureStore(tmp_path / "deep" / "store").slide_ids == ()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").touch()
    with pytest.raises(StoreError, match=r"thesis\.doc"), clean_store(tmp_path / "mine"):
        pass
