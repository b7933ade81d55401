from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from span_sparse.grid import LatticeSpec
from span_sparse.store import FeatureStore, SlideRecord
from span_sparse.types import EncoderIdentity


def _make_record(slide_id: str = "slide-1", num_patches: int = 7, **changes: Any) -> SlideRecord:
    """A valid record on a slide of 20 × 30 cells of 10 px; rows deliberately not in row-major order."""
    channels = changes.pop("channels", 5)
    precision = changes.pop("precision", "float16")
    seed = changes.pop("seed", 0)
    random = np.random.default_rng(seed)
    cells = random.permutation(600)[:num_patches]
    lattice = LatticeSpec(patch_size_px=5, target_mpp=0.5).on_slide(0.25)
    grid = changes.pop("grid", np.stack(np.divmod(cells, 30), axis=1).astype(np.int32))
    values: dict[str, Any] = {
        "slide_id": slide_id,
        "case_id": "case-1",
        "features": random.standard_normal((len(grid), channels)).astype(precision),
        "grid": grid,
        "coords": grid[:, ::-1].astype(np.int64) * 10,
        "lattice": lattice,
        "mpp_source": "cohort",
        "encoder": EncoderIdentity("stain-texture", "1", "descriptor", channels, 5, 0.5, precision),
        "slide_checksum": "sha256:00ff",
        "width_px0": 305,
        "height_px0": 209,
        "provenance": {"made by": "a test", "numbers": [1, 2.5, None]},
    }
    return SlideRecord(**values | changes)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch) -> None:
    """A write syncs 18 files and folders, 0.1 s on slow disks; no test here pulls the plug. Subprocesses do sync."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def make_record() -> Callable[..., SlideRecord]:
    return _make_record


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    return FeatureStore.create(tmp_path / "store")


@pytest.fixture
def assert_same() -> Callable[[SlideRecord, SlideRecord], None]:
    def check(written: SlideRecord, found: SlideRecord) -> None:
        """The found record is the written one sorted by (row, col), worked out with Python's own sort."""
        order = sorted(range(len(written.grid)), key=lambda row: tuple(written.grid[row].tolist()))
        for name in ("features", "grid", "coords"):
            expected, got = getattr(written, name)[order], getattr(found, name)
            assert got.dtype == expected.dtype
            assert got.tobytes() == np.ascontiguousarray(expected).tobytes()
        assert found.metadata() == written.metadata()

    return check
