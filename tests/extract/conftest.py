"""Small slides and encoders whose numbers can be worked out by hand."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tifffile

from span_sparse.cohort import CohortTable, read_cohort
from span_sparse.extract.pipeline import extract_cohort
from span_sparse.extract.process_list import SlideStatus
from span_sparse.grid import LatticeSpec
from span_sparse.types import EncoderIdentity
from span_sparse.wsi import TissueSettings

PATCH_PX, MPP = 20, 2.0
STEP_PX0 = 40
"""Slides have 1 µm per pixel."""
TILE_PX0 = 64


@dataclass
class DeviceEncoder:
    """Mean colour, on a device that one process owns: it cannot be pickled and notes who calls it."""

    device: str = "simulated"
    callers: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    @property
    def identity(self) -> EncoderIdentity:
        return EncoderIdentity("mean-colour", "1", "mean", 3, PATCH_PX, MPP, "float32")

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        self.callers.append(os.getpid())
        self.sizes.append(len(patches))
        return patches.mean(axis=(1, 2)).astype(np.float32)

    def __reduce__(self):
        raise TypeError("this encoder stays where it is")


def colours(rows: int, cols: int) -> np.ndarray:
    """Tissue all over, each cell of the lattice in a colour of its own."""
    cells = np.empty((rows, cols, 3), np.uint8)
    cells[..., 0] = 220
    cells[..., 1] = (np.arange(rows)[:, None] * 7 + np.arange(cols)) % 90 + 40
    cells[..., 2] = (np.arange(rows)[:, None] + np.arange(cols) * 5) % 90 + 100
    return cells.repeat(STEP_PX0, axis=0).repeat(STEP_PX0, axis=1)


def write_slide(path: Path, picture: np.ndarray) -> None:
    tifffile.imwrite(
        path, picture, tile=(TILE_PX0, TILE_PX0), photometric="rgb", compression="zlib", resolution=(10_000, 10_000),
        resolutionunit="CENTIMETER",
    )  # fmt: skip


def spoil_tiles(path: Path, *tiles: int) -> None:
    """Make tiles (numbered row by row) unreadable."""
    with tifffile.TiffFile(path) as file:
        offsets, sizes = file.pages[0].dataoffsets, file.pages[0].databytecounts
    with path.open("r+b") as file:
        for tile in tiles:
            file.seek(offsets[tile])
            file.write(b"\xff" * sizes[tile])


@dataclass(frozen=True)
class Places:
    """Where a test's slides, table and store are."""

    root: Path

    @property
    def store(self) -> Path:
        return self.root / "out" / "store"

    @property
    def slides(self) -> Path:
        return self.root / "slides"

    def slide(self, name: str, rows: int = 4, cols: int = 5) -> Path:
        path = self.slides / f"{name}.tiff"
        write_slide(path, colours(rows, cols))
        return path

    def cohort(self, *names: str) -> CohortTable:
        path = self.root / "cohort.csv"
        path.write_text("\n".join(["slide_id", *names]) + "\n")
        return read_cohort(path)

    def extract(self, *names: str, **options) -> list[SlideStatus]:
        defaults = {
            "spec": LatticeSpec(PATCH_PX, MPP), "encoder": DeviceEncoder(), "workers": 0, "batch_size": 8,
            "tissue": TissueSettings(min_object_mm2=0.001, max_hole_mm2=0.001),
        }  # fmt: skip
        return extract_cohort(self.cohort(*names), self.slides, self.store, **(defaults | options))


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "slides").mkdir()
    return Places(tmp_path)
