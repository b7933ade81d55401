"""What did `span heatmap` leave behind, and may it be shown?

    OUT/heatmaps.csv            slide_id, case_id, folder, status, error
    OUT/<folder>/meta.json      ids, names of the scores, patch and step in level-0 pixels, size of the slide
    OUT/<folder>/scores.csv     row, col, x_px0, y_px0 and one column for each score; one row a patch
    OUT/<folder>/heatmap.png    the default score over the slide

1. The table names the folders; without it every folder with a `meta.json` counts. A folder without `meta.json` is not
   complete and is left out with a remark.
2. Every value that is used later is checked here: the files may come from another machine, and a folder called
   `../../etc` or a patch of 0 px must be a remark, not a path that is followed or a division by zero.
3. Scores are read when asked for, one slide at a time: a cohort's scores together can be larger than memory.
"""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from span_sparse.errors import ReportError
from span_sparse.heatmaps.folder import INDEX_FILE, META_FILE, PLACE_COLUMNS, SCORES_FILE

PICTURE: Final = "heatmap.png"
MAX_EDGE_PX0: Final = 2**21
"""Longest side of a slide that is believed; the slide reader has the same limit."""

MAX_META_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class ShownSlide:
    """A slide with scores.

    Attributes:
        slide_id: the slide.
        case_id: its patient.
        folder: where its files lie.
        score_names: columns of `scores.csv`.
        default_score: the one that is shown first.
        patch_px0: edge of a patch in level-0 pixels.
        step_px0: distance of neighbouring patches in level-0 pixels.
        dimensions_px0: `(width, height)` of level 0, None where unknown.
        mpp: µm per level-0 pixel, None where unknown.
        slide_path: the slide's file as it was given, None without one. Never opened unless it was asked for.
        predicted: what the model said, as written.
    """

    slide_id: str
    case_id: str
    folder: Path
    score_names: tuple[str, ...]
    default_score: str
    patch_px0: int
    step_px0: int
    dimensions_px0: tuple[int, int] | None
    mpp: float | None
    slide_path: str | None
    predicted: dict[str, Any]

    @property
    def picture(self) -> Path:
        """The rendered heatmap; need not exist."""
        return self.folder / PICTURE


@dataclass(frozen=True, slots=True)
class PatchScores:
    """Scores of the patches of a slide.

    Attributes:
        grid: `(row, col)` of each patch, int32 `[patches, 2]`.
        corners_px0: `(x, y)` of each patch's top-left corner in level-0 pixels, int64 `[patches, 2]`.
        values: by score, float32 `[patches]`; NaN where the model gave none.
    """

    grid: NDArray[np.int32]
    corners_px0: NDArray[np.int64]
    values: dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class HeatmapFolder:
    """What can be shown of a folder.

    Attributes:
        path: the folder.
        slides: by slide id, in the order of the table.
        remarks: what was left out and why, one sentence each.
    """

    path: Path
    slides: dict[str, ShownSlide]
    remarks: tuple[str, ...]


def read_heatmap_folder(path: Path) -> HeatmapFolder:
    """The slides of a folder of heatmaps.

    Args:
        path: what `span heatmap --output` was given.

    Raises:
        ReportError: no such folder, a table that cannot be read, or no complete slide in it.
    """
    if not path.is_dir():
        raise ReportError(f"{path}: no such folder; give the one that `span heatmap --output` wrote")
    slides: dict[str, ShownSlide] = {}
    remarks: list[str] = []
    for name in _folder_names(path, remarks):
        try:
            slide = _read_meta(path, name)
        except (OSError, ValueError, RecursionError) as error:
            remarks.append(f"heatmap folder {name!r} left out: {error}")
            continue
        if slide.slide_id in slides:
            remarks.append(f"heatmap folder {name!r} left out: slide {slide.slide_id!r} was there before")
            continue
        slides[slide.slide_id] = slide
    if not slides:
        found = f"; first problem: {remarks[0]}" if remarks else ""
        raise ReportError(f"{path}: no complete slide; expected folders with {META_FILE} from `span heatmap`{found}")
    return HeatmapFolder(path, slides, tuple(remarks))


def read_scores(slide: ShownSlide) -> PatchScores:
    """The scores of a slide.

    Raises:
        ReportError: the table is missing, lacks a column or holds something that is not a number.
    """
    path = slide.folder / SCORES_FILE
    wanted = [*PLACE_COLUMNS, *slide.score_names]
    exact: Any = {"usecols": lambda name: name in wanted, "dtype": np.float64, "float_precision": "round_trip"}
    try:
        frame = pd.read_csv(path, **exact)
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise ReportError(
            f"{path}: cannot be read as a table of numbers ({error}); run `span heatmap` again"
        ) from error
    missing = [name for name in wanted if name not in frame.columns]
    if missing or frame.empty:
        raise ReportError(
            f"{path}: expected rows with the columns {', '.join(wanted)}, missing: {missing or 'any row'}"
        )
    places = frame[list(PLACE_COLUMNS)].to_numpy()
    if not (np.isfinite(places).all() and (np.abs(places) <= MAX_EDGE_PX0).all()):
        raise ReportError(f"{path}: a place is empty or further than {MAX_EDGE_PX0} px; run `span heatmap` again")
    return PatchScores(
        grid=places[:, :2].astype(np.int32),
        corners_px0=places[:, 2:].astype(np.int64),
        values={name: frame[name].to_numpy(dtype=np.float32) for name in slide.score_names},
    )


def _folder_names(path: Path, remarks: list[str]) -> list[str]:
    """Names from the table, or of all folders with a `meta.json`; remarks on slides that failed."""
    table = path / INDEX_FILE
    if not table.is_file():
        return sorted(folder.name for folder in path.iterdir() if (folder / META_FILE).is_file())
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, ValueError, csv.Error) as error:
        raise ReportError(f"{table}: cannot be read as a CSV file ({error}); run `span heatmap` again") from error
    if rows and "folder" not in rows[0]:
        raise ReportError(f"{table}: expected a column `folder`, found {', '.join(map(str, rows[0]))}")
    failed = [row for row in rows if row.get("error")]
    remarks += [f"no heatmap of slide {row.get('slide_id')!r}: {row['error']}" for row in failed[:20]]
    if len(failed) > 20:
        remarks.append(f"no heatmap of {len(failed) - 20} more slides, see {INDEX_FILE}")
    return [row["folder"] for row in rows if row.get("folder") and not row.get("error")]


def _read_meta(parent: Path, name: str) -> ShownSlide:
    """Raises `ValueError` for whatever is wrong."""
    folder = parent / name
    if Path(name).name != name or name in (".", "..") or folder.resolve().parent != parent.resolve():
        raise ValueError("its name leads out of the folder of heatmaps")
    path = folder / META_FILE
    if not path.is_file():
        raise ValueError(f"no {META_FILE}: it is not complete")
    if path.stat().st_size > MAX_META_BYTES:
        raise ValueError(f"{META_FILE} is larger than {MAX_META_BYTES} bytes")
    meta = json.loads(path.read_bytes())
    if not isinstance(meta, dict):
        raise ValueError(f"{META_FILE}: expected an object")
    slide_id, scores = meta.get("slide_id"), meta.get("scores")
    if not isinstance(slide_id, str) or not slide_id:
        raise ValueError(f"{META_FILE}: slide_id: expected a text")
    if not isinstance(scores, list) or not scores or not all(isinstance(score, str) for score in scores):
        raise ValueError(f"{META_FILE}: scores: expected a list of names")
    default = meta.get("default_score")
    predicted = meta.get("predicted")
    slide_path = meta.get("slide_path")
    return ShownSlide(
        slide_id=slide_id,
        case_id=str(meta.get("case_id") or slide_id),
        folder=folder,
        score_names=tuple(dict.fromkeys(scores)),
        default_score=default if isinstance(default, str) and default in scores else scores[0],
        patch_px0=_pixels(meta, "patch_px0"),
        step_px0=_pixels(meta, "step_px0"),
        dimensions_px0=_dimensions(meta.get("dimensions_px0")),
        mpp=_positive(meta.get("mpp")),
        slide_path=slide_path if isinstance(slide_path, str) and slide_path else None,
        predicted=predicted if isinstance(predicted, dict) else {},
    )


def _pixels(meta: dict[str, Any], key: str) -> int:
    value = meta.get(key)
    if not isinstance(value, int | float) or not 1 <= value <= MAX_EDGE_PX0 or value != int(value):
        raise ValueError(f"{META_FILE}: {key}: expected a whole number of pixels, found {str(value)[:80]!r}")
    return int(value)


def _dimensions(value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{META_FILE}: dimensions_px0: expected [width, height]")
    width, height = (_pixels({"dimensions_px0": edge}, "dimensions_px0") for edge in value)
    return width, height


def _positive(value: object) -> float | None:
    if isinstance(value, int | float) and 0 < value < math.inf:
        return float(value)
    return None
