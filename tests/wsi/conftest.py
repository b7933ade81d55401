from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile

SLIDES = Path(__file__).parents[3] / "shared" / "slides"


@pytest.fixture
def real_slides() -> Path:
    if not SLIDES.is_dir():
        pytest.skip("the real slides are not here")
    return SLIDES


@pytest.fixture
def make_slide(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiled TIFF, one picture for each level, lossless."""

    def make(levels: Sequence[np.ndarray], name: str = "slide.tiff", mpp: float | None = 0.5) -> Path:
        path = tmp_path / name
        resolution = {} if mpp is None else {"resolution": (10_000 / mpp, 10_000 / mpp), "resolutionunit": "CENTIMETER"}
        with tifffile.TiffWriter(path) as file:
            for index, picture in enumerate(levels):
                file.write(
                    picture, tile=(64, 64), photometric="rgb", compression="zlib", subfiletype=int(index > 0),
                    **(resolution if index == 0 else {}),
                )  # fmt: skip
        return path

    return make


@pytest.fixture
def break_tile() -> Callable[[Path, int], Path]:
    """Overwrites the compressed bytes of one tile of level 0."""

    def overwrite(path: Path, number: int) -> Path:
        with tifffile.TiffFile(path) as file:
            offset, length = file.pages[0].dataoffsets[number], file.pages[0].databytecounts[number]
        content = bytearray(path.read_bytes())
        content[offset : offset + length] = b"\xff" * length
        path.write_bytes(content)
        return path

    return overwrite
