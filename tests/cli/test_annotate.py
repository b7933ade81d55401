from __future__ import annotations

import os
from pathlib import Path

import pytest

from span_sparse.cli.annotate import build_parser
from span_sparse.store import FeatureStore

XML = (
    '<ASAP_Annotations><Annotations><Annotation Name="0" Type="Polygon" PartOfGroup="{}"><Coordinates>'
    '<Coordinate Order="0" X="0" Y="0"/><Coordinate Order="1" X="320,0" Y="0"/><Coordinate Order="2" X="320" Y="320"/>'
    '<Coordinate Order="3" X="0" Y="320"/></Coordinates></Annotation></Annotations></ASAP_Annotations>'
)


@pytest.fixture
def places(tiny_cohort, tmp_path: Path, monkeypatch) -> tuple[Path, Path]:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    folder = tmp_path / "annotations"
    folder.mkdir()
    for slide, group in (("s00", "Tumor"), ("s01", "_0"), ("s02", "[red]_2"), ("other", "Tumor")):
        (folder / f"{slide}.xml").write_text(XML.format(group))
    return tiny_cohort.store, folder


def test_options_are_pinned() -> None:
    options = {action.dest for action in build_parser()._actions} - {"help", "config", "print_config"}
    assert options == {
        "store", "annotations", "cohort", "format", "classes", "exclude", "exclusive", "ignore_unknown", "unannotated",
        "origin", "allow_empty", "overwrite", "dry_run",
    }  # fmt: skip


def test_a_table_of_classes_and_the_exit_code(command, places, capsys) -> None:
    store, folder = places
    words = (
        "annotate",
        "--store",
        store,
        "--annotations",
        folder,
        "--classes",
        "tumor=Tumor,_0",
        "--exclude",
        "[red]_2",
    )
    assert command("span", *words, "--dry-run") == 0
    shown = capsys.readouterr()
    assert [line.split() for line in shown.out.splitlines() if "│" in line] == [
        ["│", "Tumor", "│", "1", "│", "tumor", "│"],
        ["│", "[red]_2", "│", "1", "│", "(cut", "out)", "│"],
        ["│", "_0", "│", "1", "│", "tumor", "│"],
    ]
    assert "3 slides with a file, 14 without; dry run: nothing was written" in shown.out
    assert "note: 1 files belong to no slide, first other.xml" in shown.err
    assert FeatureStore(store).metadata("s00").ratio_classes == ()

    assert command("span", *words) == 0
    shown = capsys.readouterr()
    assert ["│", "tumor", "│", "2", "│", "27", "│", "0.205", "│"] in [line.split() for line in shown.out.splitlines()]
    assert "3 slides annotated\n14 slides without file, left alone" in shown.out
    assert FeatureStore(store).metadata("s00").ratio_classes == ("tumor",)
    assert command("span", *words) == 0
    assert "3 slides annotated already" in capsys.readouterr().out

    (folder / "s03.xml").write_text("<Annotations>")
    assert command("span", *words) == 1
    shown = capsys.readouterr()
    assert "failed s03: " in shown.err
    assert "1 slides failed" in shown.out


def test_users_errors_are_one_line(command, places, capsys) -> None:
    store, folder = places
    words = ("annotate", "--store", store, "--annotations", folder)
    for more, message in (
        (("--classes", "tumor=Tumor"), "annotation names that no class has: '[red]_2' (1 slides, first s02.xml), '_0'"),
        (("--classes", "a=x", "b=x"), "an annotation name, 'x', is given twice"),
        (("--annotations", folder / "absent"), "no such folder of annotations"),
        (("--format", "geojson"), "holds no annotation files (.geojson, .json)"),
        (("--store", folder), "there is no store"),
    ):
        assert command("span", *words, *more) == 1
        shown = capsys.readouterr().err
        assert message in shown
        assert shown.count("error: ") == 1
    assert command("span", *words, "--origin", "centre") == 2
