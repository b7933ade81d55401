from __future__ import annotations

import csv
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from span_sparse.cohort import CohortTable, read_cohort
from span_sparse.errors import ConfigError, SlideError, StoreError
from span_sparse.extract.pipeline import extract_cohort
from span_sparse.extract.process_list import SlideStatus, process_list_path, read_process_list, write_process_list
from span_sparse.grid import LatticeSpec
from span_sparse.store import FeatureStore, validate_store
from span_sparse.types import EncoderIdentity
from span_sparse.wsi import TissueSettings

SLIDES = Path(__file__).parents[3] / "shared" / "slides"
SPEC = LatticeSpec(20, 2.0)
PINK, GLASS = (200, 120, 170), (244, 244, 244)
TISSUE = TissueSettings(min_object_mm2=0.001, max_hole_mm2=0.001)


@dataclass(frozen=True)
class MeanColour:
    """Mean of each channel: can be worked out by hand."""

    size: int = 20
    mpp: float = 2.0
    revision: str = "1"

    @property
    def identity(self) -> EncoderIdentity:
        return EncoderIdentity("mean-colour", self.revision, "mean", 3, self.size, self.mpp, "float32")

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        assert patches.dtype == np.uint8
        assert patches.shape[1:] == (self.size, self.size, 3)
        return patches.mean(axis=(1, 2)).astype(np.float32)


def write_slide(path: Path, picture: np.ndarray, mpp: float = 1.0) -> None:
    resolution = (10_000 / mpp, 10_000 / mpp)
    tifffile.imwrite(
        path, picture, tile=(64, 64), photometric="rgb", compression="zlib", resolution=resolution,
        resolutionunit="CENTIMETER",
    )  # fmt: skip


def checkered() -> np.ndarray:
    """240 × 320 px at 1 µm/px; tissue in cells (1..3, 2..5) of 40 px, each of its own colour."""
    picture = np.full((240, 320, 3), GLASS, np.uint8)
    for row in range(1, 4):
        for col in range(2, 6):
            picture[row * 40 : row * 40 + 40, col * 40 : col * 40 + 40] = (200, 100 + 10 * row, 150 + 5 * col)
    return picture


@pytest.fixture
def make_cohort(tmp_path: Path) -> Callable[..., CohortTable]:
    def make(*rows: str, header: str = "slide_id") -> CohortTable:
        path = tmp_path / "cohort.csv"
        path.write_text("\n".join([header, *rows]) + "\n")
        return read_cohort(path)

    return make


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """Three good slides and three that fail, each in its own way."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("a", "b", "c"):
        write_slide(folder / f"{name}.tiff", checkered())
    write_slide(folder / "blank.tiff", np.full((200, 200, 3), GLASS, np.uint8))
    write_slide(folder / "no-mpp.tiff", checkered(), mpp=264.6)
    (folder / "broken.tiff").write_bytes((folder / "a.tiff").read_bytes()[:100])
    return folder


def extract(cohort: CohortTable, slides: Path, store: Path, **options) -> list[SlideStatus]:
    options = {"spec": SPEC, "encoder": MeanColour(), "tissue": TISSUE} | options
    return extract_cohort(cohort, slides, store, **options)


def test_features_cells_and_pixels_by_hand(make_cohort, slides, tmp_path):
    """Steps of 40 px0 = 20 px at 2 µm/px; the colour of a cell is a function of its row and column."""
    cohort = make_cohort("a,p1", header="slide_id,case_id")
    (status,) = extract(cohort, slides, tmp_path / "store", batch_size=5)
    assert (status.status, status.num_patches, status.error) == ("done", 12, "")
    record = FeatureStore(tmp_path / "store").read("a")
    expected = [[row, col] for row in range(1, 4) for col in range(2, 6)]
    assert record.grid.tolist() == expected
    assert record.coords.tolist() == [[col * 40, row * 40] for row, col in expected]
    colours = [[200, 100 + 10 * row, 150 + 5 * col] for row, col in expected]
    np.testing.assert_allclose(record.features, colours, atol=0.01)
    assert (record.case_id, record.mpp_source, record.lattice.step_px0) == ("p1", "tiff-resolution", 40)
    assert (record.width_px0, record.height_px0) == (320, 240)
    assert record.encoder == MeanColour().identity
    assert record.provenance["slide_file"] == "a.tiff"
    assert str(tmp_path) not in str(record.provenance)
    assert validate_store(tmp_path / "store") == []


@pytest.mark.parametrize("workers", [1, 2])
def test_failures_are_rows_and_the_others_are_unaffected(make_cohort, slides, tmp_path, workers, monkeypatch):
    encoder = MeanColour()
    if workers > 1:  # a spawned worker must be able to import the encoder's class
        encoder = importable(tmp_path, monkeypatch)
    alone = tmp_path / "alone"
    assert all(status.status == "done" for status in extract(make_cohort("a", "b"), slides, alone, encoder=encoder))
    cohort = make_cohort("blank", "a", "broken", "absent", "no-mpp", "b")
    statuses = extract(cohort, slides, tmp_path / "store", workers=workers, encoder=encoder)
    assert [status.slide_id for status in statuses] == ["blank", "a", "broken", "absent", "no-mpp", "b"]
    errors = {status.slide_id: status.error for status in statuses if status.status == "failed"}
    for slide_id, words in {
        "blank": "no tissue", "broken": "not a slide", "absent": "no file", "no-mpp": "264.6 µm/px"
    }.items():  # fmt: skip
        assert words in errors.pop(slide_id)
    assert errors == {}
    store, reference = FeatureStore(tmp_path / "store"), FeatureStore(alone)
    assert store.slide_ids == ("a", "b")
    for slide_id in store.slide_ids:
        np.testing.assert_array_equal(store.read(slide_id).features, reference.read(slide_id).features)
    with process_list_path(tmp_path / "store").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["slide_id"], row["status"], row["num_patches"]) for row in rows] == [
        ("blank", "failed", "0"), ("a", "done", "12"), ("broken", "failed", "0"), ("absent", "failed", "0"),
        ("no-mpp", "failed", "0"), ("b", "done", "12"),
    ]  # fmt: skip


HELPER = """
import os, signal
from dataclasses import dataclass
from span_sparse.types import EncoderIdentity

@dataclass(frozen=True)
class Helper:
    crash_on_green: bool = False

    @property
    def identity(self):
        return EncoderIdentity("mean-colour", "1", "mean", 3, 20, 2.0, "float32")

    def __call__(self, patches):
        if self.crash_on_green and patches[..., 1].mean() > patches[..., 0].mean():
            os.kill(os.getpid(), signal.SIGSEGV)
        assert not self.crash_on_green or os.environ["OMP_NUM_THREADS"] == "1"
        return patches.mean(axis=(1, 2)).astype("float32")
"""


def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: bool):
    """An encoder of a module that a spawned process finds too: its `sys.path` is ours."""
    (tmp_path / "helper_encoder.py").write_text(HELPER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "helper_encoder", raising=False)
    import helper_encoder  # pyright: ignore[reportMissingImports]

    return helper_encoder.Helper(**options)


def test_a_worker_that_crashes_costs_its_slide_only(make_cohort, slides, tmp_path, monkeypatch):
    green = checkered()[..., [1, 0, 2]]
    write_slide(slides / "crash.tiff", green)
    before = dict(os.environ)
    encoder = importable(tmp_path, monkeypatch, crash_on_green=True)
    statuses = extract(make_cohort("crash", "a", "b", "c"), slides, tmp_path / "store", encoder=encoder, workers=2)
    assert [status.status for status in statuses] == ["failed", "done", "done", "done"]
    assert "SIGSEGV" in statuses[0].error
    assert FeatureStore(tmp_path / "store").slide_ids == ("a", "b", "c")
    assert dict(os.environ) == before


def test_an_encoder_that_raises_is_a_row(make_cohort, slides, tmp_path):
    class Picky(MeanColour):
        def __call__(self, patches):
            raise MemoryError("too much")

    (status,) = extract(make_cohort("a"), slides, tmp_path / "store", encoder=Picky())
    assert status.status == "failed"
    assert "a.tiff: MemoryError: too much" in status.error


def test_non_finite_features_do_not_enter_the_store(make_cohort, slides, tmp_path):
    class NotANumber(MeanColour):
        def __call__(self, patches):
            return np.full((len(patches), 3), np.nan, np.float32)

    (status,) = extract(make_cohort("a"), slides, tmp_path / "store", encoder=NotANumber())
    assert status.status == "failed"
    assert FeatureStore(tmp_path / "store").slide_ids == ()


class Counting(MeanColour):
    calls = 0

    def __call__(self, patches):
        Counting.calls += len(patches)
        return super().__call__(patches)


def counted(*arguments, **options) -> tuple[int, list[SlideStatus]]:
    before = Counting.calls
    statuses = extract(*arguments, encoder=Counting(), **options)
    return Counting.calls - before, statuses


def test_resume_does_what_is_missing_and_nothing_else(make_cohort, slides, tmp_path):
    store = tmp_path / "store"
    assert counted(make_cohort("a", "b", "c"), slides, store, limit=2)[0] == 24
    first = read_process_list(process_list_path(store))
    count, statuses = counted(make_cohort("a", "b", "c"), slides, store)
    assert count == 12
    assert [status.resumed for status in statuses] == [True, True, False]
    again = read_process_list(process_list_path(store))
    assert again[:2] == first
    assert [(row.slide_id, row.status, row.num_patches) for row in again] == [(name, "done", 12) for name in "abc"]
    assert counted(make_cohort("a", "b", "c"), slides, store, overwrite=True)[0] == 36


def test_a_changed_file_or_resolution_is_extracted_again(make_cohort, slides, tmp_path):
    store = tmp_path / "store"
    extract(make_cohort("a", "b"), slides, store)
    picture = checkered()
    picture[40:80, 80:120] = (180, 90, 140)
    write_slide(slides / "a.tiff", picture)
    count, statuses = counted(make_cohort("a", "b"), slides, store)
    assert count == 12
    assert [status.resumed for status in statuses] == [False, True]
    np.testing.assert_allclose(FeatureStore(store).read("a").features[0], [180, 90, 140], atol=0.01)
    count, statuses = counted(make_cohort("a,", "b,2.0", header="slide_id,mpp"), slides, store)
    assert [status.resumed for status in statuses] == [True, False]
    metadata = FeatureStore(store).metadata("b")
    assert (metadata.lattice.slide_mpp, metadata.lattice.step_px0, metadata.mpp_source) == (2.0, 20, "cohort")
    assert metadata.num_patches == 48


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder": MeanColour(revision="2")}, "encoder revision: '2' != '1'"),
        ({"spec": LatticeSpec(40, 2.0), "encoder": MeanColour(40)}, "patch_size_px: 40 != 20"),
        ({"tissue": TissueSettings()}, "tissue"),
        ({"min_tissue_fraction": 0.25}, "min_tissue_fraction: 0.25 != 0.5"),
    ],
)
def test_other_settings_are_refused_unless_overwritten(make_cohort, slides, tmp_path, options, words):
    store, cohort = tmp_path / "store", make_cohort("a")
    extract(cohort, slides, store)
    with pytest.raises(StoreError, match=words) as error:
        extract(cohort, slides, store, **options)
    assert "--overwrite" in str(error.value)
    assert FeatureStore(store).metadata("a").encoder.revision == "1"
    (status,) = extract(cohort, slides, store, overwrite=True, **options)
    assert (status.status, status.resumed) == ("done", False)
    (status,) = extract(cohort, slides, store, **options)
    assert status.resumed


def test_dry_run_writes_nothing(make_cohort, slides, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    statuses = extract(make_cohort("a", "broken"), slides, tmp_path / "store", dry_run=True)
    assert [status.status for status in statuses] == ["pending", "failed"]
    cohort = tmp_path / "cohort.csv"
    assert sorted(path for path in tmp_path.rglob("*") if path != cohort) == before


@pytest.mark.parametrize(
    "options",
    [
        {"spec": LatticeSpec(40, 2.0)}, {"spec": LatticeSpec(20, 1.0)}, {"workers": -1}, {"limit": 0},
        {"batch_size": 0}, {"min_tissue_fraction": 0.0}, {"min_tissue_fraction": 1.5},
    ],
)  # fmt: skip
def test_settings_that_fit_no_slide(make_cohort, slides, tmp_path, options):
    with pytest.raises(ConfigError):
        extract(make_cohort("a"), slides, tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def test_no_folder_of_slides(make_cohort, tmp_path):
    with pytest.raises(SlideError, match="no such folder"):
        extract(make_cohort("a"), tmp_path / "nowhere", tmp_path / "store")


def test_process_list_survives_odd_texts_and_is_never_half_written(tmp_path):
    path = tmp_path / "store.process_list.csv"
    rows = [SlideStatus('a,"b" 😐', "failed", 'two\nlines, "quoted"', 1.234), SlideStatus("0012", "done", "", 2.5, 7)]
    write_process_list(path, rows)
    assert read_process_list(path) == [replace(rows[0], error='two lines, "quoted"', seconds=1.23), rows[1]]
    assert path.read_text().splitlines()[0] == "slide_id,status,error,seconds,num_patches,failed_patches"
    with pytest.raises(AttributeError):
        write_process_list(path, [rows[1], None])  # type: ignore[list-item]
    assert len(read_process_list(path)) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"x,y\n1,2\n", b"slide_id,status,error,seconds,num_patches\na\n"]
)
def test_a_spoilt_process_list_is_ignored(tmp_path, content):
    (tmp_path / "p.csv").write_bytes(content)
    assert read_process_list(tmp_path / "p.csv") == []
    assert read_process_list(tmp_path / "absent.csv") == []


@pytest.mark.realdata
@pytest.mark.skipif(not SLIDES.is_dir(), reason="the real slides are not here")
def test_real_slides_with_damaged_ones_among_them(make_cohort, tmp_path):
    folder = tmp_path / "real"
    folder.mkdir()
    for source in (SLIDES / "CMU-1-Small-Region.svs", *(SLIDES / "openslide-fixtures").iterdir()):
        shutil.copyfile(source, folder / source.name)
    cohort = make_cohort("unopenable", "CMU-1-Small-Region", "unreadable", "😐")
    statuses = extract_cohort(
        cohort, folder, tmp_path / "store", spec=LatticeSpec(224, 0.5), encoder=MeanColour(224, 0.5), workers=1
    )
    assert [status.status for status in statuses] == ["failed", "done", "failed", "failed"]
    assert "cannot be opened" in statuses[0].error
    assert "unreadable.svs: 16 × 16 px is less than one patch" in statuses[2].error
    assert "less than one patch" in statuses[3].error
    assert statuses[1].num_patches == 45
    assert validate_store(tmp_path / "store") == []
