"""How does a file appear on disk whole or not at all?

The bytes go to a temporary name in the same folder, are flushed to the disk and renamed over the final name. Writing
in place instead leaves half a table when a job is killed, and the next program reads it as if it were complete.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`, creating its folder; readers see the old file or the new one, never a part.

    Args:
        path: where the file is to lie.
        content: the whole file.

    Raises:
        OSError: the folder cannot be created or written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
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
