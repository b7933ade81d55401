"""The checksum of a slide's content changes with the arrays that models read, and with nothing else."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

from span_sparse.errors import StoreError
from span_sparse.store import FeatureStore


@pytest.fixture
def store(tiny_cohort, monkeypatch) -> FeatureStore:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return FeatureStore(tiny_cohort.store)


def test_it_follows_the_arrays_and_not_the_provenance(store) -> None:
    record = store.read("s03")
    before = store.content_checksum("s03")
    assert before != store.content_checksum("s04")
    store.write(dataclasses.replace(record, provenance={"when": "later"}), overwrite=True)
    assert store.content_checksum("s03") == before
    features = record.features.copy()
    features[-1, -1] += 1e-3
    ratios = np.zeros((len(features), 1), np.float32)
    for changes in (
        {"features": features},
        {"ratios": ratios, "ratio_classes": ("tumor",)},
        {"ratios": ratios, "ratio_classes": ("stroma",)},
    ):
        store.write(dataclasses.replace(record, **changes), overwrite=True)
        found = store.content_checksum("s03")
        assert found != before
        before = found


def test_a_damaged_slide_has_none(store) -> None:
    shard = store.path / "s03" / "features" / "c" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(StoreError, match="truncated"):
        store.content_checksum("s03")
    with pytest.raises(StoreError, match="does not exist"):
        store.content_checksum("absent")
