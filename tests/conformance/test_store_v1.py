from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import zarr

from span_sparse.grid import Lattice, LatticeSpec
from span_sparse.store import FeatureStore, SlideMetadata, validate_store
from span_sparse.types import EncoderIdentity

HERE = Path(__file__).parent
STORE = HERE / "store_v1"
TCGA, BLOCK = "TCGA-3C-AALI.1+1ff", "Block=207=2fFl=c3=a4che+21"
DIGESTS = {
    f"{BLOCK}/coords/c/0/0": "38abe76b4021fc3c688d51b019b7c5f9b7469ff929d58cf9f9755754028f1a88",
    f"{BLOCK}/features/c/0/0": "e5cec93061d49e724c38065bd62932c30249b065c2dcd044d21c1ef6049a49f0",
    f"{BLOCK}/grid/c/0/0": "4bfe717906e6c69951b3e4e2c4c59963abd43dd469602b2b119df553b2e2b0f0",
    f"{TCGA}/coords/c/0/0": "fa86c04a0b32b5ab92a8413303e2e1269c27b5b924bbc2a81aec4d51a02f45ab",
    f"{TCGA}/features/c/0/0": "3de6961fed47fc789ff29d3544b375e7c9d53f28b2f86ef291c58b80cccf9872",
    f"{TCGA}/grid/c/0/0": "26347bdb0d965bb3f48eedb2edec5fbad4cc1a7079800a055d95226fccd8ac3c",
}
METADATA_DIGESTS = {
    "zarr.json": "bb294af209be95567e919d22e1b572b836171f5a24d06832578b652b69d325b4",
    f"{BLOCK}/zarr.json": "ff556594b44f5798b13e487ab9087c9d567ec783fb7a58dd0810a80bf5512633",
    f"{BLOCK}/coords/zarr.json": "7dc6e5795949f2d03dfd32f60b968ba9d34fb5f5a79ba86f5b0f60969365af92",
    f"{BLOCK}/features/zarr.json": "957d3538e2e658c65940e0f50c75d70a8eaf3eeccad04abc06b07931c8d56085",
    f"{BLOCK}/grid/zarr.json": "8960d1a850bb18431f82815cc1fc70652aa875cd5293e0d3a7af2a1ad3f02149",
    f"{TCGA}/zarr.json": "a56d3df3b7b0fc3279451fb57a08373a226b58985f993ef269598a4c5fff1b94",
    f"{TCGA}/coords/zarr.json": "bac9d9abb716c32be584f953f2f48b5e000c060e594fea61e8d4861906307ecb",
    f"{TCGA}/features/zarr.json": "6ee0931b3ec0a359f4fc4440387469e2b950e6ea91e383f04e4a01991e049a00",
    f"{TCGA}/grid/zarr.json": "18e6d76387db3953717085815bf7aec501d3de3511f4f57b29a9cb9f6bc0cbf1",
}
FEATURES = [[0, 0.25, -0.5], [3, 3.25, 2.5], [21, 21.25, 20.5], [52, 52.25, 51.5]]
GRID = [[0, 0], [0, 3], [2, 1], [5, 2]]
COORDS = [[0, 0], [1329, 0], [443, 886], [886, 2215]]


def digests(folder: Path, names: dict[str, str]) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def test_no_file_of_the_frozen_store_has_changed():
    assert digests(STORE, DIGESTS | METADATA_DIGESTS) == DIGESTS | METADATA_DIGESTS
    files = {path.relative_to(STORE).as_posix() for path in STORE.rglob("*") if path.is_file()}
    assert files == set(DIGESTS | METADATA_DIGESTS)


def test_frozen_store_reads_with_its_values():
    store = FeatureStore(STORE)
    assert store.slide_ids == ("Block 7/Fläche", "TCGA-3C-AALI.1")
    assert store.common_identity() == (
        EncoderIdentity("conformance", "1", "by-hand", 3, 224, 0.5, "float16"),
        LatticeSpec(224, 0.5),
    )
    record = store.read("TCGA-3C-AALI.1")
    np.testing.assert_array_equal(record.features, np.array(FEATURES, np.float16), strict=True)
    np.testing.assert_array_equal(record.grid, np.array(GRID, np.int32), strict=True)
    np.testing.assert_array_equal(record.coords, np.array(COORDS, np.int64), strict=True)
    assert record.metadata() == SlideMetadata(
        slide_id="TCGA-3C-AALI.1",
        case_id="TCGA-3C",
        num_patches=4,
        lattice=Lattice(LatticeSpec(224, 0.5), 0.2527, 443),
        mpp_source="openslide",
        encoder=EncoderIdentity("conformance", "1", "by-hand", 3, 224, 0.5, "float16"),
        slide_checksum="sha256:" + "0" * 64,
        width_px0=4000,
        height_px0=3000,
        provenance={"script": "tests/conformance/make_store_v1.py"},
    )
    other = store.read("Block 7/Fläche")
    assert (other.case_id, other.features.tolist(), other.coords.tolist()) == (None, [[11, 11.25, 10.5]], [[224, 224]])
    assert validate_store(STORE) == []


@pytest.mark.parametrize(("name", "expected"), [("features", FEATURES), ("grid", GRID), ("coords", COORDS)])
def test_plain_zarr_reads_the_same_values(name, expected):
    assert zarr.open_array(STORE / TCGA / name, mode="r")[...].tolist() == expected


def test_bytes_on_disk_are_what_the_format_says():
    """The features' file by hand: little-endian values, their CRC-32C, then (offset, length) and its CRC-32C."""
    data = (STORE / TCGA / "features" / "c" / "0" / "0").read_bytes()
    assert data[:24] == np.array(FEATURES, "<f2").tobytes()
    assert data[28:44] == np.array([0, 28], "<u8").tobytes()
    assert len(data) == 48


def test_writing_the_same_records_gives_the_same_array_files(tmp_path):
    spec = importlib.util.spec_from_file_location("make_store_v1", HERE / "make_store_v1.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(tmp_path / "store")
    assert digests(tmp_path / "store", DIGESTS) == DIGESTS
