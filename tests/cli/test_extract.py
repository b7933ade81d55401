from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from span_sparse.cli.extract import build_parser, run
from span_sparse.errors import CohortError, ConfigError, StoreError
from span_sparse.store import FeatureStore, validate_store

SLIDES = Path(__file__).parents[3] / "shared" / "slides"


def extract(*words: object) -> int:
    return run(build_parser().parse_args([str(word) for word in words]))


@pytest.fixture
def places(tmp_path: Path) -> list[object]:
    (tmp_path / "slides").mkdir()
    picture = np.full((320, 320, 3), (200, 120, 170), np.uint8)
    for name in ("a", "b"):
        tifffile.imwrite(
            tmp_path / "slides" / f"{name}.tiff", picture, tile=(64, 64), photometric="rgb",
            resolution=(10_000, 10_000), resolutionunit="CENTIMETER",
        )  # fmt: skip
    (tmp_path / "cohort.csv").write_text("slide_id\na\nb\nabsent\n")
    return [
        "--cohort", tmp_path / "cohort.csv", "--slides", tmp_path / "slides", "--store", tmp_path / "out" / "store",
        "--patch-size", 32, "--target-mpp", 1,
    ]  # fmt: skip


def test_options_are_pinned():
    options = {action.dest for action in build_parser()._actions} - {"help", "config", "print_config"}
    assert options == {
        "cohort", "slides", "store", "patch_size", "target_mpp", "min_tissue", "batch_size", "workers", "limit",
        "overwrite", "dry_run", "skip_errors", "encoder", "encoder_weights", "device", "precision", "shard",
        "max_failed_patches", "tissue", "allow_upsampling", "download", "trust_program",
    }  # fmt: skip


def test_a_failed_slide_makes_the_exit_code_1(places, tmp_path, capsys):
    assert extract(*places) == 1
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if line.startswith("failed")]
    assert len(lines) == 1
    assert "absent" in lines[0]
    assert "extracted │ 2      │ 200" in shown.out
    assert FeatureStore(tmp_path / "out" / "store").slide_ids == ("a", "b")
    assert (tmp_path / "out" / "store.process_list.csv").read_text().count("\n") == 4
    assert extract(*places, "--skip-errors") == 0
    assert "in the store already │ 2" in capsys.readouterr().out
    assert extract(*places, "--limit", 2) == 0


def test_dry_run(places, tmp_path, capsys):
    assert extract(*places, "--dry-run", "--limit", 2) == 0
    assert "to extract │ 2" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_wrong_settings_are_user_errors(places, tmp_path):
    with pytest.raises(ConfigError, match="--patch-size 33"):
        extract(*places, "--patch-size", 33)
    with pytest.raises(CohortError):
        extract(*places, "--cohort", tmp_path / "nothing.csv")


@pytest.mark.realdata
@pytest.mark.skipif(not SLIDES.is_dir(), reason="the real slides are not here")
@pytest.mark.parametrize(
    ("slide_id", "options", "num_patches"),
    [
        ("CMU-1-Small-Region", [], 45),
        ("camelyon-node-overview", ["--patch-size", 16, "--target-mpp", 28.97], 735),
    ],
)
def test_real_slides(tmp_path, slide_id, options, num_patches, capsys):
    (tmp_path / "cohort.csv").write_text(f"slide_id\n{slide_id}\n")
    store = tmp_path / "store"
    assert extract("--cohort", tmp_path / "cohort.csv", "--slides", SLIDES, "--store", store, *options) == 0
    record = FeatureStore(store).read(slide_id)
    assert len(record.features) == num_patches
    assert np.isfinite(record.features).all()
    assert record.features.std(axis=0).mean() > 0.01
    assert validate_store(store) == []
    assert f"│ {num_patches} " in capsys.readouterr().out


def test_tissue_settings_of_the_run_and_of_a_slide(places, tmp_path):
    (tmp_path / "cohort.csv").write_text("slide_id,reject_folds,tissue_method\na,,\nb,yes,otsu\n")
    assert extract(*places, "--tissue.method", "hed", "--tissue.min_object_mm2", "0.02") == 0
    store = FeatureStore(tmp_path / "out" / "store")
    kept = {name: store.metadata(name).provenance for name in ("a", "b")}
    assert [kept[name]["tissue"]["method"] for name in ("a", "b")] == ["hed", "otsu"]
    assert [kept[name]["tissue"]["reject_folds"] for name in ("a", "b")] == [False, True]
    assert kept["a"]["tissue"]["min_object_mm2"] == 0.02
    assert [kept[name]["tissue_overrides"] for name in ("a", "b")] == [[], ["method", "reject_folds"]]


def test_a_changed_override_is_extracted_again_and_a_changed_run_is_refused(places, tmp_path, capsys):
    table = tmp_path / "cohort.csv"
    table.write_text("slide_id,reject_folds\na,\nb,yes\n")
    assert extract(*places) == 0
    table.write_text("slide_id,reject_folds\na,\nb,no\n")
    capsys.readouterr()
    assert extract(*places) == 0
    assert "extracted            │ 1" in (shown := capsys.readouterr().out)
    assert "in the store already │ 1" in shown
    with pytest.raises(StoreError, match="tissue reject_folds: True != False"):
        extract(*places, "--tissue.reject_folds", "true")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--tissue.colour", "red"], "expected a name of: thumbnail_mpp"),
        (["--tissue.reject_folds", "3"], "expected a value like False"),
        (["--tissue.min_object_mm2", "large"], "expected a value like 0.01"),
        (["--tissue.method", "magic"], "magic"),
        (["--shard", "3"], "--shard"),
        (["--max-failed-patches", "few"], "--max-failed-patches"),
    ],
)
def test_options_that_cannot_work(places, option, words):
    with pytest.raises(ConfigError, match=words):
        extract(*places, *option)
