from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
import shapely
from shapely.geometry import MultiPolygon, Polygon, box

from span_sparse.grid import Lattice, LatticeSpec
from span_sparse.wsi.annotations import Annotation, ClassMapping, class_regions, overlap_ratios
from span_sparse.wsi.annotations.overlap import PIECE_CORNERS, _pieces

LATTICE = LatticeSpec(10, 1.0).on_slide(1.0)
CELLS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.int32)


def ratios(shape, lattice: Lattice = LATTICE, cells=CELLS) -> list[float]:
    return overlap_ratios([shape], lattice, cells)[:, 0].tolist()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (box(0, 0, 10, 10), [1, 0, 0, 0]),
        (box(5, 0, 15, 10), [0.5, 0.5, 0, 0]),
        (box(5, 5, 15, 15), [0.25, 0.25, 0.25, 0.25]),
        (Polygon([(0, 0), (10, 0), (0, 10)]), [0.5, 0, 0, 0]),
        (Polygon(box(0, 0, 20, 20).exterior, [box(2, 2, 7, 6).exterior]), [0.8, 1, 1, 1]),
        (MultiPolygon([box(0, 0, 1, 1), box(12, 0, 14, 5), box(19, 19, 30, 30)]), [0.01, 0.1, 0, 0.01]),
        (box(20, 20, 30, 30), [0, 0, 0, 0]),
        (box(-100, -100, 100, 100), [1, 1, 1, 1]),
        (Polygon(), [0, 0, 0, 0]),
    ],
    ids=["one", "halves", "quarters", "triangle", "hole", "parts", "outside", "around", "nothing"],
)
def test_areas_worked_out_by_hand(shape, expected) -> None:
    assert ratios(shape) == pytest.approx(expected, abs=1e-7)


def test_patches_of_an_imported_lattice() -> None:
    """Origin (3, 4), step 10, patch 14: the patch of cell (1, 0) is x 3–17, y 14–28."""
    lattice = Lattice(LatticeSpec(14, 1.0), 1.0, 10, (3, 4), 4)
    assert lattice.box(1, 0) == (3, 14, 17, 28)
    assert ratios(box(3, 14, 17, 21), lattice, np.array([[1, 0]])) == pytest.approx([0.5])
    assert ratios(box(13, 4, 17, 18), lattice) == pytest.approx([4 / 14, 4 / 14, 16 / 196, 16 / 196])
    gaps = Lattice(LatticeSpec(6, 1.0), 1.0, 10, (0, 0), -4)
    assert ratios(box(3, 0, 10, 6), gaps) == pytest.approx([0.5, 0, 0, 0])


def star(random, centre, radius: float, num_corners: int) -> Polygon:
    angles = np.sort(random.uniform(0, 2 * np.pi, num_corners))
    radii = radius * random.uniform(0.4, 1, num_corners)
    return Polygon(np.stack([centre[0] + radii * np.cos(angles), centre[1] + radii * np.sin(angles)], axis=1))


def inside(polygon: Polygon, x, y):
    """Even-odd rule by counting crossings of a ray to the right."""
    odd = np.zeros(x.shape, dtype=bool)
    for ring in (polygon.exterior, *polygon.interiors):
        corners = np.array(ring.coords)
        for (x0, y0), (x1, y1) in pairwise(corners):
            if y0 != y1:
                odd ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return odd


def test_every_class_agrees_with_a_dense_raster() -> None:
    """20 × 20 points in every patch; each point decides for itself by names, holes and order of the classes."""
    random = np.random.default_rng(1)
    lattice = Lattice(LatticeSpec(16, 1.0), 1.0, 13, (5, 2), 3)
    cells = np.stack(np.divmod(np.arange(49), 7), axis=1).astype(np.int32)
    names = ["Tumor", "_0", "Normal", "hole"] * 4
    annotations = [
        Annotation(name, star(random, random.uniform(0, 100, 2), random.uniform(10, 45), 37), str(number))
        for number, name in enumerate(names)
    ]
    for exclusive in (False, True):
        mapping = ClassMapping.parse(["tumor=Tumor,_0", "normal=Normal"], ["hole"], exclusive=exclusive)
        found = overlap_ratios(class_regions(annotations, mapping), lattice, cells)
        steps = (np.arange(20) + 0.5) / 20 * lattice.patch_px0
        for row, cell in enumerate(cells):
            corner = lattice.box(*cell.tolist())
            x, y = np.meshgrid(corner.x0 + steps, corner.y0 + steps)
            hits = {name: np.zeros(x.shape, dtype=bool) for name in names}
            for one in annotations:
                hits[one.class_name] |= inside(one.geometry, x, y)
            tumor = (hits["Tumor"] | hits["_0"]) & ~hits["hole"]
            normal = hits["Normal"] & ~hits["hole"] & ~(tumor & exclusive)
            assert found[row].tolist() == pytest.approx([tumor.mean(), normal.mean()], abs=0.02)
    assert 0.1 < found.mean() < 0.9


def test_what_is_drawn_twice_counts_once() -> None:
    twice = [Annotation("a", box(0, 0, 6, 10), "1"), Annotation("a", box(4, 0, 10, 5), "2")]
    (region,) = class_regions(twice, ClassMapping.parse(["a"]))
    assert ratios(region)[0] == pytest.approx(0.8)
    assert class_regions(twice, ClassMapping.parse(["b"]))[0].is_empty


def test_pieces_are_small_and_lose_nothing() -> None:
    random = np.random.default_rng(0)
    shape = shapely.make_valid(star(random, (0, 0), 1000, 2003)).difference(star(random, (300, 0), 100, 397))
    pieces = _pieces(shape, 50)
    small = (np.ptp(shapely.bounds(pieces).reshape(-1, 2, 2), axis=1) <= 50).all(axis=1)
    assert (small | (shapely.get_num_coordinates(pieces) <= PIECE_CORNERS)).all()
    assert 0 < small.sum() < len(pieces)
    assert sum(piece.area for piece in pieces) == pytest.approx(shape.area, rel=1e-9)
    assert shapely.union_all(pieces).symmetric_difference(shape).area < 1e-6 * shape.area


def test_a_slide_of_many_patches_and_polygons_takes_seconds() -> None:
    random = np.random.default_rng(0)
    lattice = LatticeSpec(256, 0.5).on_slide(0.25)
    cells = np.stack(np.divmod(random.permutation(156 * 156)[:5000], 156), axis=1).astype(np.int32)
    shapes = [star(random, random.uniform(0, 80_000, 2), random.uniform(100, 2000), 60) for _ in range(300)]
    angles = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)
    radii = 20_000 + 5_000 * np.sin(50 * angles)
    shapes.append(Polygon(np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1) + 40_000))
    annotations = [Annotation("a", shapely.make_valid(shape), "") for shape in shapes]
    start_s = time.process_time()
    found = overlap_ratios(class_regions(annotations, ClassMapping.parse(["a"])), lattice, cells)
    assert time.process_time() - start_s < 6  # 0.6 s on a quiet core; with whole outlines 20
    assert 0.1 < found.mean() < 0.9
