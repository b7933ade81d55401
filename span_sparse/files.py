"""How does a file appear on disk whole or not at all?

The bytes go to a temporary name in the same folder, are flushed to the disk and renamed over the final name. Writing
in place instead leaves half a table when a job is killed, and the next program reads it as if it were complete.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`, creating its folder; readers see the old file or the new one, never a part.

    Args:
        path: where the file is to lie.
        content: the whole file.

    Raises:
        OSError: the folder cannot be created or written; nothing is left behind.
    """
    with replacing(path) as stream:
        stream.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream whose content becomes the file `path` when the block ends without an error.

    Only a kill leaves the temporary file behind: `.<start of the name>.<random>.tmp` in the same folder.

    Args:
        path: where the file is to lie; its folder is created.

    Raises:
        OSError: the folder cannot be created or written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # a part of the name: slides may be called as long as the file system allows, and the rest must fit behind it
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:32]}.", suffix=".tmp", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        with temporary.open("wb") as stream:  # not the descriptor: libraries ask the stream for its name
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The process's file mode mask; mkstemp gives 0600, which hides results from the group on shared clusters."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
