"""Slides copied to the node's disk: read as they are in the store, once, also while others do the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from span_sparse.errors import StoreError
from span_sparse.store import FeatureStore, LocallyCopiedStore, validate_store
from span_sparse.store.naming import group_name


@pytest.fixture
def cached(store, make_record, tmp_path) -> LocallyCopiedStore:
    for number in range(3):
        store.write(make_record(f"Slide/{number}", seed=number))
    return LocallyCopiedStore(store.path, tmp_path / "fast")


def features_read(monkeypatch) -> Callable[[], list[str]]:
    """Folders from which features are read from now on."""
    from span_sparse.store import reader

    seen: list[str] = []
    original = reader.read_array

    def noted(folder: Path, *words, **settings):
        seen.extend([str(folder)] if folder.name == "features" else [])
        return original(folder, *words, **settings)

    monkeypatch.setattr(reader, "read_array", noted)
    return lambda: [seen.pop() for _ in range(len(seen))]


def test_the_first_reading_copies_and_later_ones_leave_the_store_alone(
    cached, store, make_record, assert_same, monkeypatch
):
    places = features_read(monkeypatch)
    for attempt in range(2):
        for number in range(3):
            found = cached.read(f"Slide/{number}")
            assert_same(make_record(f"Slide/{number}", seed=number), found)
        where = {Path(place).is_relative_to(store.path) for place in places()}
        assert where == {attempt == 0}
    assert validate_store(cached.copies.path) == []
    assert cached.copies.slide_ids == store.slide_ids


def test_a_slide_that_was_extracted_anew_is_copied_anew(cached, store, make_record, assert_same):
    cached.read("Slide/0")
    changed = make_record("Slide/0", seed=9)
    assert changed.metadata() == store.metadata("Slide/0")  # nothing but the features tells
    store.write(changed, overwrite=True)
    assert_same(changed, cached.read("Slide/0"))
    assert cached.copies.read("Slide/0").features.tolist() == cached.read("Slide/0").features.tolist()


def test_a_damaged_copy_is_replaced(cached, make_record, assert_same):
    cached.read("Slide/1")
    shard = cached.copies.path / group_name("Slide/1") / "features" / "c" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[3] ^= 1
    shard.write_bytes(content)
    again = LocallyCopiedStore(cached.path, cached.cache_dir)  # another process: it compares checksums once
    assert_same(make_record("Slide/1", seed=1), again.read("Slide/1"))
    assert shard.read_bytes() != content
    (shard.parents[3] / "zarr.json").write_text("{")
    assert_same(make_record("Slide/1", seed=1), again.read("Slide/1"))
    assert again.copies.has("Slide/1")


def test_two_stores_share_a_disk_without_mixing(cached, make_record, tmp_path):
    other = FeatureStore.create(tmp_path / "other")
    other.write(make_record("Slide/0", seed=7))
    theirs = LocallyCopiedStore(other.path, cached.cache_dir).read("Slide/0")
    assert theirs.features.tolist() != cached.read("Slide/0").features.tolist()
    assert len(list(cached.cache_dir.iterdir())) == 2


def test_a_disk_that_is_too_small_is_refused_before_training(cached, monkeypatch):
    usage = shutil.disk_usage(cached.cache_dir)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * 40_000))
    with pytest.raises(StoreError, match=r"fast has 0\.0 GiB free, 3 slides of .* need 0\.0 GiB; name a larger disk"):
        cached.require_room(cached.slide_ids)
    cached.read("Slide/0")
    cached.require_room(cached.slide_ids)  # two of them fit


def test_a_disk_that_is_full_ends_the_reading_with_a_message(cached, monkeypatch):
    def full(*_words, **_settings) -> None:
        raise StoreError("slide 'Slide/0' cannot be written: No space left on device")

    monkeypatch.setattr("span_sparse.store.local_copies.write_slide", full)
    with pytest.raises(StoreError, match=r"cache_dir .*fast, .* GiB free: .*No space left on device; free some space"):
        cached.read("Slide/0")


def test_a_folder_that_cannot_be_used(store, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        LocallyCopiedStore(store.path, tmp_path / "file")
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    with pytest.raises(StoreError, match="belongs to somebody else"):
        LocallyCopiedStore(store.path, tmp_path / "fast")


READ_ALL = """
import sys
from pathlib import Path
from span_sparse.store import LocallyCopiedStore
store = LocallyCopiedStore(Path(sys.argv[1]), Path(sys.argv[2]))
print([store.read(slide).features.tolist() for slide in store.slide_ids])
"""


def test_processes_copy_at_the_same_time(cached, store):
    words = [sys.executable, "-c", READ_ALL, str(store.path), str(cached.cache_dir)]
    started = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0] for process in started]
    assert outputs == [f"{[store.read(slide).features.tolist() for slide in store.slide_ids]}\n"] * 3
    assert validate_store(cached.copies.path) == []
    assert list(cached.copies.path.glob("__tmp*")) == []
