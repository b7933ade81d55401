from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from span_sparse.cohort import read_cohort
from span_sparse.errors import AnnotationError, StoreError
from span_sparse.extract import annotate
from span_sparse.extract.annotate import (
    ANNOTATED,
    FAILED,
    NEGATIVE,
    RESUMED,
    WITHOUT_FILE,
    AnnotationSettings,
    AnnotationStatus,
    annotate_slides,
    survey,
)
from span_sparse.store import FeatureStore, validate_store
from span_sparse.wsi.annotations import AnnotationFiles, ClassMapping


@pytest.fixture
def places(tiny_cohort, tmp_path, monkeypatch):
    """The tiny cohort's slides are 10 × 10 cells of 32 px at 1 µm/px on 330 × 330 px."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    (tmp_path / "annotations").mkdir()
    return tiny_cohort, tmp_path / "annotations"


def draw(folder: Path, slide: str, *boxes: tuple[str, float, float, float, float]) -> None:
    features = [
        {
            "type": "Feature",
            "properties": {"classification": {"name": name}},
            "geometry": {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]},
        }
        for name, x0, y0, x1, y1 in boxes
    ]
    (folder / f"{slide}.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def run(
    store: Path, folder: Path, *rules: str, cohort: Path | None = None, exclude=(), **settings
) -> dict[str, AnnotationStatus]:
    chosen = AnnotationSettings(ClassMapping.parse(rules, exclude), **settings)
    opened = FeatureStore(store)
    plan = survey(opened, AnnotationFiles(folder), chosen, None if cohort is None else read_cohort(cohort))
    return {status.slide_id: status for status in annotate_slides(opened, plan, chosen)}


def by_hand(record, x0: float, y0: float, x1: float, y1: float) -> list[float]:
    """Overlap of an axis-aligned box with cells of 32 px."""
    shares = []
    for row, col in record.grid.tolist():
        width = max(0.0, min(x1, 32 * col + 32) - max(x0, 32 * col))
        height = max(0.0, min(y1, 32 * row + 32) - max(y0, 32 * row))
        shares.append(width * height / 1024)
    return shares


def test_ratios_reach_the_store_and_nothing_else_changes(places) -> None:
    cohort, folder = places
    before = FeatureStore(cohort.store).read("s05")
    draw(folder, "s05", ("Tumor", 10, 20, 200, 170), ("_2", 40, 40, 80, 100), ("Normal", 200, 200, 300, 300))
    statuses = run(cohort.store, folder, "tumor=Tumor", "normal=Normal", exclude=["_2"])
    assert {status.status for slide, status in statuses.items() if slide != "s05"} == {WITHOUT_FILE}
    after = FeatureStore(cohort.store).read("s05")
    tumor = np.array(by_hand(before, 10, 20, 200, 170)) - by_hand(before, 40, 40, 80, 100)
    assert after.ratios is not None
    assert np.allclose(after.ratios, np.stack([tumor, by_hand(before, 200, 200, 300, 300)], axis=1), atol=1e-6)
    assert after.ratios.any(axis=0).all()
    assert after.ratio_classes == ("tumor", "normal")
    assert after.features.tobytes() == before.features.tobytes()
    added = {"ratios": None, "ratio_classes": (), "provenance": before.provenance}
    assert dataclasses.replace(after, **added).metadata() == before.metadata()
    about = after.provenance["annotations"]
    assert (about["file"], about["format"], about["origin_px0"]) == ("s05.geojson", "geojson", [0, 0])
    assert about["sha256"] == hashlib.sha256((folder / "s05.geojson").read_bytes()).hexdigest()
    assert about["classes"] == {"tumor": ["Tumor"], "normal": ["Normal"]}
    assert statuses["s05"].status == ANNOTATED
    assert statuses["s05"].num_patches == tuple((after.ratios >= 0.5).sum(axis=0))
    assert statuses["s05"].areas_mm2 == pytest.approx([(190 * 150 - 40 * 60) / 1e6, 0.01])
    assert validate_store(cohort.store) == []
    assert FeatureStore(cohort.store).read("s06").ratios is None


def test_resuming_does_what_is_missing_or_has_changed(places, monkeypatch) -> None:
    cohort, folder = places
    for slide in ("s00", "s01", "s02"):
        draw(folder, slide, ("a", 0, 0, 320, 320))
    first = run(cohort.store, folder)
    written: list[str] = []
    write = FeatureStore.write
    monkeypatch.setattr(
        FeatureStore,
        "write",
        lambda self, record, **options: (written.append(record.slide_id), write(self, record, **options)),
    )
    again = run(cohort.store, folder)
    assert written == []
    assert [again[slide].status for slide in ("s00", "s01", "s02")] == [RESUMED] * 3
    assert again["s01"].num_patches == first["s01"].num_patches == (15,)
    draw(folder, "s01", ("a", 0, 0, 320, 160))
    draw(folder, "s03", ("a", 0, 0, 320, 160))
    run(cohort.store, folder)
    assert written == ["s01", "s03"]
    run(cohort.store, folder, overwrite=True)
    assert written[2:] == ["s00", "s01", "s02", "s03"]
    run(cohort.store, folder, "b=a")
    assert FeatureStore(cohort.store).read("s02").ratio_classes == ("b",)
    run(cohort.store, folder, "b=a", "c=x")
    run(cohort.store, folder, "c=x", "b=a")  # the same classes in another order are other columns
    swapped = FeatureStore(cohort.store).read("s02")
    assert swapped.ratio_classes == ("c", "b")
    assert swapped.ratios is not None
    assert swapped.ratios.any(axis=0).tolist() == [False, True]


def test_slides_without_a_file_are_negative_only_on_request(places) -> None:
    cohort, folder = places
    draw(folder, "s00", ("a", 0, 0, 320, 320))
    statuses = run(cohort.store, folder, unannotated="negative")
    assert statuses["s00"].status == ANNOTATED
    assert {status.status for slide, status in statuses.items() if slide != "s00"} == {NEGATIVE}
    record = FeatureStore(cohort.store).read("s16")
    assert record.ratios is not None
    assert not record.ratios.any()
    assert record.provenance["annotations"]["file"] is None
    assert run(cohort.store, folder, unannotated="negative")["s16"].status == RESUMED


def test_classes_are_those_of_all_files(places) -> None:
    cohort, folder = places
    draw(folder, "s00", ("b", 0, 0, 320, 320))
    draw(folder, "s01", ("a", 0, 0, 320, 320), ("c", 0, 0, 90, 90))
    run(cohort.store, folder)
    assert {FeatureStore(cohort.store).metadata(slide).ratio_classes for slide in ("s00", "s01")} == {("a", "b", "c")}


def test_unknown_names_are_listed_before_anything_is_written(places) -> None:
    cohort, folder = places
    draw(folder, "s00", ("Tumor", 0, 0, 320, 320))
    draw(folder, "s01", ("tumour", 0, 0, 320, 320), ("Fat", 0, 0, 90, 90))
    draw(folder, "s02", ("tumour", 0, 0, 320, 320))
    message = r"no class has: 'Fat' \(1 slides, first s01.geojson\), 'tumour' \(2 slides, first s01.geojson\); add them"
    with pytest.raises(AnnotationError, match=message):
        run(cohort.store, folder, "tumor=Tumor")
    assert FeatureStore(cohort.store).read("s00").ratios is None
    statuses = run(cohort.store, folder, "tumor=Tumor", ignore_unknown=True)
    assert (statuses["s00"].num_patches, statuses["s01"].num_patches) == ((12,), (0,))


def test_a_bad_file_fails_its_slide_only(places) -> None:
    cohort, folder = places
    draw(folder, "s00", ("a", 0, 0, 320, 320))
    (folder / "s01.xml").write_text("<Annotations><broken")
    draw(folder, "s02", ("a", 5000, 0, 5320, 320))
    (folder / "s04.xml").write_text("<Annotations/>")
    draw(folder, "s04", ("a", 0, 0, 9, 9))
    statuses = run(cohort.store, folder)
    expected = [ANNOTATED, FAILED, FAILED, WITHOUT_FILE, FAILED]
    assert [statuses[f"s0{number}"].status for number in range(5)] == expected
    assert "s01.xml: is not XML" in statuses["s01"].message
    assert "100% of the annotated area lies outside the slide: x 5000 to 5320" in statuses["s02"].message
    assert "several annotation files (s04.geojson, s04.xml)" in statuses["s04"].message
    assert len(statuses) == 17


def test_regions_that_touch_no_patch_are_suspicious(places) -> None:
    cohort, folder = places
    record = FeatureStore(cohort.store).read("s00")
    free = next((row, col) for row in range(10) for col in range(10) if [row, col] not in record.grid.tolist())
    x0, y0 = 32 * free[1], 32 * free[0]
    draw(folder, "s00", ("a", x0 + 1, y0 + 1, x0 + 31, y0 + 31))
    failed = run(cohort.store, folder)["s00"]
    assert failed.status == FAILED
    assert f"no region touches a patch: the regions span x {x0 + 1} to {x0 + 31}" in failed.message
    assert run(cohort.store, folder, allow_empty=True)["s00"].status == ANNOTATED


def test_one_store_has_one_set_of_classes(places) -> None:
    cohort, folder = places
    draw(folder, "s00", ("a", 0, 0, 320, 320))
    run(cohort.store, folder)
    (folder / "s00.geojson").unlink()
    draw(folder, "s01", ("b", 0, 0, 320, 320))
    table = cohort.root / "part.csv"
    table.write_text("slide_id,path\ns01,s01.svs\n")
    with pytest.raises(
        StoreError, match=r"'s00', which takes no part, is annotated with the classes \['a'\], .* \['b'\]"
    ):
        run(cohort.store, folder, cohort=table)
    assert run(cohort.store, folder, "a=b", cohort=table).keys() == {"s01"}


def test_a_cohort_names_files_and_missing_slides_fail(places) -> None:
    cohort, folder = places
    draw(folder, "scan 7", ("a", 0, 0, 320, 320))
    draw(folder, "absent", ("a", 0, 0, 320, 320))
    table = cohort.root / "part.csv"
    table.write_text("slide_id,path\ns01,batch 1/scan 7.svs\nabsent,\n")
    statuses = run(cohort.store, folder, cohort=table)
    assert statuses["s01"].status == ANNOTATED
    assert "'absent' is not in" in statuses["absent"].message
    with pytest.raises(
        AnnotationError, match=r"no file belongs to a slide: the files are named like 'absent.geojson', the"
    ):
        run(cohort.store, folder)


def test_qupath_counts_from_the_bounds_of_the_scan(places) -> None:
    cohort, folder = places
    store = FeatureStore(cohort.store)
    record = store.read("s00")
    store.write(dataclasses.replace(record, provenance={"bounds_px0": [64, 32, 320, 320]}), overwrite=True)
    draw(folder, "s00", ("a", 0, 0, 100, 50))
    expected = {"slide": (0, 0, 100, 50), "bounds": (64, 32, 164, 82), "auto": (64, 32, 164, 82)}
    for origin, box in expected.items():
        run(cohort.store, folder, origin=origin, allow_empty=True)
        found = store.read("s00").ratios
        assert found is not None
        assert found[:, 0].tolist() == pytest.approx(by_hand(record, *box), abs=1e-6)
    (folder / "s00.geojson").unlink()
    vertices = '<Vertex X="0" Y="0"/><Vertex X="100" Y="50"/>'
    regions = f'<Regions><Region Type="1"><Vertices>{vertices}</Vertices></Region></Regions>'
    (folder / "s00.xml").write_text(f'<Annotations><Annotation Name="a">{regions}</Annotation></Annotations>')
    run(cohort.store, folder)
    found = store.read("s00").ratios
    assert found is not None
    assert found[:, 0].tolist() == pytest.approx(by_hand(record, 0, 0, 100, 50), abs=1e-6)
    draw(folder, "s01", ("a", 0, 0, 320, 320))
    assert "does not know the bounds" in run(cohort.store, folder, origin="bounds")["s01"].message


def test_the_settings_of_the_module_are_those_of_the_command() -> None:
    assert annotate.ORIGINS == ("auto", "slide", "bounds")
    assert annotate.UNANNOTATED == ("skip", "negative")
