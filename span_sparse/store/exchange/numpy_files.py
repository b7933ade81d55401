"""How are `.npy` and `.npz` files of unknown origin read?

Headers are compared with the bytes that follow before anything is allocated, object arrays (pickles) are refused, and
a member of an archive may not unpack to many times its size. `numpy.load` allocates what the header claims.
"""

from __future__ import annotations

import io
import tokenize
import zipfile
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from span_sparse.errors import ExchangeError
from span_sparse.files import replacing

_MAX_COMPRESSION: Final = 200


def read_npy(path: Path) -> NDArray[Any]:
    """The array of a `.npy` file.

    Raises:
        ExchangeError: it cannot be read, holds objects, or less than its header claims.
    """
    try:
        with path.open("rb") as file:
            return _read(file, path.stat().st_size, str(path))
    except OSError as error:
        raise ExchangeError(f"{path} cannot be read: {error.strerror or error}") from error


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a `.npz` file by name.

    Raises:
        ExchangeError: as `read_npy`.
    """
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                where = f"{path}: {member.filename}"
                if member.file_size > _MAX_COMPRESSION * member.compress_size + 2**16:
                    raise ExchangeError(f"{where} claims to unpack to {member.file_size} bytes; refused")
                with archive.open(member) as file:
                    arrays[member.filename.removesuffix(".npy")] = _read(file, member.file_size, where)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ExchangeError(f"{path} cannot be read as an archive of arrays: {error}") from error
    return arrays


def _read(file: IO[bytes], size: int, where: str) -> NDArray[Any]:
    try:
        version = npy.read_magic(file)
        reader = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if reader is None:
            raise ValueError(f"version {version} of the format")
        shape, fortran, dtype = reader(file)
        if dtype.kind not in "biufU":
            raise ExchangeError(f"{where} holds {dtype}, expected numbers; objects are never unpickled")
        num_bytes = dtype.itemsize
        for extent in shape:
            num_bytes *= extent
        if num_bytes != size - file.tell():
            raise ExchangeError(
                f"{where} claims {dtype} {list(shape)}, but the file has {size} bytes; it is incomplete"
            )
        data = file.read(num_bytes)
        array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    except (ValueError, SyntaxError, TypeError, RecursionError, tokenize.TokenError) as error:
        raise ExchangeError(f"{where} is not an array in NumPy's format: {error}") from error
    return np.array(array, dtype=dtype.newbyteorder("="), order="C")


def write_npy(path: Path, array: NDArray[Any]) -> None:
    """Write a `.npy` file in one step."""
    with replacing(path) as stream:
        np.save(stream, array, allow_pickle=False)


def write_npz(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Write a `.npz` file in one step."""
    content = io.BytesIO()
    np.savez(content, **arrays)
    with replacing(path) as stream:
        stream.write(content.getbuffer())
