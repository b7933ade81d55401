"""How does a slide enter the store so that no reader ever sees half of one?

1. Everything is written into a folder `__tmp-…` inside the store, which readers ignore: first the arrays, then, after
   they are on the disk, the group's `zarr.json` with `complete: true`.
2. The folder is renamed to the slide's name. The rename is the commit: before it there is no slide, after it a whole
   one.
3. When a slide is replaced, the two folders are exchanged in one system call where the file system can (Linux), so
   that a crash leaves the old slide or the new one. Elsewhere the old folder is moved away first; a crash in between
   leaves no slide, which the next extraction repairs.

Writing into the final place and marking it afterwards leaves half a slide under a good name when the process is killed.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any, Final

import zarr
import zarr.codecs
from numpy.typing import NDArray

from span_sparse.errors import StoreError
from span_sparse.store.checks import row_major_order, validate_record
from span_sparse.store.naming import TEMPORARY_PREFIX, group_name
from span_sparse.store.schema import (
    ARRAY_COORDS,
    ARRAY_FAILED_GRID,
    ARRAY_FEATURES,
    ARRAY_GRID,
    FORMAT_NAME,
    FORMAT_VERSION,
    KEY_FORMAT,
    KEY_VERSION,
    SlideRecord,
    raise_problems,
)
from span_sparse.store.shard import METADATA_FILE, rows_per_block

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


def create_root(root: Path) -> None:
    """Make an empty store, or leave an existing one as it is; safe when several processes do it at once.

    Raises:
        StoreError: the folder holds something else, or cannot be written.
    """
    document = root / METADATA_FILE
    try:
        root.mkdir(parents=True, exist_ok=True)
        if document.exists():
            return
        foreign = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith(TEMPORARY_PREFIX))
        if foreign and not document.exists():  # another process may have created the store meanwhile
            raise StoreError(f"{root} is not empty ({', '.join(foreign[:3])}) and not a store; choose another folder")
        attributes = {KEY_FORMAT: FORMAT_NAME, KEY_VERSION: FORMAT_VERSION}
        temporary = temporary_folder(root)
        _write_group_document(temporary, attributes)
        temporary.replace(document)
        fsync_path(root)
    except OSError as error:
        raise StoreError(f"a store cannot be made at {root}: {error.strerror or error}") from error


def write_slide(root: Path, record: SlideRecord, *, replace: bool) -> None:
    """Write one slide; rows are sorted by (row, col) first.

    Args:
        root: an existing store.
        record: the slide.
        replace: whether a folder that already has the slide's name is replaced or refused.

    Raises:
        StoreError: the record is not valid (all problems in one message), the slide is there, or the disk refuses.
    """
    name = group_name(record.slide_id)
    raise_problems(f"slide {record.slide_id!r} cannot be written to {root}", validate_record(record))
    temporary = temporary_folder(root)
    try:
        temporary.mkdir()
        _write_contents(temporary, record)
        commit_folder(temporary, root / name, replace=replace)
        fsync_path(root)
    except OSError as error:
        raise StoreError(f"slide {record.slide_id!r} cannot be written to {root}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(root: Path, older_than_s: float, now_s: float) -> list[str]:
    """Delete what killed writers left behind; returns the names deleted.

    Args:
        root: the store.
        older_than_s: only entries untouched for so many seconds, since a younger one may be under construction.
        now_s: the present time in seconds since the epoch.
    """
    removed: list[str] = []
    for entry in sorted(root.glob(f"{TEMPORARY_PREFIX}*")):
        if now_s - _newest_s(entry) < older_than_s:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
        removed.append(entry.name)
    return removed


def _newest_s(entry: Path) -> float:
    try:
        return max(path.lstat().st_mtime for path in (entry, *entry.rglob("*")))
    except FileNotFoundError:  # its writer has just finished
        return float("inf")


def _write_contents(folder: Path, record: SlideRecord) -> None:
    order = row_major_order(record.grid)
    write_array(folder / ARRAY_FEATURES, record.features[order])
    write_array(folder / ARRAY_GRID, record.grid[order])
    write_array(folder / ARRAY_COORDS, record.coords[order])
    for name, array in record.optional_arrays().items():
        rows = row_major_order(array) if name == ARRAY_FAILED_GRID else order
        write_array(folder / name, array[rows])
    for path in sorted(folder.rglob("*"), reverse=True):
        fsync_path(path)
    _write_group_document(folder / METADATA_FILE, record.metadata().as_attributes())
    fsync_path(folder)


def write_array(folder: Path, array: NDArray[Any]) -> None:
    """Write a two-dimensional array of the one kind this format has (FORMAT.md)."""
    num_rows, num_columns = array.shape
    block_rows = rows_per_block(num_rows, array.itemsize * num_columns)
    shard_rows = -(-num_rows // block_rows) * block_rows
    target = zarr.create_array(
        folder,
        shape=array.shape,
        dtype=array.dtype,
        chunks=(block_rows, num_columns),
        shards=(shard_rows, num_columns),
        filters=None,
        compressors=zarr.codecs.Crc32cCodec(),
        fill_value=0,
        config={"write_empty_chunks": True},  # else zarr omits blocks of zeros: cell (0, 0) of a one-patch slide
        zarr_format=3,
    )
    target[...] = array


def _write_group_document(path: Path, attributes: dict[str, Any]) -> None:
    document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    with path.open("x", encoding="utf-8") as file:
        file.write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def commit_folder(temporary: Path, final: Path, *, replace: bool) -> None:
    """Give a complete folder its name in one step; what had the name before is removed.

    Raises:
        StoreError: the name is a link, or taken and not to be replaced.
        OSError: the file system refuses.
    """
    if final.is_symlink():
        raise StoreError(f"{final} is a symbolic link; remove it, slides are never written through links")
    if not replace:
        try:
            temporary.rename(final)
        except OSError as error:
            if not final.exists():
                raise
            raise StoreError(f"{final} is already in the store; pass overwrite to replace it") from error
        return
    while True:
        try:
            if not final.exists():
                temporary.rename(final)
            elif not _exchange(temporary, final):
                _move_away(final, temporary)
            return
        except OSError as error:
            if not _lost_race(error):
                raise


def _lost_race(error: OSError) -> bool:
    """Another process put or took the final folder between the look and the rename: look again."""
    return error.errno in (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step; False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    names = os.fsencode(first), os.fsencode(second)
    return library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


def _move_away(final: Path, temporary: Path) -> None:
    old = temporary_folder(final.parent)
    final.rename(old)
    try:
        temporary.rename(final)
    except OSError:
        if not final.exists():
            old.rename(final)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def temporary_folder(root: Path) -> Path:
    """A name in the store that no reader takes for a slide and `remove_leftovers` knows."""
    return root / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"


def fsync_path(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
