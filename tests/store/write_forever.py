"""Write slides until killed: `write_forever.py STORE PREFIX PATCHES [one-slide]`; prints one `r` when it starts.

Every feature of a slide holds its number of patches, so that a mixture of two slides is recognised.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np

from span_sparse.grid import LatticeSpec
from span_sparse.store import FeatureStore, SlideRecord
from span_sparse.types import EncoderIdentity


def main(path: str, prefix: str, num_patches: int, one_slide: bool) -> None:
    lattice = LatticeSpec(5, 0.5).on_slide(0.25)
    store = None
    for number in itertools.count():
        count = num_patches if one_slide else num_patches + number % 3
        grid = np.stack(np.divmod(np.arange(count), 30), axis=1).astype(np.int32)
        record = SlideRecord(
            slide_id=prefix if one_slide else f"{prefix}/{number % 7}",
            case_id=None,
            features=np.full((count, 16), count, np.float32),
            grid=grid,
            coords=lattice.to_px0(grid),
            lattice=lattice,
            mpp_source="cohort",
            encoder=EncoderIdentity("counting", "1", "all", 16, 5, 0.5, "float32"),
            slide_checksum="sha256:00",
            width_px0=300,
            height_px0=300,
            provenance={},
        )
        if store is None:
            print("r", end="", flush=True)
            store = FeatureStore.create(Path(path))
        store.write(record, overwrite=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), "one-slide" in sys.argv[4:])
