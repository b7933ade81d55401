"""What is an annotation, whatever program drew it? A name and an area in level-0 pixels.

Readers hand corners to a `Gathering`, which makes valid shapes of them and counts what it cannot use: people draw by
hand, and lines that cross themselves, points and clicks without extent are in every real file.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import affinity
from shapely.geometry import Polygon

from span_sparse.errors import AnnotationError
from span_sparse.wsi.geojson import Shape, valid_shape

MAX_SHARE_OUTSIDE = 0.1
"""Hand-drawn outlines may cross the slide's edge; a larger share of the area means another slide or unit."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotated region.

    Attributes:
        class_name: what the annotator called it, as it is in the file.
        geometry: valid, with area, in level-0 pixels.
        source_id: which one of the file it is, for messages.
    """

    class_name: str
    geometry: Shape
    source_id: str


@dataclass(frozen=True, slots=True)
class SlideAnnotations:
    """The annotations of one slide.

    Attributes:
        path: the file.
        format: `asap`, `aperio` or `geojson`.
        annotations: the regions.
        num_repaired: regions whose outline crossed itself; the parts that it surrounds an odd number of times count.
        num_degenerate: regions without area, left out.
        num_ignored: points, lines, measurements and detected cells, left out.
    """

    path: Path
    format: str
    annotations: tuple[Annotation, ...]
    num_repaired: int = 0
    num_degenerate: int = 0
    num_ignored: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The different class names, sorted."""
        return tuple(sorted({one.class_name for one in self.annotations}))

    @property
    def notes(self) -> str:
        """What was repaired or left out, empty when nothing was."""
        counts = {
            "self-crossing outlines repaired": self.num_repaired,
            "outlines without area left out": self.num_degenerate,
            "points, lines or detections left out": self.num_ignored,
        }
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)

    def moved(self, x_px0: int, y_px0: int) -> SlideAnnotations:
        """The same annotations with an offset in level-0 pixels added."""
        if (x_px0, y_px0) == (0, 0):
            return self
        moved = (replace(one, geometry=affinity.translate(one.geometry, x_px0, y_px0)) for one in self.annotations)
        return replace(self, annotations=tuple(moved))

    def bounds(self) -> tuple[float, float, float, float]:
        """Smallest box `(x0, y0, x1, y1)` around everything; not a number when there is nothing."""
        x0, y0, x1, y1 = shapely.total_bounds([one.geometry for one in self.annotations]).tolist()
        return x0, y0, x1, y1

    def check_on_slide(self, width_px0: int, height_px0: int) -> None:
        """Refuses annotations of which more than a tenth lies outside the slide.

        Raises:
            AnnotationError: with the numbers.
        """
        slide = shapely.box(0, 0, width_px0, height_px0)
        shapes = np.array([one.geometry for one in self.annotations], dtype=object)
        total = float(shapely.area(shapes).sum()) if len(shapes) else 0.0
        if total == 0:
            return
        outside = 1 - float(shapely.area(shapely.intersection(shapes, slide)).sum()) / total
        if outside > MAX_SHARE_OUTSIDE:
            x0, y0, x1, y1 = self.bounds()
            raise AnnotationError(
                f"{self.path}: {outside:.0%} of the annotated area lies outside the slide: x {x0:.0f} to {x1:.0f}, y "
                f"{y0:.0f} to {y1:.0f} on a slide of {width_px0} × {height_px0} px; the file belongs to another slide, "
                "or its coordinates are not level-0 pixels (other units, another level, another --origin)"
            )


@dataclass(slots=True)
class Gathering:
    """Collects the annotations of a file.

    Attributes:
        annotations: so far.
        num_repaired: as in `SlideAnnotations`, like the following.
        num_degenerate: without area.
        num_ignored: not regions.
    """

    annotations: list[Annotation] = field(default_factory=list)
    num_repaired: int = 0
    num_degenerate: int = 0
    num_ignored: int = 0

    def shape(self, corners: NDArray[np.float64]) -> Shape | None:
        """A valid shape of the corners `(x, y)`, float64 `[corners, 2]`; None, and counted, when it has no area."""
        polygon = Polygon(corners) if len(corners) >= 3 else None
        shape = None if polygon is None else valid_shape(polygon)
        if polygon is None or shape is None:
            self.num_degenerate += 1
            return None
        self.num_repaired += not polygon.is_valid
        return shape

    def add(self, class_name: str, geometry: Shape | None, source_id: str) -> None:
        """Keeps a region; nothing where `shape` gave None."""
        if geometry is not None:
            self.annotations.append(Annotation(class_name, geometry, source_id))

    def result(self, path: Path, kind: str) -> SlideAnnotations:
        """Everything that was collected."""
        return SlideAnnotations(
            path, kind, tuple(self.annotations), self.num_repaired, self.num_degenerate, self.num_ignored
        )


def rectangle_corners(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Corners of a rectangle that a file gives by two opposite corners; more corners are returned as they are."""
    if len(points) != 2:
        return points
    (x0, y0), (x1, y1) = points.tolist()
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def ellipse_corners(points: NDArray[np.float64], num_corners: int = 256) -> NDArray[np.float64]:
    """Corners of the ellipse in the box around the points; 256 of them miss 0.01 % of its area."""
    centre, radii = (points.min(axis=0) + points.max(axis=0)) / 2, np.ptp(points, axis=0) / 2
    angles = np.arange(num_corners) * (2 * np.pi / num_corners)
    return centre + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
