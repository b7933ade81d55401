"""Make the frozen store of format version 2: `python tests/conformance/make_store_v2.py FOLDER`.

Run once, for version 2; the result is `store_v2/`. It is not made again when the code changes: the test that reads it
is there to notice that.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from span_sparse.grid import Lattice, LatticeSpec
from span_sparse.store import FeatureStore, SlideRecord
from span_sparse.types import EncoderIdentity


def record() -> SlideRecord:
    """An imported, annotated slide on a lattice of its own; values follow from the cells and are exact in float32."""
    grid = np.array([[5, 2], [0, 0], [2, 1]], np.int32)
    lattice = Lattice(LatticeSpec(256, 0.5), 0.25, 384, origin_px0=(16, 5), overlap_px0=128)
    return SlideRecord(
        slide_id="imported",
        case_id=None,
        features=(grid[:, :1] * 10 + grid[:, 1:] + np.array([0.0, 0.25])).astype(np.float32),
        grid=grid,
        coords=lattice.to_px0(grid),
        lattice=lattice,
        mpp_source="cohort",
        encoder=EncoderIdentity("conformance", "2", "by-hand", 2, 256, 0.5, "float32"),
        slide_checksum="sha256:" + "1" * 64,
        width_px0=4000,
        height_px0=3000,
        provenance={"script": "tests/conformance/make_store_v2.py"},
        ratios=(grid / 8).astype(np.float32),
        ratio_classes=("tumor", "Nekrose, groß"),
        failed_grid=np.array([[4, 4], [1, 0]], np.int32),
        source_rows=np.array([[0], [1], [2]]),
        source_coords=(grid[:, ::-1] * 96.0).astype(np.float32),
    )


if __name__ == "__main__":
    FeatureStore.create(Path(sys.argv[1])).write(record())
