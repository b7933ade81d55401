from __future__ import annotations

import hashlib
import runpy
from pathlib import Path

import numpy as np
import zarr

from span_sparse.grid import Lattice, LatticeSpec
from span_sparse.store import FeatureStore, validate_store

HERE = Path(__file__).parent
STORE = HERE / "store_v2"
DIGESTS = {
    "imported/coords/c/0/0": "1d450a779144c7c26fed28784ff6301471e6bf4752ed1c0131d5b94353328777",
    "imported/coords/zarr.json": "e2b19078c85a491450a83b1345f18c8fe5f5c72c3f551bd0fbc03ef9ce896973",
    "imported/failed_grid/c/0/0": "a647511c466393f412f42ddd227da61ebaf36f4cb4fff879e6be567ff9c57a86",
    "imported/failed_grid/zarr.json": "6d17c7c7c4b55bfec5a2b96f96ccd27cd67af1665ea85a2a549a2ee7870f77c7",
    "imported/features/c/0/0": "86af20b929982beba95b7bda5e7661dc215523ac956ba5c08c503889ac88e79d",
    "imported/features/zarr.json": "e7bcee75071f54aac92fe0dc2de8fea2903528b4a628cb12276519b0a1a53149",
    "imported/grid/c/0/0": "9141e9363e88c1da6ee3943150c2d48b400a0ff0eec1a5f488b7741f5d8b9a5b",
    "imported/grid/zarr.json": "f1bb2d9e61b4deed092dac2ed423c2821a45ed3f8dd05874c49a1e1440276f0c",
    "imported/ratios/c/0/0": "12c9511bf1d744640b214ec11950411e6e91707894a3ca9362f6f6de5e3aadbe",
    "imported/ratios/zarr.json": "e7bcee75071f54aac92fe0dc2de8fea2903528b4a628cb12276519b0a1a53149",
    "imported/source_coords/c/0/0": "53d781ee6489dc5b406ec3c3523f1450344fc9df4c3fd495944d93b32758c5bc",
    "imported/source_coords/zarr.json": "e7bcee75071f54aac92fe0dc2de8fea2903528b4a628cb12276519b0a1a53149",
    "imported/source_rows/c/0/0": "c285ca9d34054e1b66e128e66b3ff13e22feedd7afb581233019dd2d88d2c9ed",
    "imported/source_rows/zarr.json": "ecb3e65581fa7c38fe79ce55b0cb699590606d56f779f357de435f74416d5e8b",
    "imported/zarr.json": "235674b3a6c628e62042e0eeb2fb83e8dcc72f92c1495f610fa64cec23131e49",
    "zarr.json": "0ce826b2ba97f6e5df5b51e8f9d3277c00ec36e16097e0571e6975ff99bfd80c",
}


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_no_file_of_the_frozen_store_has_changed():
    assert digests(STORE) == DIGESTS


def test_frozen_store_reads_with_its_values():
    record = FeatureStore(STORE).read("imported")
    np.testing.assert_array_equal(record.grid, np.array([[0, 0], [2, 1], [5, 2]], np.int32), strict=True)
    # 16 + 384 col, 5 + 384 row
    np.testing.assert_array_equal(record.coords, np.array([[16, 5], [400, 773], [784, 1925]]), strict=True)
    expected = {
        "features": np.array([[0, 0.25], [21, 21.25], [52, 52.25]], np.float32),
        "ratios": np.array([[0, 0], [0.25, 0.125], [0.625, 0.25]], np.float32),
        "failed_grid": np.array([[1, 0], [4, 4]], np.int32),
        "source_rows": np.array([[1], [2], [0]]),
        "source_coords": np.array([[0, 0], [96, 192], [192, 480]], np.float32),
    }
    for name, array in expected.items():
        np.testing.assert_array_equal(getattr(record, name), array, strict=True)
        assert zarr.open_array(STORE / "imported" / name, mode="r")[...].tolist() == array.tolist()
    assert record.ratio_classes == ("tumor", "Nekrose, groß")
    assert record.lattice == Lattice(LatticeSpec(256, 0.5), 0.25, 384, (16, 5), 128)
    assert validate_store(STORE) == []


def test_writing_the_same_record_gives_the_same_files(tmp_path):
    record = runpy.run_path(str(HERE / "make_store_v2.py"))["record"]()
    FeatureStore.create(tmp_path / "store").write(record)
    written = digests(tmp_path / "store")
    arrays = {name: digest for name, digest in DIGESTS.items() if name.endswith("c/0/0")}
    assert {name: written[name] for name in arrays} == arrays
    assert set(written) == set(DIGESTS)
