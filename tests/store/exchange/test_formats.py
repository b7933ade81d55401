"""Variants of the formats that the frozen files do not show, each written by hand here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from span_sparse.cli.tensor_files import TorchFiles
from span_sparse.errors import ExchangeError
from span_sparse.store import FeatureStore, SlideRecord
from span_sparse.store.exchange import ImportSettings, import_slides, plan_import
from span_sparse.store.exchange.lattice_fit import fit_lattice
from span_sparse.store.exchange.lattice_step import StepKnowledge

FOREIGN = Path(__file__).parents[2] / "conformance" / "foreign"
CELLS = np.stack(np.divmod(np.arange(12), 4), 1)
XY = CELLS[:, ::-1]
FEATURES = np.arange(36, dtype=np.float32).reshape(12, 3)
COMPLETE = {
    "encoder_name": "uni", "encoder_revision": "1", "encoder_readout": "cls", "encoder_input_px": 224,
    "size_from_patches": True,
}  # fmt: skip


def h5(path: Path, attributes: dict[str, dict[str, Any]] | None = None, **datasets: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, data in datasets.items():
            file[name] = data
        for place, values in (attributes or {}).items():
            file[place].attrs.update(values)


def imported(folder: Path, name: str, **settings: Any) -> SlideRecord:
    plan = plan_import(folder, name, ImportSettings(**COMPLETE | settings))
    (outcome,) = import_slides(plan, folder.parent / "store", TorchFiles())
    assert outcome.error == ""
    return FeatureStore(folder.parent / "store").read(outcome.slide_id)


def refused(folder: Path, name: str, **settings: Any) -> str:
    plan = plan_import(folder, name, ImportSettings(**COMPLETE | settings))
    (outcome,) = import_slides(plan, folder.parent / "store", TorchFiles())
    return outcome.error


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def test_trident_pt_files_are_joined_with_their_patches(folder):
    shutil.copytree(FOREIGN / "trident", folder, dirs_exist_ok=True)
    (features,) = folder.rglob("features_uni_v1")
    with h5py.File(features / "T1.h5") as file:
        torch.save(torch.from_numpy(file["features"][...]), features / "T1.pt")
    (features / "T1.h5").unlink()
    record = imported(folder, "trident")
    assert record.features[:, 0].tolist() == [0, 3, 11, 21, 52]
    assert record.grid.tolist() == [[0, 0], [0, 3], [1, 1], [2, 1], [5, 2]]
    next(folder.rglob("T1_patches.h5")).unlink()
    assert "T1_patches.h5, which does not exist" in refused(folder, "trident")


def test_clam_pt_files_alone(folder):
    shutil.copytree(FOREIGN / "clam", folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "h5_files")
    (folder / "pt_files" / "C2.pt").unlink()
    record = imported(folder, "clam", mpp=0.25, target_mpp=1.0)
    assert record.grid.tolist() == [[0, 0], [0, 3], [1, 1], [2, 1], [5, 2]]
    assert record.lattice.origin_px0 == (100, 60)


RESCALED = {
    "patch_size": 224, "patch_level": 0, "downsample": 1.0, "output_patch_size": 224, "read_patch_size": 320,
    "level0_patch_size": 320, "level0_step_size": 300, "level0_dim": [4100, 3100], "rescale_factor": 1.42,
}  # fmt: skip
BY_LEVEL = {"patch_size": 75, "patch_level": 1, "downsample": [1.0, 4.0, 16.0], "level_dim": [1000, 750]}


@pytest.mark.parametrize(
    ("attributes", "edge", "step", "size"),
    [
        ({"patch_size": 256, "patch_level": 0, "downsample": 1.0, "level_dim": [4000, 3000]}, 256, 300, (4000, 3000)),
        (BY_LEVEL, 300, 300, (4000, 3000)),
        ({"patch_size": 150, "patch_level": 0, "downsample": [1.0, 1.0], "custom_downsample": 2}, 300, 300, None),
        (RESCALED, 320, 300, (4100, 3100)),
    ],
)
def test_how_clam_says_how_large_a_patch_is(folder, attributes, edge, step, size):
    h5(folder / "h5_files" / "C.h5", features=FEATURES, coords=(XY * 300).astype(np.int32))
    h5(folder / "patches" / "C.h5", {"coords": attributes}, coords=XY * 300)
    said = {"mpp": 0.25, "target_mpp": 0.25 * edge / attributes["patch_size"]}
    record = imported(folder, "clam", **said)
    assert (record.lattice.patch_px0, record.lattice.step_px0) == (edge, step)
    declared = record.provenance["imported"]["declared_size_px0"]
    assert declared == (None if size is None else list(size))


def test_clam_without_attributes_and_with_pictures(folder):
    pictures = np.zeros((12, 8, 8, 3), np.uint8)
    h5(folder / "C.h5", features=FEATURES, coords=(XY * 256).astype(np.int32))
    assert plan_import(folder, "auto", ImportSettings()).format.name == "clam"
    h5(folder / "patches" / "C.h5", coords=XY * 256, imgs=pictures)
    record = imported(folder, "clam", mpp=0.25, target_mpp=0.25, patch_size_px=256)
    assert record.lattice.patch_px0 == 256
    assert record.provenance["imported"]["not_kept"] == ["patches: imgs"]


def test_stamp_of_version_1_counts_224ths_of_its_tiles(folder):
    """One unit is 256/224 µm: tile (col, row) = (1, 0) is at (224, 0) and 256 µm from the edge."""
    h5(folder / "M.h5", feats=FEATURES.astype(np.float16), coords=(XY * 224).astype(np.float32))
    record = imported(folder, "stamp", mpp=0.25)
    assert record.lattice.step_px0 == 1024
    assert record.coords.tolist() == (np.array(XY)[np.lexsort(XY.T)] * 1024).tolist()
    assert record.source_coords is not None
    assert record.source_coords.dtype == np.float32


def test_stamp_in_other_units_or_of_whole_slides(folder):
    coords = (XY * 256).astype(np.float32)
    h5(folder / "M.h5", {"/": {"unit": "px"}}, feats=FEATURES, coords=coords)
    assert "coordinates are in 'px', expected 'um'" in refused(folder, "stamp", mpp=0.25)
    h5(folder / "M.h5", {"/": {"unit": "um", "feat_type": "slide"}}, feats=FEATURES[:1], coords=coords)
    assert "vectors of a whole slide" in refused(folder, "stamp", mpp=0.25)
    (folder / "uni-1234abcd").mkdir()
    (folder / "ctp-5678abcd").mkdir()
    with pytest.raises(ExchangeError, match="several runs: ctp-5678abcd, uni-1234abcd"):
        plan_import(folder, "stamp", ImportSettings())


def test_span_files_with_the_other_names(folder):
    h5(folder / "S.h5", x=FEATURES, pos=XY * 224)
    record = imported(folder, "span", mpp=0.25, target_mpp=0.5, patch_size_px=224)
    assert record.coords.tolist() == (CELLS[:, ::-1] * 448).tolist()
    h5(folder / "S.h5", x=FEATURES, pos=XY * 224 + 1)
    assert "not all multiples of 224; if they are level-0 pixels, pass --format patchpreprocess" in refused(
        folder, "span", mpp=0.25, target_mpp=0.5, patch_size_px=224
    )


def test_slideflow_with_an_npy_index_and_magnifications(folder):
    torch.save(torch.from_numpy(FEATURES), folder / "F.pt")
    np.save(folder / "F.index.npy", XY * 512 + 256)
    (folder / "bags_config.json").write_text(
        json.dumps({"extractor": {"class": "uni"}, "tile_px": 256, "tile_um": "20x"})
    )
    assert "(a number tile_um) is not in the file; pass --patch-px0" in refused(folder, "slideflow", mpp=0.25)
    record = imported(folder, "slideflow", mpp=0.25, patch_px0=512, target_mpp=0.5)
    assert record.coords.tolist() == (XY * 512).tolist()
    assert record.provenance["imported"]["declared_encoder"] == "uni"


def test_slide2vec_with_npz_embeddings(folder):
    shutil.copytree(FOREIGN / "slide2vec", folder, dirs_exist_ok=True)
    features = torch.load(folder / "tile_embeddings" / "V1.pt", weights_only=True).numpy()
    (folder / "tile_embeddings" / "V1.pt").unlink()
    np.savez(folder / "tile_embeddings" / "V1.npz", features=features)
    record = imported(folder, "slide2vec", mpp=0.25, target_mpp=0.5, patch_size_px=224)
    assert record.features[:, 0].tolist() == [0, 3, 11, 21, 52]
    np.savez(folder / "tile_embeddings" / "V1.npz", features=features, more=features)
    assert "has 2 matrices (features, more)" in refused(
        folder, "slide2vec", mpp=0.25, target_mpp=0.5, patch_size_px=224
    )


def test_several_features_in_a_file_are_chosen(folder):
    shutil.copytree(FOREIGN / "atlaspatch", folder, dirs_exist_ok=True)
    with h5py.File(folder / "patches" / "A1.h5", "a") as file:
        file["features/conch"] = FEATURES[:5, :2]
    said = {"mpp": 0.25, "target_mpp": 0.5}
    assert "--features-key: conch, uni_v1 (asked for None)" in refused(folder, "atlaspatch", **said)
    record = imported(folder, "atlaspatch", **said, features_key="conch")
    assert record.features.shape == (5, 2)
    assert "features/uni_v1" in record.provenance["imported"]["not_kept"]


def test_lazyslide_rows_are_joined_by_tile_id(folder):
    """The table's rows come in another order than the tiles; here the ids are turned round."""
    import zarr

    shutil.copytree(FOREIGN / "lazyslide", folder, dirs_exist_ok=True)
    ids = zarr.open_array(folder / "L1.zarr" / "tables" / "uni_tiles" / "obs" / "tile_id", mode="r+")
    ids[...] = np.arange(5)[::-1]
    record = imported(folder, "lazyslide")
    # tiles are (2,1) (0,0) (0,3) (5,2) (1,1), the features of row k are now those of tile 4 - k
    values = record.features[:, 0].tolist()
    found = {tuple(cell): value for cell, value in zip(record.grid.tolist(), values, strict=True)}
    assert found == {(1, 1): 21, (5, 2): 0, (0, 3): 3, (0, 0): 52, (2, 1): 11}
    ids[...] = [0, 1, 2, 3, 9]
    assert "do not name 5 tiles by a unique tile_id" in refused(folder, "lazyslide")
    shutil.copytree(folder / "L1.zarr" / "tables" / "uni_tiles", folder / "L1.zarr" / "tables" / "conch_tiles")
    assert "with --features-key: conch_tiles, uni_tiles" in refused(folder, "lazyslide")


@pytest.mark.parametrize("stride", [443.3, 443.5, 447.75, 100.3])
def test_whole_pixels_of_a_fractional_stride_are_fitted_where_a_format_rounds(stride):
    """The corner of cell k is int(k · stride); beside the true lattice by less than a pixel."""
    cells = np.stack(np.divmod(np.arange(900), 30), 1)
    coords = (cells * stride).astype(np.int64)
    fit = fit_lattice(coords, StepKnowledge(stride, 1.0, stride, 2.0))
    np.testing.assert_array_equal(fit.grid, cells[:, ::-1])
    assert fit.report["max_residual_px0"] <= 1
    assert not fit.report["exact"]


def test_histossl_needs_one_level_and_whole_addresses(folder):
    (folder / "H").mkdir()
    table = np.concatenate([np.full((12, 1), 11), XY, FEATURES], 1).astype(np.float32)
    table[3, 0] = 12
    np.save(folder / "H" / "features.npy", table)
    assert "must be one DeepZoom level" in refused(folder, "histossl", mpp=0.25, patch_size_px=224, step_px0=896)
    table[3, 0] = 11
    np.save(folder / "H" / "features.npy", table)
    assert "put columns width_px0 and height_px0" in refused(folder, "histossl", mpp=0.25, patch_size_px=224)
    record = imported(folder, "histossl", mpp=0.25, patch_size_px=224, step_px0=896)
    assert record.lattice.spec.target_mpp == 1.0


def test_slides_of_one_patch_say_where_their_step_comes_from(folder):
    h5(folder / "h5_files" / "C.h5", features=FEATURES[:1], coords=np.array([[700, 300]], np.int32))
    said = {"mpp": 0.25, "target_mpp": 0.25, "patch_size_px": 256}
    assert "pass --step" in refused(folder, "clam", **said)
    record = imported(folder, "clam", **said, step_px0=256)
    assert (record.lattice.origin_px0, record.grid.tolist()) == ((188, 44), [[1, 2]])
