"""How does an array get from its one shard file into memory at the speed of the disk?

The arrays are ordinary Zarr v3 arrays (`zarr.open_array` reads them), but of one fixed kind: one shard that covers the
whole array, uncompressed row blocks in it, a CRC-32C behind each block and behind the index. For that kind reading is:

1. `zarr.json` is compared with the one kind this format allows; anything else (object codecs, pickles) is refused.
2. The index at the end of the file says where each block lies; every block must be there, of the right size.
3. Blocks are read straight into the result; their checksums are compared unless the caller has done so before.

Going through Zarr's own pipeline costs six times `numpy.load` and starts an event loop in every data-loading worker.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Final, cast

import google_crc32c  # zarr's own dependency for its crc32c codec
import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import StoreError

METADATA_FILE: Final = "zarr.json"
SHARD_FILE: Final = Path("c", "0", "0")

_TARGET_BLOCK_BYTES: Final = 4 * 2**20
_CRC_BYTES: Final = 4
_PIECE_BYTES: Final = 2**19
_MAX_METADATA_BYTES: Final = 16 * 2**20


def rows_per_block(num_rows: int, row_bytes: int) -> int:
    """Rows of an inner chunk: blocks of at least 4 MiB and all but equal, or the whole array if it is smaller.

    >>> rows_per_block(10_000, 2048), rows_per_block(7, 2048)
    (2500, 7)
    """
    num_blocks = max(1, num_rows * row_bytes // _TARGET_BLOCK_BYTES)
    return -(-num_rows // num_blocks)


def read_json(path: Path) -> Any:
    """A JSON document of a store.

    Raises:
        StoreError: the file is missing, too large or not JSON.
    """
    try:
        _require_regular(path)
        if path.stat().st_size > _MAX_METADATA_BYTES:
            raise StoreError(f"{path} is larger than {_MAX_METADATA_BYTES} bytes; it is not metadata of a store")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not valid JSON ({error}); the store is damaged") from error


def read_array(folder: Path, expected_dtypes: tuple[str, ...], *, verify: bool) -> NDArray[Any]:
    """A whole two-dimensional array.

    Args:
        folder: the array's folder.
        expected_dtypes: names of the dtypes it may have.
        verify: compare the checksum of every block.

    Raises:
        StoreError: the array is missing, of another kind than the format allows, truncated or corrupt.
    """
    shape, dtype, block_rows = _parse_array_document(folder, expected_dtypes)
    path = folder / SHARD_FILE
    num_blocks = -(-shape[0] // block_rows)
    block_bytes = block_rows * shape[1] * dtype.itemsize
    try:
        _require_regular(path)
        with path.open("rb", buffering=0) as file:
            offsets = _read_index(file, path, num_blocks, block_bytes)
            array = np.empty(shape, dtype)
            flat = array.reshape(-1).view(np.uint8)
            for block, offset in enumerate(offsets):
                target = flat[block * block_bytes : (block + 1) * block_bytes]
                file.seek(offset)
                checksum = _read_block(file, target, verify=verify)
                if checksum is None:
                    continue
                padding = file.read(block_bytes - target.nbytes)  # the last block is stored as long as the others
                checksum = google_crc32c.extend(checksum, padding)
                if checksum.to_bytes(_CRC_BYTES, "little") != file.read(_CRC_BYTES):
                    raise StoreError(f"{path}: checksum of block {block} differs; the file is corrupt")
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}; the slide is incomplete") from error
    return array


def array_checksum(folder: Path, expected_dtypes: tuple[str, ...]) -> bytes:
    """What tells two contents of an array apart: shape, dtype and the stored CRC-32C of every block.

    The blocks themselves are not read: this is for programs that ask whether anything has changed.

    Args:
        folder: the array's folder.
        expected_dtypes: names of the dtypes it may have.

    Raises:
        StoreError: the array is missing, of another kind than the format allows, or truncated.
    """
    shape, dtype, block_rows = _parse_array_document(folder, expected_dtypes)
    path = folder / SHARD_FILE
    num_blocks, block_bytes = -(-shape[0] // block_rows), block_rows * shape[1] * dtype.itemsize
    try:
        _require_regular(path)
        with path.open("rb", buffering=0) as file:
            found = []
            for offset in _read_index(file, path, num_blocks, block_bytes):
                file.seek(offset + block_bytes)
                found.append(file.read(_CRC_BYTES))
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}; the slide is incomplete") from error
    return b"|".join((repr(shape).encode(), dtype.str.encode(), *found))


def _require_regular(path: Path) -> None:
    """Refuse pipes and devices: opening one would wait for ever."""
    if path.exists() and not path.is_file():
        raise StoreError(f"{path} is not a regular file; it does not belong into a store")


def _read_index(file: io.FileIO, path: Path, num_blocks: int, block_bytes: int) -> list[int]:
    """Offsets of the blocks, after checking that each is wholly in the file."""
    size = file.seek(0, io.SEEK_END)
    index_bytes = 16 * num_blocks
    stored_bytes = block_bytes + _CRC_BYTES
    if size < num_blocks * stored_bytes + index_bytes + _CRC_BYTES:
        raise StoreError(f"{path} has {size} bytes, its {num_blocks} blocks need more; the file is truncated")
    file.seek(size - index_bytes - _CRC_BYTES)
    index = file.read(index_bytes)
    if google_crc32c.value(index).to_bytes(_CRC_BYTES, "little") != file.read(_CRC_BYTES):
        raise StoreError(f"{path}: checksum of the shard index differs; the file is truncated or corrupt")
    entries = np.frombuffer(index, "<u8").reshape(num_blocks, 2)
    limit = size - index_bytes - _CRC_BYTES - stored_bytes
    if (entries[:, 1] != stored_bytes).any() or (entries[:, 0] > limit).any():
        raise StoreError(f"{path}: the shard index names missing blocks or blocks of another size; the file is corrupt")
    return entries[:, 0].tolist()


def _read_block(file: io.FileIO, target: NDArray[np.uint8], *, verify: bool) -> int | None:
    """Fill `target` from the file's position; its checksum, taken while each piece is still in the CPU's cache."""
    checksum = 0
    done = 0
    while done < target.nbytes:
        piece = target[done : done + _PIECE_BYTES] if verify else target[done:]
        count = file.readinto(memoryview(cast("bytes", piece)))
        if not count:
            raise OSError("the file ends early")
        if verify:
            checksum = google_crc32c.extend(checksum, cast("bytes", piece[:count]))
        done += count
    return checksum if verify else None


def _parse_array_document(folder: Path, dtype_names: tuple[str, ...]) -> tuple[tuple[int, int], np.dtype[Any], int]:
    """Shape, dtype and rows per block, after refusing every kind of array but the one of this format."""
    path = folder / METADATA_FILE
    document = read_json(path)
    try:
        dtype_name = document["data_type"]
        num_rows, num_columns = document["shape"]
        block_rows, _ = document["codecs"][0]["configuration"]["chunk_shape"]
        if not all(type(count) is int and 0 < count < 2**40 for count in (num_rows, num_columns, block_rows)):
            raise ValueError("counts must be positive")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise StoreError(f"{path} is not the metadata of an array of this format ({error}); see FORMAT.md") from error
    expected = _array_document(num_rows, num_columns, block_rows)
    wrong = [key for key in expected if document.get(key) != expected[key]]
    if wrong:
        raise StoreError(
            f"{path}: {wrong[0]!r} must be {expected[wrong[0]]}, found {document.get(wrong[0])!r:.200}; "
            "an array of another kind is refused, see FORMAT.md"
        )
    if dtype_name not in dtype_names:
        raise StoreError(f"{path}: dtype must be {' or '.join(dtype_names)}, found {dtype_name!r}")
    return (num_rows, num_columns), np.dtype(dtype_name).newbyteorder("<"), block_rows


def _array_document(num_rows: int, num_columns: int, block_rows: int) -> dict[str, Any]:
    """The part of an array's `zarr.json` that the format fixes."""
    bytes_codec = {"name": "bytes", "configuration": {"endian": "little"}}
    codecs = [bytes_codec, {"name": "crc32c"}]
    sharding = {
        "chunk_shape": [block_rows, num_columns],
        "codecs": codecs,
        "index_codecs": codecs,
        "index_location": "end",
    }
    shard_shape = [-(-num_rows // block_rows) * block_rows, num_columns]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard_shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
