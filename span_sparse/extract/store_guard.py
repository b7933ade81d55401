"""May the half-written slides in this store be thrown away?

A killed extraction leaves temporary folders. They harm nobody, but nobody else removes them either, and one that looks
the same may be under construction by another extraction into the same store (an array of cluster jobs). So each
extraction holds a shared lock on the store while it runs: whoever can have it alone knows that all leftovers are dead.
The operating system drops the lock when the process ends, however it ends; there is no lock file to go stale.

Where the system or the file system knows no such locks, leftovers younger than an hour stay. So they do in runs over
shards, which may be on several hosts: some cluster file systems have locks that other hosts do not see.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from span_sparse.errors import StoreError
from span_sparse.store import FeatureStore
from span_sparse.store.shard import METADATA_FILE


@contextmanager
def clean_store(path: Path, *, several_hosts: bool = False) -> Iterator[None]:
    """Create or open a store, free it of leftovers, and mark it as being written for the time of the context.

    Args:
        path: folder of the store.
        several_hosts: others may be writing whose locks cannot be seen here.

    Raises:
        StoreError: the folder holds something that is not a store, or cannot be written.
    """
    store = _create(path)
    descriptor = os.open(path, os.O_RDONLY) if os.name == "posix" else None
    try:
        alone = descriptor is not None and _lock(descriptor, exclusive=True)
        store.remove_leftovers(0.0 if alone and not several_hosts else 3600.0)
        if descriptor is not None:
            _lock(descriptor, exclusive=False)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _create(path: Path) -> FeatureStore:
    """Make or open the store. A run that was a moment faster may take our root document, not yet in place, for dead."""
    try:
        return FeatureStore.create(path)
    except StoreError:
        if not (path / METADATA_FILE).exists():
            raise
        return FeatureStore.create(path)


def _lock(descriptor: int, *, exclusive: bool) -> bool:
    """Try to lock alone, or wait for a shared lock (which is refused only while another process cleans up).

    Returns:
        False when another process has a lock or the file system has none.
    """
    fcntl = importlib.import_module("fcntl")  # not on Windows
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
    except OSError:
        return False
    return True
