from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from span_sparse.cli.import_ import build_parser, run
from span_sparse.errors import ConfigError, ExchangeError, StoreError
from span_sparse.store import FeatureStore, validate_store
from span_sparse.store.exchange import FORMAT_NAMES

CELLS = np.stack(np.divmod(np.arange(20), 5), 1)
ENCODER = [
    "--encoder-name", "uni_v1", "--encoder-revision", "1", "--encoder-readout", "cls", "--encoder-input", 224,
]  # fmt: skip


def write(folder: Path, name: str, *, move: int = 0, seed: int = 0, channels: int = 4) -> Path:
    """One slide in TRIDENT's format; `move` puts its last patch off the lattice."""
    path = folder / "features_uni_v1" / f"{name}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    coords = CELLS[:, ::-1] * 448
    coords[-1, 0] += move
    with h5py.File(path, "w") as file:
        file["features"] = np.random.default_rng(seed).standard_normal((20, channels)).astype(np.float16)
        file["coords"] = coords
        file["coords"].attrs.update(
            {
                "patch_size": 224, "patch_size_level0": 448, "level0_magnification": 40, "target_magnification": 20,
                "overlap": 0, "level0_width": 4000, "level0_height": 3600,
            }
        )  # fmt: skip
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    for number, name in enumerate(("a", "b", "[red]c")):
        write(tmp_path / "job", name, seed=number)
    return tmp_path / "job"


def imported(folder: Path, *words: object, store: Path | None = None) -> int:
    place = store or folder.parent / "store"
    return run(build_parser().parse_args([str(word) for word in (folder, "--store", place, *ENCODER, *words)]))


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder.parent / "store.process_list.csv").open() as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


def test_options_are_pinned():
    options = {action.dest for action in build_parser()._actions} - {"help", "config", "print_config"}
    assert options == {
        "folder", "store", "format", "cohort", "mpp", "target_mpp", "patch_size", "patch_px0", "step", "encoder_name",
        "encoder_revision", "encoder_readout", "encoder_input", "features_key", "ratio_class", "size_from_patches",
        "transposed", "snap", "per_contour", "drop", "limit", "overwrite", "dry_run", "skip_errors",
    }  # fmt: skip


def test_every_format_is_named_in_the_help():
    text = build_parser().format_help()
    assert all(re.search(rf"\b{name}\b", text) for name in FORMAT_NAMES)


def test_a_folder_becomes_a_store(folder, capsys):
    assert imported(folder) == 0
    shown = capsys.readouterr()
    assert "format trident: saw features and coords with patch_size_level0 in" in shown.err
    assert "imported             │ 3      │ 60" in shown.out
    assert validate_store(folder.parent / "store") == []
    store = FeatureStore(folder.parent / "store")
    assert store.slide_ids == ("[red]c", "a", "b")
    identity, spec = store.common_identity()
    assert (identity.name, identity.readout, identity.dimension, identity.precision) == ("uni_v1", "cls", 4, "float16")
    assert (spec.patch_size_px, spec.target_mpp) == (224, 0.5)
    assert {name: (row["status"], row["num_patches"]) for name, row in rows(folder).items()} == {
        "a": ("done", "20"), "b": ("done", "20"), "[red]c": ("done", "20"),
    }  # fmt: skip


def test_resume_skips_what_is_the_same_and_takes_what_changed(folder, capsys):
    assert imported(folder) == 0
    store = FeatureStore(folder.parent / "store")
    before = {name: (store.path / name / "zarr.json").stat().st_mtime_ns for name in ("a", "b")}
    write(folder, "b", seed=77)
    capsys.readouterr()
    assert imported(folder) == 0
    assert "in the store already │ 2" in capsys.readouterr().out
    assert (store.path / "a" / "zarr.json").stat().st_mtime_ns == before["a"]
    expected = np.random.default_rng(77).standard_normal((20, 4)).astype(np.float16)
    np.testing.assert_array_equal(store.read("b").features, expected)


def test_other_settings_are_refused_until_overwritten(folder, capsys):
    assert imported(folder, "--limit", 1, "--drop") == 0
    assert imported(folder, "--limit", 1) == 1
    error = capsys.readouterr().err
    assert "imported with other settings (now != stored: drop: False != True); pass --overwrite" in error
    assert imported(folder, "--limit", 1, "--overwrite") == 0
    settings = FeatureStore(folder.parent / "store").metadata("[red]c").provenance["imported"]["settings"]
    assert settings["drop"] is False


def test_a_bad_slide_is_a_row_and_the_others_go_on(folder, capsys):
    write(folder, "b", move=9)
    assert imported(folder) == 1
    shown = capsys.readouterr()
    (line,) = [line for line in shown.err.splitlines() if line.startswith("failed")]
    assert line.startswith("failed b: ")
    assert "1 of 20 patches lie off the lattice of step 448 px" in line
    assert FeatureStore(folder.parent / "store").slide_ids == ("[red]c", "a")
    assert rows(folder)["b"]["status"] == "failed"
    assert "off the lattice" in rows(folder)["b"]["error"]
    assert imported(folder, "--skip-errors") == 0
    store = folder.parent / "other"
    assert imported(folder, "--snap", store=store) == 0
    report = FeatureStore(store).metadata("b").provenance["imported"]["lattice"]
    assert (report["max_residual_px0"], report["off_lattice"], report["exact"]) == (9, 1, False)


def test_a_slide_of_another_encoder_does_not_enter(folder, capsys):
    assert imported(folder) == 0
    write(folder, "d", channels=5)
    assert imported(folder) == 1
    assert "has other features (this != stored: encoder dimension: 5 != 4)" in capsys.readouterr().err


def test_the_cohort_names_the_slides(folder, tmp_path, capsys):
    (tmp_path / "cohort.csv").write_text("slide_id,case_id,mpp\nb,p1,0.26\nabsent,p2,\n")
    assert imported(folder, "--cohort", tmp_path / "cohort.csv") == 1
    shown = capsys.readouterr()
    assert "2 slides of the folder are not in" in shown.err
    assert "has no features of this slide; its slides are called like [red]c, a, b" in shown.err
    store = FeatureStore(folder.parent / "store")
    assert store.slide_ids == ("b",)
    assert (store.metadata("b").case_id, store.metadata("b").lattice.slide_mpp) == ("p1", 0.26)
    assert rows(folder)["absent"]["status"] == "failed"


def test_dry_run_prints_the_fit_and_writes_nothing(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    write(folder, "b", move=9)
    assert imported(folder, "--dry-run") == 1
    shown = re.sub(r" +", " ", capsys.readouterr().out)
    assert "│ a │ 20 │ float16 │ 448 │ (0, 0) │ stated │ 0 px │ 0 │" in shown
    assert "│ b │ failed │" in shown
    assert "would be imported │ 2 │ 40" in shown
    assert not (folder.parent / "store").exists()
    assert not (folder.parent / "store.process_list.csv").exists()


def test_a_dry_run_on_a_store_changes_nothing(folder):
    assert imported(folder, "--limit", 1) == 0
    before = sorted(path.name for path in (folder.parent / "store").iterdir())
    assert imported(folder, "--dry-run") == 0
    assert sorted(path.name for path in (folder.parent / "store").iterdir()) == before


def test_wrong_options_are_user_errors(folder, tmp_path):
    with pytest.raises(ConfigError, match="exclude each other"):
        imported(folder, "--snap", "--per-contour")
    with pytest.raises(ConfigError, match="--limit must be at least 1"):
        imported(folder, "--limit", 0)
    with pytest.raises(ExchangeError, match="there is no format 'x'"):
        imported(folder, "--format", "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(StoreError, match="is not empty"):
        imported(folder, store=tmp_path / "full")


def test_a_slide_that_was_extracted_is_not_overwritten_by_accident(folder, tiny_cohort, capsys):
    write(folder, "s00")
    assert imported(folder, store=tiny_cohort.store) == 1
    assert "s00: the slide is in the store and was not imported; pass --overwrite" in capsys.readouterr().err


def test_the_command_exists():
    done = subprocess.run(
        [sys.executable, "-m", "span_sparse", "import", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("usage: span import")
