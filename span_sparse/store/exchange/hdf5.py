"""How is an HDF5 file of unknown origin read, and one for another system written?

Reading: only datasets of the file itself (hard links, no external or virtual storage), only numbers, only as many
bytes as the file really holds, and only if every chunk was written. HDF5 by itself follows links to other files,
allocates what a header claims, gives zeros for chunks that a killed program never wrote, and walks for ever through a
heap of texts one of which says it is 0 bytes long.
"""

from __future__ import annotations

import io
import mmap
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import ExchangeError
from span_sparse.files import replacing
from span_sparse.store.exchange.source import MAX_KEPT_VALUES, decode, encode

MAX_COMPRESSION: Final = 200
"""Features and coordinates do not compress better than this; a header that claims it is not believed."""

_HEAP: Final = b"GCOL\1\0\0\0"


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """A file open for reading.

    Raises:
        ExchangeError: it cannot be opened, or breaks while it is read.
    """
    try:
        _check_heaps(path)
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except ExchangeError as error:
        raise ExchangeError(f"{path}: {error}") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise ExchangeError(f"{path} cannot be read as HDF5: {reason:.300}; it is damaged, write it again") from error


def _check_heaps(path: Path) -> None:
    """Refuse a file whose global heaps, which hold the texts, cannot be walked from end to end.

    Layout: HDF5 File Format Specification 3.0, III.E; lengths of 8 bytes, as all but the oldest files have them.
    """
    if not path.stat().st_size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(_HEAP)
        while start >= 0:
            size = struct.unpack_from("<Q", content, start + 8)[0] if start + 16 <= len(content) else 0
            place, end = start + 16, start + size
            while start % 8 == 0 and place + 16 <= min(end, len(content)):
                index, length = struct.unpack_from("<H6xQ", content, place)
                step = (
                    length if index == 0 else 16 + -(-length // 8) * 8
                )  # 0: what is left of the heap, itself included
                if step < 16 or place + step > end:
                    raise ExchangeError(f"the heap of texts at byte {start} is damaged; write the file again")
                place += step
            start = content.find(_HEAP, start + 1)


def members(group: h5py.Group) -> dict[str, h5py.Dataset | h5py.Group]:
    """What lies directly in a group.

    Raises:
        ExchangeError: one of it is a link.
    """
    found: dict[str, h5py.Dataset | h5py.Group] = {}
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ExchangeError(f"{name!r} is a link to another place or file; refused, copy the data into the file")
        found[name] = group[name]  # type: ignore[assignment]  # hard links lead to datasets and groups
    return found


def read_dataset(group: h5py.Group, name: str) -> NDArray[Any]:
    """A dataset of numbers, whole, in its dtype (of the machine's byte order).

    Raises:
        ExchangeError: it is missing, no numbers, not in this file, or the file holds less than it claims.
    """
    dataset = members(group).get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise ExchangeError(f"there is no dataset {name!r}, only {', '.join(group) or 'nothing'}")
    if dataset.dtype.kind not in "biuf":
        raise ExchangeError(f"dataset {name!r} holds {dataset.dtype}, expected numbers")
    _check_storage(dataset, name)
    array = dataset[...]
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def _check_storage(dataset: h5py.Dataset, name: str) -> None:
    if dataset.is_virtual or dataset.external:
        raise ExchangeError(f"dataset {name!r} lies in other files; refused, copy the data into the file")
    claimed, stored = dataset.size * dataset.dtype.itemsize, dataset.id.get_storage_size()
    filtered = dataset.id.get_create_plist().get_nfilters() > 0
    limit = MAX_COMPRESSION * stored + 2**16 if filtered else stored
    missing = False
    if dataset.chunks and dataset.size:
        chunks = np.prod([-(-extent // chunk) for extent, chunk in zip(dataset.shape, dataset.chunks, strict=True)])
        missing = dataset.id.get_num_chunks() < int(chunks)
    if claimed > limit or missing:
        raise ExchangeError(
            f"dataset {name!r} claims {dataset.dtype} {list(dataset.shape)}, but only {stored} bytes of it were "
            "written; the file is incomplete, write it again"
        )


def read_attributes(node: h5py.Dataset | h5py.Group) -> tuple[dict[str, Any], list[str]]:
    """Attributes as JSON (`encode`), and the names of those that cannot be kept."""
    kept: dict[str, Any] = {}
    lost: list[str] = []
    for name in node.attrs:
        try:
            kept[name] = encode(node.attrs[name])
        except (ExchangeError, OSError, TypeError, ValueError):
            lost.append(f"attribute {name}")
    return kept, lost


def read_extras(group: h5py.Group, taken: tuple[str, ...]) -> tuple[dict[str, Any], list[str]]:
    """Small datasets besides those taken, as JSON, and a description of those too large or of other kinds."""
    kept: dict[str, Any] = {}
    lost: list[str] = []
    for name, node in members(group).items():
        if name in taken:
            continue
        if not isinstance(node, h5py.Dataset) or node.size is None or node.size > MAX_KEPT_VALUES:
            what = f"{node.dtype} {list(node.shape)}" if isinstance(node, h5py.Dataset) else "group"
            lost.append(f"{name}: {what}")
            continue
        try:
            if node.dtype.kind in "biuf":
                _check_storage(node, name)
            value = node[()]
            kept[name] = encode(value.decode() if isinstance(value, bytes) else value)
        except (ExchangeError, UnicodeError):
            lost.append(f"{name}: {node.dtype} {list(node.shape)}")
    return kept, lost


def plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Encoded attributes as ordinary values; the text 'None', which other systems write for nothing, as None."""
    values = {name: decode(value) for name, value in attributes.items()}
    return {name: None if isinstance(value, str) and value == "None" else value for name, value in values.items()}


def write_hdf5(
    path: Path, datasets: Mapping[str, Any], attributes: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Write a file in one step.

    Args:
        path: where it is to lie.
        datasets: arrays, numbers and texts by name; `a/b` makes a group.
        attributes: by dataset, `/` for the file; values as `decode` gives them.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as stream:
        content = io.BytesIO()
        with h5py.File(content, "w") as file:
            for name, value in datasets.items():
                file.create_dataset(name, data=_writable(value))
            for place, values in (attributes or {}).items():
                for name, value in values.items():
                    file[place].attrs[name] = _writable(value)
        stream.write(content.getbuffer())


def _writable(value: Any) -> Any:
    """Texts of an object array need HDF5's text type said."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        return value.astype(h5py.string_dtype())
    return value
