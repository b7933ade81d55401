from __future__ import annotations

import csv
import itertools
import os
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from span_sparse.cohort import read_cohort
from span_sparse.datasets import demo
from span_sparse.datasets.demo import (
    DEMO_CLASSES,
    DEMO_SPEC,
    SCANNER_MPP,
    DemoSlide,
    SplitPlan,
    design_cohort,
    make_demo_cohort,
)
from span_sparse.datasets.demo_layout import lay_out, num_adjacent_pairs, turn
from span_sparse.datasets.demo_painting import paint
from span_sparse.errors import CohortError
from span_sparse.extract import StainTextureEncoder
from span_sparse.extract.stain_texture import feature_names
from span_sparse.wsi import find_tissue, open_slide, resolve_mpp, tissue_cells

PLAN = (SplitPlan("train", 0, 1, 1), SplitPlan("test", 0, 1))  # 5 patients, 6 slides, both scanners


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_cohort(tmp_path_factory.mktemp("demo"), num_processes=1, progress=False, plan=PLAN)


def test_the_whole_cohort_as_designed() -> None:
    slides = design_cohort(seed=0)
    assert len({slide.slide_id for slide in slides}) == 120
    assert len({slide.case_id for slide in slides}) == 75
    assert Counter(slide.split for slide in slides) == {"train": 60, "val": 20, "test": 40}
    for split in ("val", "test"):
        classes = Counter(slide.label for slide in slides if slide.split == split)
        assert classes[DEMO_CLASSES[0]] == classes[DEMO_CLASSES[1]]
    assert set(Counter(slide.label for slide in slides if slide.split == "train").values()) == {31, 29}
    sides, labels, appearances = defaultdict(set), defaultdict(set), defaultdict(set)
    for slide in slides:
        sides[slide.case_id].add(slide.split)
        labels[slide.case_id].add(slide.label)
        appearances[slide.case_id].add(slide.appearance)
    for values in (sides, labels, appearances):
        assert {len(value) for value in values.values()} == {1}
    assert len(set(itertools.chain(*appearances.values()))) == 38
    assert design_cohort(seed=0) == slides
    assert design_cohort(seed=1) != slides


def test_pairs_are_alike_but_for_the_arrangement() -> None:
    pairs: dict[tuple[int, ...], list[DemoSlide]] = defaultdict(list)
    for slide in design_cohort(seed=0):
        pairs[slide.entropy].append(slide)
    twins = [pair for pair in pairs.values() if len(pair) == 2]
    assert len(twins) == 59
    for pair in twins:
        first, second = sorted(pair, key=lambda slide: slide.label)
        assert (first.label, second.label) == DEMO_CLASSES
        assert first.case_id != second.case_id
        for field in ("split", "scanner", "appearance", "tissue_cells", "num_foci", "pair"):
            assert getattr(first, field) == getattr(second, field)
        clustered, scattered = first.foci(), second.foci()
        assert len(clustered) == len(scattered) == first.num_foci
        assert num_adjacent_pairs(scattered) == 0
        assert num_adjacent_pairs(clustered) > 1.5 * first.num_foci


@pytest.mark.parametrize("seed", range(4))
def test_foci_change_no_pixel_outside_their_cells(seed: int) -> None:
    """So no patch can tell from its own pixels whether foci are near: the classes have the same patches."""
    layouts = [lay_out(kind, 120.0, 8, np.random.default_rng(seed)) for kind in DEMO_CLASSES]
    assert layouts[0].outline == layouts[1].outline
    for layout in layouts:
        neighbourhood = layout.foci[:, None] + np.array([*itertools.product((-1, 0, 1), repeat=2)])
        corners = neighbourhood[..., None, :] + np.array([*itertools.product((0.0, 0.999), repeat=2)])
        assert layout.outline.contains(corners[..., 0], corners[..., 1]).all()
    appearance = design_cohort(seed=0)[0].appearance
    step = 32
    lights = [paint(layout, appearance, step, np.random.default_rng(seed)) for layout in layouts]
    changed = (lights[0] != lights[1]).any(axis=-1)
    touched = np.zeros((layouts[0].rows, layouts[0].cols), bool)
    for layout in layouts:
        touched[tuple(layout.foci.T)] = True
    cells = changed.reshape(layouts[0].rows, step, layouts[0].cols, step).any(axis=(1, 3))
    shared = {tuple(cell) for cell in layouts[0].foci} & {tuple(cell) for cell in layouts[1].foci}
    np.testing.assert_array_equal(cells & ~touched, False)
    assert cells.sum() >= 2 * 8 - 2 * len(shared)


def test_the_eight_turns_differ_and_keep_cells_whole() -> None:
    cells = np.arange(6).reshape(2, 3)
    pixels = cells.repeat(4, axis=0).repeat(4, axis=1)
    for symmetry in range(8):
        np.testing.assert_array_equal(turn(pixels, symmetry)[::4, ::4], turn(cells, symmetry))
    assert len({turn(np.arange(9).reshape(3, 3), symmetry).tobytes() for symmetry in range(8)}) == 8
    slide = design_cohort(seed=0)[0]
    layout = lay_out(slide.label, slide.tissue_cells, slide.num_foci, np.random.default_rng((*slide.entropy, 0)))
    quarter = layout.turned_foci(1)  # counter-clockwise: (row, col) -> (cols - 1 - col, row)
    expected = sorted((layout.cols - 1 - col, row) for row, col in layout.foci.tolist())
    assert [tuple(cell) for cell in quarter.tolist()] == expected


def test_tables(cohort: Path) -> None:
    rows = rows_of(cohort)
    slides = design_cohort(0, PLAN)
    assert [row["slide_id"] for row in rows] == [slide.slide_id for slide in slides]
    assert list(rows[0]) == ["slide_id", "case_id", "label", "split", "mpp", "scanner", "pair"]
    assert {path.stem for path in (cohort.parent / "slides").iterdir()} == {row["slide_id"] for row in rows}
    table = read_cohort(cohort)
    table.check_no_leakage("split")
    assert table.labels("label") == {slide.slide_id: slide.label for slide in slides}
    foci = Counter(row["slide_id"] for row in rows_of(cohort.parent / "foci.csv"))
    assert foci == {slide.slide_id: slide.num_foci for slide in slides}


def test_slides_open_with_openslide_and_show_the_foci(cohort: Path) -> None:
    foci = defaultdict(set)
    for row in rows_of(cohort.parent / "foci.csv"):
        foci[row["slide_id"]].add((int(row["row"]), int(row["col"])))
    encoder = StainTextureEncoder(DEMO_SPEC.patch_size_px, DEMO_SPEC.target_mpp)
    dark = feature_names().index("nuclei/area0.6")
    seen = set()
    for row in rows_of(cohort):
        with open_slide(cohort.parent / "slides" / f"{row['slide_id']}.tiff") as reader:
            assert reader.level_downsamples == pytest.approx((1, 4, 16), rel=0.02)
            mpp, source = resolve_mpp(reader, None)
            assert source == "tiff-resolution"
            assert mpp == pytest.approx(float(row["mpp"])) == SCANNER_MPP[row["scanner"]]
            lattice = DEMO_SPEC.on_slide(mpp)
            grid = tissue_cells(find_tissue(reader, mpp), lattice, reader.width_px0, reader.height_px0)
            assert 300 <= len(grid) <= 700
            patches = [reader.read_region(lattice.box(*cell), DEMO_SPEC.patch_size_px) for cell in grid.tolist()]
        seen.add(lattice.step_px0)
        is_focus = [tuple(cell) in foci[row["slide_id"]] for cell in grid.tolist()]
        assert sum(is_focus) == len(foci[row["slide_id"]])
        assert roc_auc_score(is_focus, encoder(np.stack(patches))[:, dark]) > 0.99
    assert seen == {32, 40}


def test_same_bytes_from_two_processes(cohort: Path, tmp_path: Path) -> None:
    make_demo_cohort(tmp_path, num_processes=2, progress=False, plan=PLAN)
    assert contents(tmp_path) == contents(cohort.parent)


def test_finished_cohort_is_reused(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in cohort.parent.rglob("*")}
    monkeypatch.setattr(demo, "write_slide", None)
    assert make_demo_cohort(cohort.parent, progress=False, plan=PLAN) == cohort
    assert {path: path.stat().st_mtime_ns for path in cohort.parent.rglob("*")} == before


def test_interrupted_build_goes_on(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(Exception):
        pass

    written: list[str] = []

    def write_three(path: Path, picture: np.ndarray, mpp: float) -> None:
        if len(written) == 3:
            path.with_name(f".{path.name}.1.tmp").write_bytes(b"half a slide")
            raise KilledError
        written.append(path.name)
        path.write_bytes((cohort.parent / "slides" / path.name).read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(demo, "write_slide", write_three)
        with pytest.raises(KilledError):
            make_demo_cohort(tmp_path, num_processes=1, progress=False, plan=PLAN)
    assert not (tmp_path / "cohort.csv").exists()
    (leftover,) = (tmp_path / "slides").glob(".*.tmp")
    os.utime(leftover, (0, 0))
    kept = {name: (tmp_path / "slides" / name).stat().st_mtime_ns for name in written}
    make_demo_cohort(tmp_path, num_processes=1, progress=False, plan=PLAN)
    assert {name: (tmp_path / "slides" / name).stat().st_mtime_ns for name in written} == kept
    assert contents(tmp_path) == contents(cohort.parent)


def test_another_seed_replaces_the_slides(cohort: Path, tmp_path: Path) -> None:
    plan = (SplitPlan("test", 0, 0, 1),)
    make_demo_cohort(tmp_path, num_processes=1, progress=False, plan=plan)
    before = contents(tmp_path)
    (tmp_path / "slides" / "own.tiff").write_bytes(b"not ours")
    make_demo_cohort(tmp_path, seed=1, num_processes=1, progress=False, plan=plan)
    after = contents(tmp_path)
    assert after.pop("slides/own.tiff") == b"not ours"
    assert before.keys() == after.keys()
    assert not [name for name in before if name != "cohort.csv" and before[name] == after[name]]


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text("slide_id\nmine\n")
    with pytest.raises(CohortError, match="not the demo"):
        make_demo_cohort(tmp_path, progress=False, plan=PLAN)
    assert contents(tmp_path) == {"cohort.csv": b"slide_id\nmine\n"}
    with pytest.raises(CohortError, match="cannot be written"):
        make_demo_cohort(tmp_path / "cohort.csv", progress=False, plan=PLAN)
    (tmp_path / "demo.json").write_text("{")
    with pytest.raises(CohortError, match="not readable as JSON"):
        make_demo_cohort(tmp_path, progress=False, plan=PLAN)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        make_demo_cohort(tmp_path / "new", num_processes=0, plan=PLAN)
