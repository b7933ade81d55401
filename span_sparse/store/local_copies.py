"""How are slides on a slow shared file system read from the node's own disk after the first time?

1. A folder below the cache folder, named after the store's path, is itself a store. Slides enter it as they enter any
   store: read whole with their checksums compared, written under a temporary name, renamed. Several processes may do
   that at once; at worst a slide is copied twice, and one copy stays.
2. Each copy says when the slide it was made from had been written. A slide extracted anew is copied anew.
3. A copy that is damaged is replaced. A disk that is full ends the run with the numbers, before it starts if they
   tell: going on without a cache would make it ten times slower without a word.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from span_sparse.errors import StoreError
from span_sparse.store.reader import FeatureStore
from span_sparse.store.schema import SlideMetadata, SlideRecord
from span_sparse.store.writer import write_slide

KEY_COPIED_FROM: Final = "copied_from"
"""Entry of a copy's provenance: path, time and size that identify what was copied."""

_GRID_AND_COORDS_BYTES: Final = 2 * 4 + 2 * 8
_FILES_BYTES: Final = 32 * 2**10
"""Metadata, indices and unused ends of blocks of a slide, about."""


class LocallyCopiedStore(FeatureStore):
    """A store whose slides are copied to another disk when they are first read, and read from there afterwards.

    Args:
        path: the store.
        cache_dir: a folder on a fast disk of this node; created when absent.

    Raises:
        StoreError: no such store, or the folder cannot be used.
    """

    def __init__(self, path: Path, cache_dir: Path) -> None:
        super().__init__(path)
        name = hashlib.sha256(os.fsencode(self._resolved)).hexdigest()[:16]
        self.cache_dir = Path(cache_dir)
        folder = self.cache_dir / f"span-{name}"
        self.copies = FeatureStore.create(folder)
        if folder.stat().st_uid != os.getuid():
            raise StoreError(f"{folder} belongs to somebody else, who could change features; name another cache_dir")
        self.copies.remove_leftovers()

    def read(self, slide_id: str) -> SlideRecord:
        """A slide with its arrays, from the copy if there is one of this version, else from the store.

        Raises:
            StoreError: as `FeatureStore.read`, or the slide cannot be copied.
        """
        origin = self._origin(slide_id)
        if self._is_copied(slide_id, origin):
            with suppress(StoreError):  # damaged: copied again
                record = self.copies.read(slide_id)
                ours = {key: value for key, value in record.provenance.items() if key != KEY_COPIED_FROM}
                return replace(record, provenance=ours)
        record = super().read(slide_id)
        try:
            copy = replace(record, provenance={**record.provenance, KEY_COPIED_FROM: origin})
            write_slide(self.copies.path, copy, replace=True)
        except StoreError as error:
            free = shutil.disk_usage(self.cache_dir).free
            raise StoreError(
                f"cache_dir {self.cache_dir}, {_gib(free)} free: {error}; free some space there, name another "
                "cache_dir, or leave it out"
            ) from error
        return record

    def require_room(self, slide_ids: Iterable[str]) -> None:
        """Refuses slides that would not fit.

        Raises:
            StoreError: says how much space is needed and free.
        """
        absent = [slide for slide in slide_ids if not self._is_copied(slide, self._origin(slide))]
        needed = sum(_num_bytes(self.metadata(slide)) for slide in absent)
        free = shutil.disk_usage(self.cache_dir).free
        if needed > free:
            raise StoreError(
                f"cache_dir {self.cache_dir} has {_gib(free)} free, {len(absent)} slides of {self.path} need "
                f"{_gib(needed)}; name a larger disk, or leave cache_dir out"
            )

    def _is_copied(self, slide_id: str, origin: dict[str, Any]) -> bool:
        try:
            return self.copies.metadata(slide_id).provenance.get(KEY_COPIED_FROM) == origin
        except StoreError:  # not there, or damaged
            return False

    def _origin(self, slide_id: str) -> dict[str, Any]:
        _, modified_ns, size = self._generation(slide_id)
        return {"store": str(self._resolved), "modified_ns": modified_ns, "size": size}


def _num_bytes(metadata: SlideMetadata) -> int:
    """Space of a slide on the disk, about."""
    features = metadata.encoder.dimension * np.dtype(metadata.encoder.precision).itemsize
    row = features + _GRID_AND_COORDS_BYTES + 4 * len(metadata.ratio_classes)
    return metadata.num_patches * row + _FILES_BYTES


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
