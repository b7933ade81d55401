"""Survival and nests of the demo, on a hand-made cohort of two slides."""

from __future__ import annotations

import numpy as np
import pytest

from span_sparse.cohort import read_cohort
from span_sparse.datasets.demo import DEMO_SPEC
from span_sparse.datasets.demo_datamodule import DemoDataModule
from span_sparse.datasets.demo_targets import annotate_nests, write_survival_table
from span_sparse.metrics import concordance_index
from span_sparse.store import FeatureStore, SlideRecord
from span_sparse.types import EncoderIdentity

FOCI = {"demo-1": [(1, 1), (1, 2), (2, 2), (5, 5)], "demo-2": [(0, 0), (2, 2), (4, 4), (6, 6)]}


@pytest.fixture
def root(tmp_path):
    """Two slides of 8 × 8 patches; three foci of the first one touch."""
    rows = "".join(f"{slide},{row},{col}\n" for slide, cells in FOCI.items() for row, col in cells)
    (tmp_path / "foci.csv").write_text(f"slide_id,row,col\n{rows}")
    (tmp_path / "cohort.csv").write_text(
        "slide_id,case_id,label,split,mpp\ndemo-1,p1,clustered,train,0.8\ndemo-2,p2,scattered,val,1.0\n"
    )
    store = FeatureStore.create(tmp_path / "features.zarr")
    grid = np.stack(np.divmod(np.arange(64), 8), axis=1).astype(np.int32)
    for slide_id, mpp in (("demo-1", 0.8), ("demo-2", 1.0)):
        lattice = DEMO_SPEC.on_slide(mpp)
        features = np.zeros((64, 4), np.float32)
        encoder = EncoderIdentity("stain-texture", "1", "descriptor", 4, 32, 1.0, "float32")
        side = 8 * lattice.step_px0
        coords, checksum = lattice.to_px0(grid), "sha256:0"
        store.write(
            SlideRecord(slide_id, "p", features, grid, coords, lattice, "cohort", encoder, checksum, side, side, {})
        )
    return tmp_path


def test_only_foci_in_nests_are_annotated_and_exactly(root) -> None:
    annotate_nests(root)
    store = FeatureStore(root / "features.zarr")
    for slide_id, nest in (("demo-1", FOCI["demo-1"][:3]), ("demo-2", [])):
        record = store.read(slide_id)
        assert record.ratio_classes == ("nest",)
        assert record.ratios is not None
        assert set(np.unique(record.ratios)) <= {0.0, 1.0}
        assert [tuple(cell) for cell in record.grid[record.ratios[:, 0] == 1].tolist()] == nest
    before = (root / "features.zarr" / "demo-1" / "zarr.json").stat().st_mtime_ns
    annotate_nests(root)
    assert (root / "features.zarr" / "demo-1" / "zarr.json").stat().st_mtime_ns == before


def test_survival_follows_the_class_and_is_the_same_every_time(tmp_path) -> None:
    kinds = ("scattered", "clustered")
    lines = [f"s{case}{slide},p{case},{kinds[case % 2]},train,1.0" for case in range(200) for slide in "ab"]
    (tmp_path / "cohort.csv").write_text("slide_id,case_id,label,split,mpp\n" + "\n".join(lines))
    write_survival_table(tmp_path)
    content = (tmp_path / "survival.csv").read_bytes()
    write_survival_table(tmp_path)
    assert (tmp_path / "survival.csv").read_bytes() == content
    frame = read_cohort(tmp_path / "survival.csv").frame
    assert (frame.groupby("case_id")[["time", "event", "label"]].nunique() == 1).all().all()
    cases = frame.groupby("case_id").first()
    time, event = cases["time"].to_numpy(np.float64), cases["event"].to_numpy(np.float64) == 1
    assert 0.5 < event.mean() < 0.9
    assert 0.7 < concordance_index(time, event, (cases["label"] == "clustered").to_numpy(np.float64)) < 0.85


def test_what_is_learnt_chooses_table_and_task() -> None:
    survival, nests = DemoDataModule("x", learn="survival"), DemoDataModule("x", learn="nests")
    assert (survival.cohort_path.name, survival.wanted_task.kind) == ("survival.csv", "survival")
    assert (nests.cohort_path.name, nests.wanted_task.kind) == ("cohort.csv", "segmentation")
    assert DemoDataModule("x").wanted_task.kind == "classification"
