from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from span_sparse.wsi.annotations import SlideAnnotations, read_annotations

REAL = Path(__file__).parents[4] / "shared" / "slides" / "annotations"


def read(tmp_path: Path, name: str, content: str, **options) -> SlideAnnotations:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    return read_annotations(path, **options)


def areas(found: SlideAnnotations) -> list[tuple[str, float]]:
    return [(one.class_name, pytest.approx(one.geometry.area, rel=1e-6)) for one in found.annotations]


def asap(*annotations: tuple[str, str, list[tuple[object, object]]]) -> str:
    body = "".join(
        f'<Annotation Name="Annotation {number}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58"><Coordinates>'
        + "".join(f'<Coordinate Order="{order}" X="{x}" Y="{y}" />' for order, (x, y) in enumerate(points))
        + "</Coordinates></Annotation>"
        for number, (kind, group, points) in enumerate(annotations)
    )
    groups = '<AnnotationGroups><Group Name="Tumor" PartOfGroup="None" Color="#64FE2E" /></AnnotationGroups>'
    return f'<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>{body}</Annotations>{groups}</ASAP_Annotations>'


SQUARE = [(0, 0), (10, 0), (10, 10), (0, 10)]


def test_asap(tmp_path) -> None:
    found = read(
        tmp_path,
        "slide.xml",
        asap(
            ("Polygon", "Tumor", SQUARE),
            ("Spline", "_2", [("0,5", "0"), ("4,5", "0,0"), ("4,5", "2,25"), ("0,5", "2,25")]),
            ("Rectangle", "None", [("1e2", 100), ("110.5", 120)]),
            ("Polygon", "", [(0, 0), (2, 2), (2, 0), (0, 2)]),
            ("Polygon", "Tumor", [(0, 0), (5, 5), (10, 10)]),
            ("Polygon", "Tumor", [(3, 3)]),
            ("Dot", "Tumor", [(3, 3)]),
            ("PointSet", "Tumor", SQUARE),
            ("Measurement", "Tumor", SQUARE[:2]),
        ),
    )
    assert found.format == "asap"
    assert areas(found) == [("Tumor", 100), ("_2", 9), ("None", 210), ("None", 2)]
    assert found.annotations[1].geometry.bounds == (0.5, 0, 4.5, 2.25)
    assert [one.source_id for one in found.annotations] == [f"Annotation {number}" for number in range(4)]
    assert (found.num_repaired, found.num_degenerate, found.num_ignored) == (1, 2, 3)
    assert found.notes == (
        "1 self-crossing outlines repaired, 2 outlines without area left out, 3 points, lines or detections left out"
    )
    assert found.names == ("None", "Tumor", "_2")


def test_corners_are_taken_in_their_order(tmp_path) -> None:
    text = asap(("Polygon", "Tumor", SQUARE))
    shuffled = (
        text.replace('Order="1"', 'Order="x"').replace('Order="2"', 'Order="1"').replace('Order="x"', 'Order="2"')
    )
    assert areas(read(tmp_path, "a.xml", text)) == [("Tumor", 100)]
    crossed = read(tmp_path, "b.xml", shuffled)
    assert (areas(crossed), crossed.num_repaired) == ([("Tumor", 50)], 1)


def aperio(*layers: tuple[str, list[tuple[str, list[tuple[float, float]]]]]) -> str:
    body = ""
    for number, (attributes, regions) in enumerate(layers, start=1):
        inner = "".join(
            f'<Region Id="{region}" {about}><Attributes/><Vertices>'
            + "".join(f'<Vertex X="{x}" Y="{y}" Z="0" />' for x, y in points)
            + "</Vertices></Region>"
            for region, (about, points) in enumerate(regions, start=1)
        )
        body += (
            f'<Annotation Id="{number}" {attributes}<Regions><RegionAttributeHeaders/>{inner}</Regions></Annotation>'
        )
    return f'<Annotations MicronsPerPixel="0.25">{body}</Annotations>'


def test_aperio(tmp_path) -> None:
    described = '<Attributes><Attribute Name="Description" Id="0" Value="{}"/></Attributes>'
    found = read(
        tmp_path,
        "slide.XML",
        aperio(
            (
                'Name="Tumor" LineColor="255">',
                [
                    ('Type="0" Text="7" NegativeROA="0"', SQUARE),
                    ('Type="0" NegativeROA="1"', [(2, 2), (4, 2), (4, 4), (2, 4)]),
                    ('Type="1"', [(20, 20), (25, 26)]),
                    ('Type="2"', [(100, 100), (120, 140)]),
                    ('Type="3"', [(0, 0), (9, 9)]),
                    ('Type="4"', [(0, 0), (9, 9)]),
                    ('Type="0"', [(0, 0), (9, 9)]),
                ],
            ),
            ('Name="" LineColor="65280">' + described.format("stroma"), [('Type="0" Text="x"', SQUARE)]),
            ('Name="" LineColor="65280">' + described.format(""), [('Type="0" Text="Fold"', SQUARE)]),
            ('Name="" LineColor="16744448">', [('Type="0" Text="null"', SQUARE), ('Type="0"', SQUARE)]),
            ('Name="hole" LineColor="0">', [('Type="0"', [(1, 1), (2, 1), (2, 2)]), ('NegativeROA="1"', SQUARE)]),
        ),
    )
    ellipse = np.pi * 10 * 20 * (1 - 1e-4)
    assert found.format == "aperio"
    assert [one.class_name for one in found.annotations] == ["Tumor"] * 3 + ["stroma", "Fold", "#0080ff", "#0080ff"]
    assert [one.geometry.area for one in found.annotations] == pytest.approx(
        [96, 30, ellipse, 100, 100, 100, 100], rel=1e-5
    )
    assert [one.source_id for one in found.annotations][:3] == [f"layer 1 region {number}" for number in (1, 3, 4)]
    assert (found.num_degenerate, found.num_ignored) == (2, 2)


def feature(geometry: object, **properties: object) -> dict[str, object]:
    return {"type": "Feature", "id": "x", "geometry": geometry, "properties": properties}


def polygon(*rings: list[tuple[float, float]]) -> dict[str, object]:
    return {"type": "Polygon", "coordinates": [[*ring, ring[0]] for ring in rings]}


def test_qupath(tmp_path) -> None:
    hole = [(2, 2), (4, 2), (4, 4), (2, 4)]
    parts = {
        "type": "MultiPolygon",
        "coordinates": [polygon(SQUARE, hole)["coordinates"], polygon([(20, 0), (21, 0), (21, 1)])["coordinates"]],
    }
    crossed = [(0, 0), (2, 2), (2, 0), (0, 2)]
    features = [
        feature(polygon(SQUARE, hole), objectType="annotation", classification={"name": "Tumor", "color": [1, 2, 3]}),
        feature(parts, objectType="annotation", classification={"names": ["Tumor", "In situ"]}, name="region 1"),
        feature(polygon(SQUARE), classification="Stroma"),
        feature(polygon(crossed), objectType="annotation", name="Fat"),
        feature(polygon(SQUARE), objectType="annotation"),
        feature(polygon(SQUARE), objectType="detection", classification={"name": "Tumor"}),
        feature(polygon(SQUARE), objectType="cell", classification={"name": "Tumor"}),
        feature({"type": "Point", "coordinates": [1, 1]}, objectType="annotation"),
        feature(polygon([(0, 0), (1, 1), (2, 2)]), objectType="annotation"),
        {**feature(polygon(SQUARE)), "id": "PathDetectionObject"},
        feature(None),
    ]  # fmt: skip
    for document in ({"type": "FeatureCollection", "features": features}, features):
        found = read(tmp_path, "slide.geojson", json.dumps(document))
        assert areas(found) == [
            ("Tumor", 96),
            ("Tumor: In situ", 96.5),
            ("Stroma", 100),
            ("Fat", 2),
            ("unclassified", 100),
        ]
        assert [one.source_id for one in found.annotations] == [f"feature {number}" for number in range(1, 6)]
        assert (found.num_repaired, found.num_degenerate, found.num_ignored) == (1, 1, 5)
    single = read(tmp_path, "one.json", json.dumps(features[0]))
    assert (areas(single), single.format) == ([("Tumor", 96)], "geojson")
    assert areas(read(tmp_path, "bare.json", json.dumps(polygon(SQUARE)))) == [("unclassified", 100)]


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason="the real annotations are not here")
def test_real_exports() -> None:
    found = read_annotations(REAL / "qupath-0.5.geojson")
    assert [one.class_name for one in found.annotations] == ["UT", "I", "I"]
    x, y = np.array(json.loads(found.path.read_text())["features"][0]["geometry"]["coordinates"][0]).T
    shoelace = abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2
    assert found.annotations[0].geometry.area == pytest.approx(shoelace)
    found = read_annotations(REAL / "aperio-CMU-1-JP2K-33005.xml")
    assert [one.class_name for one in found.annotations] == ["#00ff00", "Necrosis", "Fold", "#00ff00"]
    # half axes from the four corners of the ellipse
    assert found.annotations[3].geometry.area == pytest.approx(np.pi * 67.561492 * 70.1937705, rel=2e-4)
    assert found.num_repaired == 1
