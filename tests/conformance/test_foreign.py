"""The frozen files of every foreign format give the values that are written out here by hand."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from span_sparse.cli.tensor_files import TorchFiles
from span_sparse.cohort import read_cohort
from span_sparse.store import FeatureStore, validate_store
from span_sparse.store.exchange import FORMAT_NAMES, ImportSettings, import_slides, plan_import

HERE = Path(__file__).parent / "foreign"
SOURCE_CELLS = [[2, 1], [0, 0], [0, 3], [5, 2], [1, 1]]
CELLS = [[0, 0], [0, 3], [1, 1], [2, 1], [5, 2]]
SOURCE_ROWS = [[1], [2], [4], [0], [3]]
FEATURES = [[0, 0.25, -0.5], [3, 3.25, 2.5], [11, 11.25, 10.5], [21, 21.25, 20.5], [52, 52.25, 51.5]]
ENCODER = {
    "encoder_name": "uni", "encoder_revision": "1", "encoder_readout": "cls", "encoder_input_px": 224,
    "size_from_patches": True,
}  # fmt: skip

# format: slide, what the user has to say, dtype, step, origin, patch edge, slide's µm/px and who says so
EXPECTED: dict[str, tuple[str, dict[str, Any], str, int, tuple[int, int], int, float, str]] = {
    "trident": ("T1", {}, "float16", 384, (0, 0), 448, 0.25, "level0_magnification"),
    "clam": ("C1", {"mpp": 0.25, "target_mpp": 1.0}, "float32", 1024, (100, 60), 1024, 0.25, "option --mpp"),
    "span": (
        "S1", {"mpp": 0.2527, "target_mpp": 0.5, "patch_size_px": 224, "ratio_class": "tumour"}, "float32", 443,
        (0, 0), 443, 0.2527, "option --mpp",
    ),
    "patchpreprocess": (
        "P1", {"mpp": 0.2631, "target_mpp": 0.5, "patch_size_px": 224}, "float32", 426, (0, 0), 426, 0.2631,
        "option --mpp",
    ),
    "span-st": (
        "ST1", {"mpp": 0.2527, "target_mpp": 0.5, "patch_size_px": 224}, "float32", 443, (0, 0), 443, 0.2527,
        "option --mpp",
    ),
    "stamp": ("site a/M1", {"mpp": 0.2527}, "float16", 1014, (0, 0), 1013, 0.2527, "option --mpp"),
    "slideflow": ("F1", {"mpp": 0.2527}, "float32", 1195, (17, 900), 1195, 0.2527, "option --mpp"),
    "lazyslide": ("L1", {}, "float32", 128, (0, 0), 128, 0.5, "slide_properties.mpp"),
    "atlaspatch": ("A1", {"mpp": 0.25, "target_mpp": 0.5}, "float32", 512, (0, 0), 512, 0.25, "option --mpp"),
    "slide2vec": (
        "V1", {"mpp": 0.25, "target_mpp": 0.5, "patch_size_px": 224}, "float16", 448, (0, 0), 448, 0.25, "option --mpp",
    ),
    "histossl": (
        "H1", {"mpp": 0.25, "patch_size_px": 224}, "float32", 896, (0, 0), 896, 0.25, "option --mpp",
    ),
}  # fmt: skip


def test_every_format_has_frozen_files():
    assert set(EXPECTED) == set(FORMAT_NAMES) == {path.name for path in HERE.iterdir() if path.is_dir()}


def test_no_frozen_file_has_changed():
    lines = (HERE / "SHA256SUMS").read_text().splitlines()
    pinned = {name: digest for digest, name in (line.split("  ./", 1) for line in lines)}
    found = {
        path.relative_to(HERE).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in HERE.rglob("*")
        if path.is_file() and path.suffix != ".py" and path.name != "SHA256SUMS" and "__pycache__" not in path.parts
    }
    assert found == pinned


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_frozen_files_give_their_values(name, tmp_path):
    slide_id, said, dtype, step, origin, edge, mpp, mpp_source = EXPECTED[name]
    (tmp_path / "cohort.csv").write_text(f"slide_id,case_id,width_px0,height_px0\n{slide_id},case 7,4000,6000\n")
    cohort = read_cohort(tmp_path / "cohort.csv") if name == "histossl" else None
    plan = plan_import(HERE / name, "auto", ImportSettings(**ENCODER | said), cohort)
    assert plan.format.name == name
    assert plan.evidence
    outcomes = {one.slide_id: one for one in import_slides(plan, tmp_path / "store", TorchFiles())}
    assert outcomes[slide_id].error == ""
    record = FeatureStore(tmp_path / "store").read(slide_id)
    assert record.features.dtype == dtype
    assert record.features.tolist() == FEATURES
    assert record.grid.tolist() == CELLS
    assert record.coords.tolist() == [[origin[0] + col * step, origin[1] + row * step] for row, col in CELLS]
    assert record.lattice.step_px0 == step
    assert record.lattice.origin_px0 == origin
    assert record.lattice.patch_px0 == edge
    assert (record.lattice.slide_mpp, record.mpp_source) == (mpp, mpp_source)
    assert record.source_rows is not None
    assert record.source_rows.tolist() == SOURCE_ROWS
    assert validate_store(tmp_path / "store") == []


def test_an_origin_of_another_contour_is_refused_and_then_chosen(tmp_path):
    said = ImportSettings(**ENCODER, mpp=0.25, target_mpp=1.0)
    outcomes = {
        one.slide_id: one
        for one in import_slides(plan_import(HERE / "clam", "clam", said), tmp_path / "store", TorchFiles())
    }
    assert "(100, 60) × 4, (400, 70) × 1; choose --per-contour" in outcomes["C2"].error
    said = ImportSettings(**ENCODER, mpp=0.25, target_mpp=1.0, per_contour=True)
    plan = plan_import(HERE / "clam", "clam", said)
    outcomes = {one.slide_id: one for one in import_slides(plan, tmp_path / "other", TorchFiles())}
    assert outcomes["C2"].report["contours"] == [
        {"origin_px0": [100, 60], "shift_px0": [0, 0], "patches": 4},
        {"origin_px0": [400, 70], "shift_px0": [-300, -10], "patches": 1},
    ]
    record = FeatureStore(tmp_path / "other").read("C2")
    assert record.grid.tolist() == CELLS
    assert record.source_coords is not None
    assert record.source_coords[-1, :2].tolist() == [400 + 2 * 1024, 70 + 5 * 1024]


def test_what_span_files_say_besides(tmp_path):
    _, said, *_ = EXPECTED["span"]
    plan = plan_import(HERE / "span", "span", ImportSettings(**ENCODER | said))
    assert [one.error for one in import_slides(plan, tmp_path / "store", TorchFiles())] == [""]
    record = FeatureStore(tmp_path / "store").read("S1")
    assert record.ratio_classes == ("tumour",)
    assert record.ratios is not None
    assert record.ratios.tolist() == [[1], [0.25], [0], [0], [0.5]]
    extras = record.provenance["imported"]["attributes"]["extras"]
    assert extras["caption"] == {"text": "Größe"}
    assert extras["label"] == {"dtype": "<f4", "shape": [1, 3], "values": [0, 1, 0]}


def test_stamp_drifts_and_says_how_far(tmp_path):
    plan = plan_import(HERE / "stamp", "stamp", ImportSettings(**ENCODER, mpp=0.2527))
    (outcome,) = import_slides(plan, tmp_path / "store", TorchFiles())
    assert outcome.report["step_source"] == "fitted pitch 1014.000 px"
    assert outcome.report["max_residual_px0"] < 0.01
    record = FeatureStore(tmp_path / "store").read("site a/M1")
    assert record.source_coords is not None
    np.testing.assert_array_equal(
        record.source_coords,
        (np.array(CELLS)[:, ::-1] * float(np.ceil(256 / 0.2527) * 0.2527)).astype(np.float32),
        strict=True,
    )
