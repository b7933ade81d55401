"""Files that are wrong, incomplete or hostile are refused with the file and the way out in one line."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from span_sparse.cli.tensor_files import TorchFiles
from span_sparse.cohort import read_cohort
from span_sparse.errors import CohortError, ExchangeError, SpanError
from span_sparse.store import FeatureStore
from span_sparse.store.exchange import ImportSettings, export_slides, import_slides, plan_import
from span_sparse.store.exchange.numpy_files import read_npy, read_npz

COMPLETE = {
    "encoder_name": "uni", "encoder_revision": "1", "encoder_readout": "cls", "encoder_input_px": 224,
}  # fmt: skip
XY = np.stack(np.divmod(np.arange(12), 4), 1)[:, ::-1]
ATTRIBUTES = {
    "patch_size": 224, "patch_size_level0": 448, "level0_magnification": 40, "target_magnification": 20, "overlap": 0,
    "level0_width": 4000, "level0_height": 3600,
}  # fmt: skip


def trident(folder: Path, features: Any = None, coords: Any = None, **changes: Any) -> Path:
    """A folder with one slide; a changed attribute of None is left out."""
    path = folder / "features_uni" / "T.h5"
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        file["features"] = np.ones((12, 3), np.float32) if features is None else features
        file["coords"] = XY * 448 if coords is None else coords
        attributes = {key: value for key, value in (ATTRIBUTES | changes).items() if value is not None}
        file["coords"].attrs.update(attributes)
    return path


def error_of(folder: Path, name: str = "trident", cohort: str | None = None, **settings: Any) -> str:
    """The one slide's error, empty when it could be imported."""
    table = None
    if cohort is not None:
        (folder / "cohort.csv").write_text(cohort)
        table = read_cohort(folder / "cohort.csv")
    plan = plan_import(folder, name, ImportSettings(**COMPLETE | settings), table)
    (outcome,) = import_slides(plan, folder / "store", TorchFiles())
    assert (outcome.error == "") == (FeatureStore(folder / "store").slide_ids == (outcome.slide_id,))
    return outcome.error


def test_a_good_file_is_imported(tmp_path):
    trident(tmp_path)
    assert error_of(tmp_path) == ""


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.ones((12, 3)), r"float64, expected float16 or float32.*astype"),
        (np.ones((12, 3), np.int32), "int32, expected float16"),
        (np.ones(3, np.float32), r"\[3\], expected \[patches, channels\]; vectors of whole slides"),
        (np.ones((1, 12, 3), np.float32), r"\[1, 12, 3\], expected"),
        (np.ones((0, 3), np.float32), "no patches"),
        (np.ones((0,), np.float32), "no patches"),
        (np.full((12, 3), np.nan, np.float32), "features of 12 of 12 patches hold NaN"),
        (np.ones((11, 3), np.float32), "'coords' is .*12, 2.*, but there are 11 rows of features"),
        (np.array([b"a"]), "expected numbers"),
    ],
)
def test_features(tmp_path, features, message):
    trident(tmp_path, features)
    assert re.search(message, error_of(tmp_path))


@pytest.mark.parametrize(
    ("coords", "settings", "message"),
    [
        ((XY * 448).T, {}, "one row per patch is expected: the files belong to different runs, or the array is transp"),
        (XY * 448 + [[7, 0]], {}, ""),
        (
            XY * 448 + np.array([[9, 0]]) * np.eye(12, 1, -5, int),
            {},
            "off the lattice of step 448 px; origins (x, y)",
        ),
        (XY * 512, {}, "a step of 448 px is stated, but neighbours lie 512 px apart"),
        (XY[:, ::-1] * [448, 448] + [0, 3500], {}, "with x and y exchanged"),
        (XY * 448 + [448 * 20, 0], {}, "are these level-0 pixels of this slide?"),
        (XY * 448.5, {}, "fractions of pixels"),
        (XY * 448 - [448, 0], {}, "3 of 12 coordinates are negative"),
        (XY * 448 - [448, 0], {"drop": True}, ""),
        (XY[:, ::-1] * [448, 448] + [0, 3500], {"transposed": True}, ""),
    ],
)
def test_coordinates(tmp_path, coords, settings, message):
    trident(tmp_path, coords=coords)
    if "exchanged" in message or "transposed" in settings:
        trident(tmp_path, coords=coords, level0_width=6000, level0_height=2000)
    error = error_of(tmp_path, **settings)
    assert (message in error) if message else error == ""
    assert "\n" not in error
    assert message == "" or "T.h5" in error


def test_what_nobody_says_is_asked_for(tmp_path):
    trident(tmp_path, level0_magnification="None")
    assert "put them into the column `mpp` of the cohort table, or pass --mpp" in error_of(tmp_path)
    trident(tmp_path, target_magnification=None)
    assert "pass --target-mpp" in error_of(tmp_path)
    trident(tmp_path, patch_size=None)
    assert "pass --patch-size" in error_of(tmp_path)
    trident(tmp_path, level0_width=None)
    error = error_of(tmp_path)
    assert "columns width_px0 and height_px0" in error
    assert "--size-from-patches" in error


def test_the_encoder_is_asked_for_all_at_once(tmp_path):
    trident(tmp_path)
    plan = plan_import(tmp_path, "trident", ImportSettings())
    (outcome,) = import_slides(plan, tmp_path / "store", TorchFiles())
    assert "pass --encoder-name, --encoder-revision, --encoder-readout, --encoder-input" in outcome.error


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"mpp": 2.5}, ""),  # the file's own magnification goes first
        ({"level0_magnification": None}, {"mpp": 2.5}, "a patch of 448 px of level 0 at 2.5 µm/px"),
        ({"level0_magnification": None}, {"mpp": 264.0}, "264 µm/px (from option --mpp) is implausible"),
        ({"level0_magnification": 20}, {}, "correct the µm per pixel of the slide, --target-mpp or --patch-size"),
        ({"patch_size_level0": "many"}, {}, "'patch_size_level0' of the coordinates is 'many', expected a number"),
        ({"patch_size": -224}, {}, "must be positive"),
    ],
)
def test_contradictions(tmp_path, changes, settings, message):
    trident(tmp_path, **changes)
    error = error_of(tmp_path, **settings)
    assert (message in error) if message else error == ""


def test_the_cohort_table_wins_and_is_recorded(tmp_path):
    trident(tmp_path)
    table = "slide_id,case_id,mpp,width_px0,height_px0\nT,p7,0.2527,5000,4000\n"
    assert error_of(tmp_path, cohort=table) == ""
    record = FeatureStore(tmp_path / "store").read("T")
    assert (record.case_id, record.lattice.slide_mpp, record.mpp_source) == ("p7", 0.2527, "cohort")
    assert (record.width_px0, record.height_px0) == (5000, 4000)
    imported = record.provenance["imported"]
    assert imported["declared_size_px0"] == [4000, 3600]
    assert imported["sources"]["size"] == "cohort"


def test_a_slide_smaller_than_its_patches_keeps_what_was_declared(tmp_path):
    trident(tmp_path, level0_width=1700, level0_height=1300)
    assert error_of(tmp_path) == ""
    record = FeatureStore(tmp_path / "store").read("T")
    assert (record.width_px0, record.height_px0) == (4 * 448, 3 * 448)
    imported = record.provenance["imported"]
    assert imported["declared_size_px0"] == [1700, 1300]
    assert imported["sources"]["size"].startswith("extent of the patches, beyond the declared 1700 × 1300")


def test_sizes_in_the_table_must_be_numbers(tmp_path):
    trident(tmp_path)
    with pytest.raises(CohortError, match="column 'width_px0': expected a number of pixels, found '4e3' for slide 'T'"):
        error_of(tmp_path, cohort="slide_id,width_px0,height_px0\nT,4e3,4000\n")


def replace_dataset(path: Path, make: Any) -> None:
    with h5py.File(path, "a") as file:
        del file["features"]
        make(file)


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((12, 3), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (12, 3))
    file.create_virtual_dataset("features", layout)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda file: file.__setitem__("features", h5py.ExternalLink("/etc/passwd", "/x")),
            "is a link to another place",
        ),
        (lambda file: file.__setitem__("features", h5py.SoftLink("/coords")), "is a link to another place"),
        (_virtual, "lies in other files"),
        (
            lambda file: file.create_dataset("features", (12, 3), "f4", external=[("outside.raw", 0, 144)]),
            "lies in other files",
        ),
        # claims, nothing written: contiguous, chunked, and compressed
        (lambda file: file.create_dataset("features", (12, 3), "f4"), "only 0 bytes of it were written"),
        (lambda file: file.create_dataset("features", (2**40, 3), "f4", chunks=(1024, 3)), "the file is incomplete"),
        (
            lambda file: file.create_dataset("features", (2**40, 3), "f4", chunks=(2**20, 3), compression="gzip"),
            "the file is incomplete",
        ),
        (lambda file: file.create_group("features"), "there is no dataset 'features'"),
    ],
)
def test_hdf5_that_leads_away_or_claims_too_much(tmp_path, make, message):
    (tmp_path / "outside.raw").write_bytes(b"\1" * 144)
    replace_dataset(trident(tmp_path), make)
    assert message in error_of(tmp_path)


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_chunk_that_was_never_written_is_not_zeros(tmp_path, compression):
    def make(file: h5py.File) -> None:
        features = file.create_dataset("features", (12, 3), "f4", chunks=(1, 3), compression=compression)
        features[:11] = 1  # killed before the last one

    replace_dataset(trident(tmp_path), make)
    assert "the file is incomplete, write it again" in error_of(tmp_path)


@pytest.mark.parametrize("keep", [0, 10, 2000, -1])
def test_truncated_files(tmp_path, keep):
    path = trident(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} cannot be read as HDF5" in error_of(tmp_path)


def npy_claiming(shape: tuple[int, ...], data: bytes = b"\0" * 64, dtype: str = "<f4") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (117 - len(header)) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy_claiming((2**40, 4)), "claims float32"),
        (npy_claiming((3, 4)), "but the file has 192 bytes"),
        (npy_claiming((2,), dtype="|O"), "objects are never unpickled"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': open(1)}", "is not an array in NumPy's format"),
        (b"", "is not an array"),
        (pickle.dumps([1]), "is not an array"),
    ],
)
def test_npy_files(tmp_path, content, message):
    path = tmp_path / "features.npy"
    path.write_bytes(content)
    with pytest.raises(ExchangeError, match=message):
        read_npy(path)


def test_an_npz_that_unpacks_to_much_more(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", npy_claiming((2**22,), b"\0" * 2**24))
    with pytest.raises(ExchangeError, match="claims to unpack to 16777344 bytes; refused"):
        read_npz(path)
    path.write_bytes(b"PK\3\4 nonsense")
    with pytest.raises(ExchangeError, match="cannot be read as an archive"):
        read_npz(path)


class Harm:
    def __reduce__(self):
        return (Path.touch, (Path("harmed"),))


def clam_pt(folder: Path, content: Any) -> None:
    (folder / "pt_files").mkdir()
    (folder / "patches").mkdir()
    torch.save(content, folder / "pt_files" / "C.pt")
    with h5py.File(folder / "patches" / "C.h5", "w") as file:
        file["coords"] = XY * 256
        file["coords"].attrs.update({"patch_size": 256, "patch_level": 0, "downsample": 1.0, "level_dim": [4000, 4000]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(12, 3), ""),
        (torch.ones(12, 3, dtype=torch.bfloat16), "is bfloat16, expected float16 or float32"),
        (torch.ones(1).as_strided((2**30, 2**10), (0, 0)), "but the file has"),
        ({"features": torch.ones(12, 3)}, "holds a dict; only one tensor"),
        (Harm(), "cannot be read as a tensor"),
        (torch.ones(12, 3).to_sparse(), "claims"),
    ],
)
def test_pt_files(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    clam_pt(tmp_path, content)
    error = error_of(tmp_path, "clam", mpp=0.25, target_mpp=0.25)
    assert (message in error) if message else error == ""
    assert not (tmp_path / "harmed").exists()


def test_a_compressed_pt_file_is_refused(tmp_path):
    clam_pt(tmp_path, torch.ones(12, 3))
    path = tmp_path / "pt_files" / "C.pt"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    assert "is a compressed archive" in error_of(tmp_path, "clam", mpp=0.25, target_mpp=0.25)


def test_pickles_are_never_loaded(tmp_path):
    (tmp_path / "S.pkl").write_bytes(pickle.dumps([Harm()]))
    for name in ("auto", "span"):
        with pytest.raises(ExchangeError, match=r"holds \.pkl files.*never loaded here"):
            plan_import(tmp_path, name, ImportSettings())
    assert not Path("harmed").exists()


def test_clam_coordinates_of_another_run(tmp_path):
    (tmp_path / "h5_files").mkdir()
    clam_pt(tmp_path, torch.ones(12, 3))
    with h5py.File(tmp_path / "h5_files" / "C.h5", "w") as file:
        file["features"], file["coords"] = np.ones((12, 3), np.float32), (XY * 256 + 1).astype(np.int32)
    assert "have different coordinates; the features were made from other patches" in error_of(
        tmp_path, "clam", mpp=0.25, target_mpp=0.25
    )


def test_annotation_ratios_need_their_class(tmp_path):
    with h5py.File(tmp_path / "S.h5", "w") as file:
        file["feats"], file["cords"] = np.ones((12, 3), np.float32), XY * 224
        file["ratios"] = np.zeros(12, np.float32)
    said = {"mpp": 0.5, "target_mpp": 0.5, "patch_size_px": 224, "size_from_patches": True}
    assert "pass --ratio-class" in error_of(tmp_path, "span", **said)
    assert error_of(tmp_path, "span", **said, ratio_class="tumour") == ""


def test_what_a_folder_is_must_be_clear(tmp_path):
    with pytest.raises(ExchangeError, match="no features of a known format were seen"):
        plan_import(tmp_path, "auto", ImportSettings())
    with pytest.raises(ExchangeError, match="no such folder"):
        plan_import(tmp_path / "absent", "auto", ImportSettings())
    with pytest.raises(ExchangeError, match="holds no slides of format trident"):
        plan_import(tmp_path, "trident", ImportSettings())
    with pytest.raises(ExchangeError, match="there is no format 'tridnet'; expected one of trident, clam"):
        plan_import(tmp_path, "tridnet", ImportSettings())
    trident(tmp_path)
    clam_pt(tmp_path, torch.ones(12, 3))
    with pytest.raises(
        ExchangeError, match=r"several formats \(trident: features and coords with .*; clam: a folder pt"
    ):
        plan_import(tmp_path, "auto", ImportSettings())
    with h5py.File(tmp_path / "S.h5", "w") as file:
        file["feats"], file["cords"] = np.ones((12, 3), np.float32), XY * 448
    (tmp_path / "features_uni" / "T.h5").unlink()
    (tmp_path / "features_other").mkdir()
    with pytest.raises(ExchangeError, match="several folders of features: features_other, features_uni"):
        plan_import(tmp_path, "trident", ImportSettings())


def test_cords_448_apart_may_be_pixels_or_cells(tmp_path):
    with h5py.File(tmp_path / "S.h5", "w") as file:
        file["feats"], file["cords"] = np.ones((12, 3), np.float32), XY * 448
    with pytest.raises(ExchangeError, match=r"several formats \(span: .*; patchpreprocess: .* 448 px apart"):
        plan_import(tmp_path, "auto", ImportSettings())


@pytest.mark.parametrize("document", ["[]", "{", '{"coordinate_space": "um"}'])
def test_descriptions_that_are_not_theirs(tmp_path, document):
    (tmp_path / "tile_embeddings").mkdir()
    (tmp_path / "tiles").mkdir()
    torch.save(torch.ones(12, 3), tmp_path / "tile_embeddings" / "V.pt")
    np.savez(tmp_path / "tiles" / "V.coordinates.npz", x=XY[:, 0], y=XY[:, 1])
    (tmp_path / "tile_embeddings" / "V.meta.json").write_text(document)
    assert "V.meta.json" in error_of(tmp_path, "slide2vec", mpp=0.5)


def test_lazyslide_that_leads_away_or_is_of_another_kind(tmp_path):
    source = Path(__file__).parents[2] / "conformance" / "foreign" / "lazyslide"
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    root = tmp_path / "L1.zarr"
    assert error_of(tmp_path, "lazyslide") == ""
    shutil.rmtree(tmp_path / "store")
    document = root / "tables" / "uni_tiles" / "X" / "zarr.json"
    good = json.loads(document.read_text())
    for change, message in (
        ({"codecs": [{"name": "pickle"}]}, "codecs pickle is refused"),
        ({"data_type": "object"}, "is refused"),
        ({"shape": [2**40, 3]}, "it is incomplete"),
        ({"shape": "many"}, "is not an array of numbers"),
    ):
        document.write_text(json.dumps(good | change))
        assert message in error_of(tmp_path, "lazyslide")
    document.write_text(json.dumps(good))
    attributes = json.loads((root / "zarr.json").read_text())
    attributes["attributes"]["slide_properties"] = [1]
    (root / "zarr.json").write_text(json.dumps(attributes))
    assert "is not what format lazyslide says" in error_of(tmp_path, "lazyslide")
    parquet = root / "shapes" / "tiles" / "shapes.parquet"
    parquet.write_bytes(b"PAR1 nonsense PAR1")
    attributes["attributes"]["slide_properties"] = {}
    (root / "zarr.json").write_text(json.dumps(attributes))
    assert "cannot be read as GeoParquet" in error_of(tmp_path, "lazyslide")
    parquet.unlink()
    parquet.symlink_to("/etc/passwd")
    assert "is a link; refused" in error_of(tmp_path, "lazyslide")


def test_a_slide_id_cannot_lead_out_of_the_export_folder(tmp_path):
    trident(tmp_path)
    (tmp_path / "features_uni" / "T.h5").rename(tmp_path / "features_uni" / "x.h5")
    plan = plan_import(tmp_path, "trident", ImportSettings(**COMPLETE))
    store = FeatureStore.create(tmp_path / "store")
    list(import_slides(plan, store.path, TorchFiles()))
    for slide_id in ("../../x", "/tmp/x", "a/../../x"):
        store.write(replace(store.read("x"), slide_id=slide_id))
    outcomes = list(export_slides(store, store.slide_ids, "trident", tmp_path / "deep" / "out", TorchFiles()))
    failed = {one.slide_id for one in outcomes if "leads out of the folder" in one.error}
    assert failed == {"../../x", "/tmp/x", "a/../../x"}
    assert [path.name for path in (tmp_path / "deep").rglob("*.h5")] == ["x.h5"]
    assert not (tmp_path / "x.h5").exists()


def test_every_refusal_is_a_user_s_error():
    assert issubclass(ExchangeError, SpanError)
