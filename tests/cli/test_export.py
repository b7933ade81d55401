from __future__ import annotations

from dataclasses import replace
from typing import get_args

import h5py
import numpy as np
import pytest

from span_sparse.cli.export import FORMATS, build_parser, run
from span_sparse.errors import ConfigError, StoreError
from span_sparse.grid import Lattice
from span_sparse.store import FeatureStore
from span_sparse.store.exchange import FORMAT_NAMES


def export(*words: object) -> int:
    return run(build_parser().parse_args([str(word) for word in words]))


def test_options_are_pinned():
    options = {action.dest for action in build_parser()._actions} - {"help", "config", "print_config"}
    assert options == {"store", "format", "output", "cohort", "limit", "overwrite", "skip_errors"}
    assert get_args(FORMATS) == FORMAT_NAMES


def test_a_store_for_the_authors_loader(tiny_cohort, tmp_path, capsys):
    assert export(tiny_cohort.store, "--format", "span", "--output", tmp_path / "out") == 0
    assert "17 slides written, 0 were there already" in capsys.readouterr().out
    record = FeatureStore(tiny_cohort.store).read("s03")
    with h5py.File(tmp_path / "out" / "s03.h5") as file:
        assert sorted(file) == ["cords", "feats"]
        np.testing.assert_array_equal(file["cords"][...], record.grid[:, ::-1].astype(np.int64) * 224, strict=True)
        np.testing.assert_array_equal(file["feats"][...], record.features, strict=True)


def test_running_it_again_does_only_what_is_missing(tiny_cohort, tmp_path, capsys):
    out = tmp_path / "out"
    assert export(tiny_cohort.store, "--format", "clam", "--output", out, "--limit", 3) == 0
    (out / "pt_files" / "s01.pt").unlink()
    stamp = (out / "pt_files" / "s00.pt").stat().st_mtime_ns
    capsys.readouterr()
    assert export(tiny_cohort.store, "--format", "clam", "--output", out, "--limit", 3) == 0
    assert "1 slides written, 2 were there already" in capsys.readouterr().out
    assert (out / "pt_files" / "s00.pt").stat().st_mtime_ns == stamp
    assert export(tiny_cohort.store, "--format", "clam", "--output", out, "--limit", 3, "--overwrite") == 0
    assert "3 slides written" in capsys.readouterr().out


def test_a_slide_that_fails_makes_the_exit_code_1(tiny_cohort, tmp_path, capsys):
    table = tmp_path / "cohort.csv"
    table.write_text("slide_id\ns00\nabsent\n")
    words = (tiny_cohort.store, "--format", "trident", "--output", tmp_path / "out", "--cohort", table)
    assert export(*words) == 1
    shown = capsys.readouterr()
    assert "failed absent: slide 'absent' in" in shown.err
    assert "1 slides written" in shown.out
    assert export(*words, "--skip-errors") == 0


def test_a_format_that_cannot_say_where_patches_lie_refuses(tiny_cohort, tmp_path, capsys):
    """A store whose step is no power of two times the tile: DeepZoom has no such level."""
    store = FeatureStore(tiny_cohort.store)
    record = store.read("s00")
    lattice = Lattice(record.lattice.spec, 1.1, 29)
    store.write(replace(record, lattice=lattice, coords=lattice.to_px0(record.grid)), overwrite=True)
    assert export(store.path, "--format", "histossl", "--output", tmp_path / "out", "--limit", 1) == 1
    assert "are no DeepZoom tiles of 32 px" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.npy"))


def test_wrong_options_are_user_errors(tiny_cohort, tmp_path):
    with pytest.raises(StoreError, match="no such folder"):
        export(tmp_path / "absent", "--format", "span", "--output", tmp_path / "out")
    with pytest.raises(ConfigError, match="--limit"):
        export(tiny_cohort.store, "--format", "span", "--output", tmp_path / "out", "--limit", 0)
