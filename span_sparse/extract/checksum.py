"""Is this the same slide file as last time?

Up to 64 MiB the whole file is hashed. A larger one is sampled: its size and 64 pieces of 1 MiB, the first at its start,
the last at its end, the others evenly between; reading 4 GB over a network to find out that nothing changed would take
longer than the extraction it saves. The algorithm's name says which of the two it was. Of formats with several files
(MRXS, DICOM) the named file alone is hashed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

PIECE_BYTES: Final = 2**20
NUM_PIECES: Final = 64


def slide_checksum(path: Path) -> str:
    """`sha256:<hexadecimal>` of a small file, `sha256-sampled:<hexadecimal>` of a large one.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= NUM_PIECES * PIECE_BYTES:
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
            return f"sha256:{digest.hexdigest()}"
        digest.update(size.to_bytes(8, "little"))
        for index in range(NUM_PIECES):
            file.seek(index * (size - PIECE_BYTES) // (NUM_PIECES - 1))
            digest.update(file.read(PIECE_BYTES))
    return f"sha256-sampled:{digest.hexdigest()}"
