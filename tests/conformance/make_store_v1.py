"""Make the frozen store of format version 1: `python tests/conformance/make_store_v1.py FOLDER`.

Run once, for version 1; the result is `store_v1/`. It is not made again when the code changes: the test that reads it
is there to notice that.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from span_sparse.grid import Lattice, LatticeSpec
from span_sparse.store import FeatureStore, SlideRecord
from span_sparse.types import EncoderIdentity


def records() -> list[SlideRecord]:
    """Two small slides whose values follow from their cells; numbers that float16 holds exactly."""
    spec = LatticeSpec(patch_size_px=224, target_mpp=0.5)
    cells = {
        "TCGA-3C-AALI.1": (np.array([[0, 0], [5, 2], [0, 3], [2, 1]], np.int32), 0.2527, 443),
        "Block 7/Fläche": (np.array([[1, 1]], np.int32), 0.5, 224),
    }
    made: list[SlideRecord] = []
    for slide_id, (grid, slide_mpp, step_px0) in cells.items():
        features = grid[:, :1] * 10 + grid[:, 1:] + np.array([0.0, 0.25, -0.5])
        made.append(
            SlideRecord(
                slide_id=slide_id,
                case_id="TCGA-3C" if slide_id.startswith("TCGA") else None,
                features=features.astype(np.float16),
                grid=grid,
                coords=grid[:, ::-1].astype(np.int64) * step_px0,
                lattice=Lattice(spec, slide_mpp, step_px0),
                mpp_source="openslide",
                encoder=EncoderIdentity("conformance", "1", "by-hand", 3, 224, 0.5, "float16"),
                slide_checksum="sha256:" + "0" * 64,
                width_px0=4000,
                height_px0=3000,
                provenance={"script": "tests/conformance/make_store_v1.py"},
            )
        )
    return made


def main(folder: Path) -> None:
    """Write the store."""
    store = FeatureStore.create(folder)
    for record in records():
        store.write(record)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
