"""What comes in from a system goes back to it with the same arrays, byte for byte, and the same attributes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import zarr

from span_sparse.cli.tensor_files import TorchFiles
from span_sparse.cohort import read_cohort
from span_sparse.store import FeatureStore
from span_sparse.store.exchange import FORMAT_NAMES, ImportSettings, export_slides, import_slides, plan_import

FOREIGN = Path(__file__).parents[2] / "conformance" / "foreign"
SETTINGS = ImportSettings(
    mpp=0.2527, encoder_name="uni", encoder_revision="1", encoder_readout="cls", encoder_input_px=224,
    size_from_patches=True, ratio_class="tumour", per_contour=False,
)  # fmt: skip
SAID: dict[str, dict[str, Any]] = {
    "clam": {"target_mpp": 1.0, "per_contour": True},
    "span": {"target_mpp": 0.5, "patch_size_px": 224},
    "patchpreprocess": {"target_mpp": 0.5, "patch_size_px": 224},
    "span-st": {"target_mpp": 0.5, "patch_size_px": 224},
    "atlaspatch": {"target_mpp": 0.5},
    "slide2vec": {"target_mpp": 0.5, "patch_size_px": 224},
    "histossl": {"patch_size_px": 224, "step_px0": 896},
}
NOT_KEPT = {"span-st": ["gene: mol_feats"]}


def settings(name: str) -> ImportSettings:
    return ImportSettings(**SETTINGS.as_dict() | SAID.get(name, {}))


def contents(path: Path) -> dict[str, Any]:
    """Every array and attribute of a file, read with the library that owns the format."""
    if path.suffix == ".h5":
        found: dict[str, Any] = {}

        def visit(name: str, node: Any) -> None:
            found.update({f"{name}@{key}": value for key, value in node.attrs.items()})
            if isinstance(node, h5py.Dataset):
                found[name] = node[()]

        with h5py.File(path) as file:
            visit("/", file)
            file.visititems(visit)
        return found
    if path.suffix == ".npz":
        return dict(np.load(path))
    if path.suffix == ".npy":
        return {"array": np.load(path)}
    if path.suffix == ".pt":
        return {"tensor": torch.load(path, weights_only=True).numpy()}
    if path.suffix == ".json":
        return {"json": json.loads(path.read_text())}
    parquet = pytest.importorskip("pyarrow.parquet")
    frame = parquet.read_table(path / "shapes/tiles/shapes.parquet").to_pydict()
    shapely = pytest.importorskip("shapely")
    frame["geometry"] = shapely.to_wkt(shapely.normalize(shapely.from_wkb(frame["geometry"]))).tolist()
    root = zarr.open_group(path, mode="r")
    table = root["tables/uni_tiles"]
    return {
        "X": table["X"][...],
        "tile_id": table["obs/tile_id"][...],
        "uns": dict(table.attrs),
        "root": {key: value for key, value in root.attrs.items() if key != "spatialdata_attrs"},
        **frame,
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert sorted(before) == sorted(after)
    for name, value in before.items():
        if isinstance(value, (np.ndarray, np.generic)):
            assert (value.dtype, value.shape) == (after[name].dtype, after[name].shape), name
            assert value.tobytes() == after[name].tobytes() or value.dtype.kind == "O", name
        if isinstance(value, np.ndarray) and value.dtype.kind == "O":
            assert value.tolist() == after[name].tolist(), name
        if not isinstance(value, np.ndarray):
            assert value == after[name], name


def round_trip(
    name: str, folder: Path, tmp_path: Path
) -> tuple[dict[str, tuple[Path, ...]], dict[str, tuple[Path, ...]]]:
    """Import and export; the files of each slide before and after."""
    before = plan_import(folder, name, settings(name))
    assert [one.error for one in import_slides(before, tmp_path / "store", TorchFiles())] == [""] * len(before.requests)
    store = FeatureStore(tmp_path / "store")
    exported = export_slides(store, store.slide_ids, name, tmp_path / "out", TorchFiles())
    assert [one.error for one in exported] == [""] * len(before.requests)
    after = plan_import(tmp_path / "out", "auto" if name != "patchpreprocess" else name, settings(name))
    assert after.format.name == name
    return before.files, after.files


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_the_same_arrays_and_attributes_come_out(name, tmp_path):
    before, after = round_trip(name, FOREIGN / name, tmp_path)
    assert sorted(before) == sorted(after)
    for slide, files in before.items():
        for old, new in zip(files, after[slide], strict=True):
            old_contents = contents(old)
            for dropped in NOT_KEPT.get(name, []):
                place, key = dropped.split(": ")
                if place in old.parts:
                    del old_contents[key]
            assert_same(old_contents, contents(new))


@pytest.mark.parametrize("target", FORMAT_NAMES)
def test_every_format_takes_what_another_system_made(target, tmp_path):
    """TRIDENT's frozen slide without overlap, through the target's files, into a second store: the same patches."""
    job = tmp_path / "features_uni"
    job.mkdir()
    random = np.random.default_rng(3)
    cells = random.permutation(np.stack(np.divmod(np.arange(64), 8), 1))[:40]
    features = random.standard_normal((40, 7)).astype(np.float32)
    with h5py.File(job / "T.h5", "w") as file:
        file["features"] = features
        file["coords"] = cells * 448
        file["coords"].attrs.update(
            {
                "patch_size": 224, "patch_size_level0": 448, "level0_magnification": 40, "target_magnification": 20,
                "overlap": 0, "level0_width": 4000, "level0_height": 3600,
            }
        )  # fmt: skip
    said = settings("trident").as_dict() | {"mpp": 0.25, "target_mpp": 0.5, "patch_size_px": 224}
    (tmp_path / "cohort.csv").write_text("slide_id,width_px0,height_px0\nT,4000,3600\n")
    cohort = read_cohort(tmp_path / "cohort.csv")
    plan = plan_import(job, "trident", ImportSettings(**said), cohort)
    assert [one.error for one in import_slides(plan, tmp_path / "first", TorchFiles())] == [""]
    first = FeatureStore(tmp_path / "first")
    assert [one.error for one in export_slides(first, ["T"], target, tmp_path / "out", TorchFiles())] == [""]
    # what a format does not state and cannot: a step the other way round
    plan = plan_import(tmp_path / "out", target, ImportSettings(**said), cohort)
    assert [one.error for one in import_slides(plan, tmp_path / "second", TorchFiles())] == [""]
    one, two = first.read("T"), FeatureStore(tmp_path / "second").read("T")
    assert two.features.tobytes() == one.features.tobytes()
    np.testing.assert_array_equal(two.grid, one.grid)
    np.testing.assert_array_equal(two.coords, one.coords)
    assert two.lattice == one.lattice
    order = np.argsort(np.asarray(two.source_rows)[:, 0])
    np.testing.assert_array_equal(two.coords[order], cells * 448)  # rows left in TRIDENT's order
    assert (two.width_px0, two.height_px0) == (4000, 3600)


def test_export_for_the_authors_loader_writes_224_times_the_cell(tmp_path):
    """Whatever the lattice: their loader divides by 224 and must find whole, different cells."""
    plan = plan_import(FOREIGN / "patchpreprocess", "auto", settings("patchpreprocess"))
    list(import_slides(plan, tmp_path / "store", TorchFiles()))
    store = FeatureStore(tmp_path / "store")
    assert [one.error for one in export_slides(store, ["P1"], "span", tmp_path / "out", TorchFiles())] == [""]
    with h5py.File(tmp_path / "out" / "P1.h5") as file:
        cords = file["cords"][...]
        assert cords.dtype == np.int64
        assert (cords / 224).tolist() == [[1, 2], [0, 0], [3, 0], [2, 5], [1, 1]]
        assert file["feats"].dtype == np.float32


def test_rows_that_were_dropped_stay_away_and_the_others_keep_their_order(tmp_path):
    job = tmp_path / "features_uni"
    job.mkdir()
    coords = np.array([[512, 0], [0, 0], [512, 0], [0, 256], [256, 7]])
    with h5py.File(job / "D.h5", "w") as file:
        file["features"] = np.arange(10, dtype=np.float32).reshape(5, 2)
        file["contour"] = np.array([7, 6, 5, 4, 3], np.int16)
        file["coords"] = coords
        file["coords"].attrs.update(
            {"patch_size": 256, "patch_size_level0": 256, "target_magnification": 40, "overlap": 0}
        )
    said = ImportSettings(**SETTINGS.as_dict() | {"drop": True})
    plan = plan_import(job, "trident", said)
    (outcome,) = import_slides(plan, tmp_path / "store", TorchFiles())
    assert outcome.error == ""
    assert (outcome.report["off_lattice"], outcome.report["doubled"], outcome.report["dropped"]) == (1, 1, 2)
    list(export_slides(FeatureStore(tmp_path / "store"), ["D"], "trident", tmp_path / "out", TorchFiles()))
    with h5py.File(tmp_path / "out" / "D.h5") as file:
        assert file["coords"][...].tolist() == [[512, 0], [0, 0], [0, 256]]
        assert file["features"][:, 0].tolist() == [0, 2, 6]
        assert file["contour"][...].tolist() == [7, 6, 4]
