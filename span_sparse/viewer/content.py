"""What does the viewer know of a cohort, and what does it answer?

Slides are numbered; a request names a number, never an id or a file. So there is no way to ask for anything but what
was listed when the viewer started. A slide's file is looked for below the folder of slides alone, by the rule of the
cohort table; whatever path the heatmap folder states outside of it is not opened, and the slide is shown as its lattice
on white. Scores are read when a slide is looked at, and a few slides are remembered.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from span_sparse.cohort import PATH, CohortTable
from span_sparse.errors import ReportError, SpanError
from span_sparse.heatmaps.folder import INDEX_FILE, SCALE_FILE
from span_sparse.heatmaps.raster import COLOUR_MAP, ColourScale
from span_sparse.report import (
    Evaluation,
    HeatmapFolder,
    PatchScores,
    ShownSlide,
    is_wrong,
    outcome_texts,
    read_scores,
    slide_errors,
)
from span_sparse.report.page import ERROR_WORDS
from span_sparse.viewer.slides import OpenSlides, jpeg
from span_sparse.wsi.deep_zoom import TILE_PX, DeepZoomPyramid

MAX_REMEMBERED: Final = 4
"""Slides whose scores stay in memory."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A slide of the list; its JSON is what the page gets."""

    slide: ShownSlide
    case_id: str
    split: str = ""
    true: str = ""
    predicted: str = ""
    error: float | None = None
    is_wrong: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the page."""
        return {
            "id": self.slide.slide_id, "case": self.case_id, "split": self.split, "true": self.true,
            "predicted": self.predicted, "error": self.error, "wrong": self.is_wrong,
        }  # fmt: skip


class ViewerContent:
    """Answers of the viewer; safe for several threads.

    Args:
        heatmaps: the slides and their scores.
        slides_dir: folder of the slide files; None to show lattices on white.
        evaluation: what was predicted; None for a list by id alone.

    Raises:
        ReportError: the colour scale of the folder cannot be read.
    """

    def __init__(
        self, heatmaps: HeatmapFolder, slides_dir: Path | None = None, evaluation: Evaluation | None = None
    ) -> None:
        self.entries = _entries(heatmaps, evaluation)
        self._heatmaps = heatmaps
        self._slides_dir = slides_dir
        self._error_words = ERROR_WORDS[evaluation.kind] if evaluation is not None else ""
        self._scale = _read_scale(heatmaps.path / SCALE_FILE)
        self._open = OpenSlides()
        self._scores: OrderedDict[int, PatchScores] = OrderedDict()
        self._pyramids: dict[int, tuple[Path | None, DeepZoomPyramid, str]] = {}
        self._lock = threading.Lock()
        self._white = {}

    def cohort(self) -> bytes:
        """The list of slides and the colours, as JSON."""
        colours = colormaps[COLOUR_MAP](np.linspace(0.0, 1.0, 256))
        return _json(
            {
                "title": self._heatmaps.path.resolve().name,
                "error_words": self._error_words,
                "colours": [to_hex(colour) for colour in colours],
                "remarks": list(self._heatmaps.remarks),
                "slides": [entry.as_dict() for entry in self.entries],
            }
        )

    def slide(self, number: int) -> bytes | None:
        """Geometry and names of the scores of a slide, as JSON; None when there is no such slide.

        Raises:
            SpanError: its scores cannot be read.
        """
        if not 0 <= number < len(self.entries):
            return None
        shown, scores = self.entries[number].slide, self._scores_of(number)
        path, pyramid, reason = self._place(number)
        scales = [self._colour_scale(name, scores) for name in shown.score_names]
        return _json(
            {
                "width_px0": pyramid.width_px0, "height_px0": pyramid.height_px0, "tile_px": TILE_PX,
                "min_level": pyramid.min_level, "max_level": pyramid.max_level, "has_slide": path is not None,
                "reason": reason, "mpp": shown.mpp, "patch_px0": shown.patch_px0, "step_px0": shown.step_px0,
                "num_patches": len(scores.grid), "scores": list(shown.score_names),
                "default": shown.score_names.index(shown.default_score),
                "limits": [[scale.low, scale.high, scale.cohort] for scale in scales],
            }
        )  # fmt: skip

    def corners(self, number: int) -> bytes | None:
        """Corners `(x, y)` of the patches, level-0 pixels, little-endian int32."""
        if not 0 <= number < len(self.entries):
            return None
        return self._scores_of(number).corners_px0.astype("<i4").tobytes()

    def score(self, number: int, column: int) -> bytes | None:
        """One score of the patches, little-endian float32; None when there is no such slide or score."""
        if not (0 <= number < len(self.entries) and 0 <= column < len(self.entries[number].slide.score_names)):
            return None
        name = self.entries[number].slide.score_names[column]
        return self._scores_of(number).values[name].astype("<f4").tobytes()

    def patch(self, number: int, patch: int) -> bytes | None:
        """All scores of a patch, as JSON; None when there is no such patch."""
        if not 0 <= number < len(self.entries):
            return None
        scores = self._scores_of(number)
        if not 0 <= patch < len(scores.grid):
            return None
        values = {name: float(column[patch]) for name, column in scores.values.items()}
        row, col = scores.grid[patch].tolist()
        x_px0, y_px0 = scores.corners_px0[patch].tolist()
        shown = [value if np.isfinite(value) else None for value in values.values()]
        return _json({"row": row, "col": col, "x_px0": x_px0, "y_px0": y_px0, "values": shown})

    def tile(self, number: int, level: int, column: int, row: int) -> bytes | None:
        """A tile as JPEG, white for a slide without file; None when there is no such tile.

        Raises:
            SpanError: the slide cannot be read there.
        """
        if not 0 <= number < len(self.entries):
            return None
        path, pyramid, _ = self._place(number)
        place = pyramid.tile(level, column, row)
        if place is None:
            return None
        if path is not None:
            return self._open.tile(path, level, column, row)
        size = place[1]
        if size not in self._white:
            self._white[size] = jpeg(Image.new("RGB", size, "white"))
        return self._white[size]

    def close(self) -> None:
        """Closes the slides."""
        self._open.close()

    def _scores_of(self, number: int) -> PatchScores:
        with self._lock:
            if number in self._scores:
                self._scores.move_to_end(number)
                return self._scores[number]
        read = read_scores(self.entries[number].slide)
        with self._lock:
            self._scores[number] = read
            while len(self._scores) > MAX_REMEMBERED:
                self._scores.popitem(last=False)
        return read

    def _colour_scale(self, name: str, scores: PatchScores) -> ColourScale:
        if self._scale is not None and self._scale.score == name:
            return self._scale
        finite = scores.values[name][np.isfinite(scores.values[name])]
        return ColourScale.of(name, finite if len(finite) else np.zeros(1))

    def _place(self, number: int) -> tuple[Path | None, DeepZoomPyramid, str]:
        """The slide's file, its tiles, and why there is no file."""
        known = self._pyramids.get(number)
        if known is None:
            known = self._pyramids[number] = self._find(number)
        return known

    def _find(self, number: int) -> tuple[Path | None, DeepZoomPyramid, str]:
        shown = self.entries[number].slide
        if self._slides_dir is None:
            reason = "no folder of slides was given (--slides)"
        else:
            try:
                path = _slide_file(shown, self._slides_dir, self._heatmaps.path)
                pyramid = self._open.pyramid(path)
            except SpanError as error:
                reason = str(error)
            else:
                size = (pyramid.width_px0, pyramid.height_px0)
                if shown.dimensions_px0 in (None, size):
                    return path, pyramid, ""
                reason = f"{path.name} is {size[0]} × {size[1]} px, the scores are of a slide of " + (
                    "{} × {} px".format(*(shown.dimensions_px0 or ()))
                )
        scores = self._scores_of(number)
        ends = scores.corners_px0.max(axis=0) + shown.patch_px0
        width, height = shown.dimensions_px0 or (int(ends[0]), int(ends[1]))
        return None, DeepZoomPyramid(max(width, 1), max(height, 1)), reason


def _slide_file(shown: ShownSlide, slides_dir: Path, heatmaps: Path) -> Path:
    """By the rule of the cohort table; the path that the heatmaps state counts only below the folder of slides."""
    given = None
    if shown.slide_path is not None:
        stated = Path(shown.slide_path).absolute()
        if stated.is_relative_to(slides_dir.absolute()) and stated.is_file():
            given = str(stated.relative_to(slides_dir.absolute()))
    frame = pd.DataFrame({"slide_id": [shown.slide_id], PATH: [given]}, dtype=object)
    return CohortTable(heatmaps / INDEX_FILE, frame, (2,)).slide_path(shown.slide_id, slides_dir)


def _entries(heatmaps: HeatmapFolder, evaluation: Evaluation | None) -> tuple[Entry, ...]:
    """The most wrong first where errors are known; a slide in several splits counts as in the first."""
    if evaluation is None:
        return tuple(Entry(slide, slide.case_id, predicted=_predicted(slide)) for slide in heatmaps.slides.values())
    frame, errors = evaluation.frame, slide_errors(evaluation)
    outcomes, wrong = outcome_texts(evaluation), is_wrong(evaluation)
    rows: dict[str, int] = {}
    for row, slide_id in enumerate(frame["slide_id"]):
        rows.setdefault(slide_id, row)
    found = []
    for slide_id, slide in heatmaps.slides.items():
        row = rows.get(slide_id)
        if row is None:
            found.append(Entry(slide, slide.case_id, predicted=_predicted(slide)))
            continue
        error = None if np.isnan(errors[row]) else float(errors[row])
        place = frame["case_id"].iloc[row], frame["split"].iloc[row]
        found.append(Entry(slide, *place, *outcomes[row], error, bool(wrong[row])))
    return tuple(sorted(found, key=lambda entry: -1.0 if entry.error is None else entry.error, reverse=True))


def _predicted(slide: ShownSlide) -> str:
    """What the heatmap folder says of the prediction, in a few words."""
    parts = [
        f"{str(name).removeprefix('prob_')} {value:.3f}"
        for name, value in slide.predicted.items()
        if isinstance(value, float)
    ]
    return ", ".join(parts[:4])


def _read_scale(path: Path) -> ColourScale | None:
    """The colour scale of the cohort, where `span heatmap --one-scale` wrote one."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        low, high = float(content["low"]), float(content["high"])
        if not (np.isfinite([low, high]).all() and low < high):
            raise ValueError(f"low {low}, high {high}")
        return ColourScale(str(content["score"]), low, high, cohort=True)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ReportError(f"{path}: expected a colour scale with score, low and high ({error})") from error


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8", errors="replace")
