from __future__ import annotations

from pathlib import Path

import pytest

from span_sparse.errors import AnnotationError
from span_sparse.wsi.annotations import (
    Annotation,
    AnnotationFiles,
    SlideAnnotations,
    read_annotations,
    shapes,
    xml_file,
)
from span_sparse.wsi.geojson import valid_shape


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "a.xml",
        "b.XML",
        "c.svs.geojson",
        "sub/d.json",
        "e.xml",
        "e.geojson",
        "notes.txt",
        ".f.xml",
        "0.5.xml",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "g.xml").mkdir()
    return tmp_path


def test_the_file_of_a_slide(folder) -> None:
    files = AnnotationFiles(folder)

    def name(*who: str | None) -> str | None:
        found = files.of(*who)
        return None if found is None else found.relative_to(folder).as_posix()

    assert name("a") == "a.xml"
    assert name("b") == "b.XML"
    assert (name("c"), name("c", "c.svs"), name("c.svs")) == (None, "c.svs.geojson", "c.svs.geojson")
    assert name("sub/d") == "sub/d.json"
    assert (name("d"), name("x", "sub/d.svs"), name("x", "other/a.svs"), name("x", "sub\\d.svs")) == (
        None, "sub/d.json", "a.xml", "sub/d.json",
    )  # fmt: skip
    assert (name("0.5"), name("0")) == ("0.5.xml", None)
    assert (name("notes"), name("f"), name("g"), name("../a")) == (None, None, None, None)
    with pytest.raises(AnnotationError, match=r"slide 'e' has several annotation files \(e.geojson, e.xml\)"):
        files.of("e")
    assert AnnotationFiles(folder, "geojson").of("e") == folder / "e.geojson"
    assert AnnotationFiles(folder, "asap").of("e") == folder / "e.xml"
    assert len(files.paths) == 7


def test_no_files(tmp_path) -> None:
    with pytest.raises(AnnotationError, match="no such folder of annotations"):
        AnnotationFiles(tmp_path / "absent")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(AnnotationError, match=r"holds no annotation files \(.xml, .geojson, .json\)"):
        AnnotationFiles(tmp_path)


BOMB = """<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<ASAP_Annotations><Annotations><Annotation Name="&b;"/></Annotations></ASAP_Annotations>"""
EXTERNAL = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><ASAP_Annotations>&x;</ASAP_Annotations>'
HEAD = "<ASAP_Annotations><Annotations><Annotation Type='Polygon'><Coordinates>\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, "line 1: has a document type declaration, which annotation files do not need; refused"),
        (EXTERNAL, "line 1: has a document type declaration"),
        ("<ASAP_Annotations>&b;</ASAP_Annotations>", "is not XML .undefined entity"),
        ("", "is not XML .no element found"),
        ("<ASAP_Annotations><Annotations>", "is not XML .no element found"),
        ("{}", "is not XML"),
        ('<?xml version="1.0" encoding="martian"?><Annotations/>', "is not XML .unknown encoding"),
        ("<html/>", "the root element is 'html', expected ASAP_Annotations"),
        ("<Annotations>" + "<a>" * 99, "line 1: elements are nested deeper than 32 levels"),
        (HEAD + "<Coordinate X='1,5' Y='1.000,5'/>", "line 2: attribute Y must be a number .* found '1.000,5'"),
        (HEAD + "<Coordinate X='nan' Y='1'/>", "line 2: attribute X must be a number .* found 'nan'"),
        (HEAD + "<Coordinate X='1' Y='1_0'/>", "attribute Y must be .* found '1_0'"),
        (HEAD + "<Coordinate X='1' Y='1e300'/>", "attribute Y must be .* found '1e300'"),
        (HEAD + "<Coordinate X='1'/>", "attribute Y must be .* found ''"),
    ],
)  # fmt: skip
def test_what_is_no_annotation_file(tmp_path, content, message) -> None:
    path = tmp_path / "slide.xml"
    path.write_text(content)
    with pytest.raises(AnnotationError, match=rf"slide\.xml(:|,) .*{message}"):
        read_annotations(path)


def test_large_and_missing_files(tmp_path, monkeypatch) -> None:
    with pytest.raises(AnnotationError, match=r"absent.xml: cannot be read: No such file"):
        read_annotations(tmp_path / "absent.xml")
    monkeypatch.setattr(xml_file, "MAX_FILE_BYTES", 10)
    (tmp_path / "large.xml").write_text("<Annotations/>")
    with pytest.raises(AnnotationError, match="expected at most 0"):
        read_annotations(tmp_path / "large.xml")


def test_the_format_can_be_demanded(tmp_path) -> None:
    (tmp_path / "a.xml").write_text("<Annotations/>")
    (tmp_path / "a.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    assert read_annotations(tmp_path / "a.xml", "aperio").annotations == ()
    for name, kind in (("a.xml", "asap"), ("a.xml", "geojson"), ("a.geojson", "asap")):
        with pytest.raises(AnnotationError, match=rf"is a file of format \w+, expected {kind}"):
            read_annotations(tmp_path / name, kind)


def on_slide(*boxes: tuple[float, float, float, float]) -> SlideAnnotations:
    shapes_ = [valid_shape(shapes.shapely.box(*one)) for one in boxes]
    return SlideAnnotations(Path("a.xml"), "asap", tuple(Annotation("t", one, "") for one in shapes_ if one))


def test_annotations_beside_the_slide() -> None:
    on_slide((0, 0, 1000, 500)).check_on_slide(1000, 500)
    on_slide((-40, -10, 1000, 500)).check_on_slide(1000, 500)
    on_slide().check_on_slide(1000, 500)
    with pytest.raises(
        AnnotationError,
        match=r"a.xml: 50% of the annotated area lies outside the slide: x 500 to 1500, y 0 to 500 on a slide of",
    ):
        on_slide((500, 0, 1500, 500)).check_on_slide(1000, 500)
    moved = on_slide((500, 0, 1500, 500)).moved(-500, 7)
    assert moved.bounds() == (0, 7, 1000, 507)
    moved.check_on_slide(1000, 500)
