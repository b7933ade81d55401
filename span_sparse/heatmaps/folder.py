"""What lies in a heatmap folder, and when is a slide's part of it complete?

`OUT/<slide>/` holds for each slide:

* `scores.csv`: one row a patch in the store's order, `row, col, x_px0, y_px0`, then one column a score;
* pictures and outlines made of it (`render.py`);
* `meta.json`: which slide, checkpoint and scores. It is taken away first and written last, so its presence says that
  the rest is whole and belongs together.

`OUT/heatmaps.csv` has a row for each slide that was tried. Raw scores are kept because a picture cannot be undone:
its colours depend on a scale, and the scale on the cohort.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import HeatmapError
from span_sparse.files import write_atomically
from span_sparse.grid import Lattice

SCORES_FILE: Final = "scores.csv"
META_FILE: Final = "meta.json"
INDEX_FILE: Final = "heatmaps.csv"
SCALE_FILE: Final = "scale.json"
PLACE_COLUMNS: Final = ("row", "col", "x_px0", "y_px0")
INDEX_COLUMNS: Final = ("slide_id", "case_id", "folder", "status", "error")
DONE: Final = "done"
FAILED: Final = "failed"

MAX_FILE_BYTES: Final = 2 * 1024**3
"""Of `scores.csv`: 200,000 patches with a thousand scores."""


@dataclass(frozen=True, slots=True, eq=False)
class SlideHeatmap:
    """The scores of one slide's patches and what they belong to.

    Attributes:
        slide_id: the slide.
        case_id: its patient.
        checkpoint: the model's file, as it was given.
        names: of the scores.
        values: float32 `[patches, scores]`, rows in the store's order (by row, then column of the lattice).
        default_score: the one that is shown; one of `names`.
        grid: cells `(row, col)`, int32 `[patches, 2]`.
        lattice: the slide's.
        dimensions_px0: `(width, height)` of the slide.
        predicted: what the model says of the slide, by the names of the prediction table.
        slide_path: its file; None without one.

    Raises:
        HeatmapError: the parts do not fit together.
    """

    slide_id: str
    case_id: str
    checkpoint: str
    names: tuple[str, ...]
    values: NDArray[np.float32]
    default_score: str
    grid: NDArray[np.int32]
    lattice: Lattice
    dimensions_px0: tuple[int, int]
    predicted: Mapping[str, Any] = field(default_factory=dict)
    slide_path: Path | None = None

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.grid), len(self.names)) or self.default_score not in self.names:
            raise HeatmapError(
                f"slide {self.slide_id!r}: scores {list(self.values.shape)} do not fit {len(self.grid)} patches and "
                f"the names {list(self.names)} with the default {self.default_score!r}"
            )
        if not np.isfinite(self.values).all():
            raise HeatmapError(f"slide {self.slide_id!r}: scores that are not finite; the checkpoint may have diverged")

    def score(self, name: str | None = None) -> NDArray[np.float32]:
        """One score of every patch, `[patches]`; the default one when None."""
        return self.values[:, self.names.index(self.default_score if name is None else name)]


class IndexRow(NamedTuple):
    """A row of `heatmaps.csv`.

    Attributes:
        slide_id: the slide.
        case_id: its patient.
        folder: below the output folder; empty when it failed.
        status: `done` or `failed`.
        error: the reason in one line; empty unless failed.
    """

    slide_id: str
    case_id: str
    folder: str
    status: str
    error: str = ""


def folder_name(slide_id: str) -> str:
    """Name of a slide's folder: its id, percent-encoded, so that `urllib.parse.unquote` gives it back.

    A leading dot is encoded too: `..` would be another folder, `.a` a hidden one.

    >>> folder_name("block 7/slide.1"), folder_name("..")
    ('block%207%2Fslide.1', '%2E.')
    """
    name = quote(slide_id, safe="")
    return f"%2E{name[1:]}" if name.startswith(".") else name


def write_scores(folder: Path, heatmap: SlideHeatmap) -> None:
    """Write `scores.csv`; what was made of earlier scores counts as incomplete from then on.

    Raises:
        OSError: the folder cannot be written.
    """
    (folder / META_FILE).unlink(missing_ok=True)
    places = np.concatenate([heatmap.grid, heatmap.lattice.to_px0(heatmap.grid)], axis=1)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([*PLACE_COLUMNS, *heatmap.names])
    for place, values in zip(places.tolist(), heatmap.values.tolist(), strict=True):
        text.write(",".join([*map(str, place), *(f"{value:.7g}" for value in values)]) + "\n")
    write_atomically(folder / SCORES_FILE, text.getvalue().encode())


def read_scores(folder: Path) -> tuple[tuple[str, ...], NDArray[np.int32], NDArray[np.float32]]:
    """Names, cells and values of `scores.csv`, as in `SlideHeatmap`.

    Raises:
        HeatmapError: it is missing or not what `write_scores` writes.
    """
    path = folder / SCORES_FILE
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise HeatmapError(f"{path}: has more than {MAX_FILE_BYTES} bytes; it is no table of scores")
        with path.open(encoding="utf-8", newline="") as stream:
            header = next(csv.reader(stream), [])
            if tuple(header[: len(PLACE_COLUMNS)]) != PLACE_COLUMNS or len(header) == len(PLACE_COLUMNS):
                raise HeatmapError(
                    f"{path}: expected the columns {', '.join(PLACE_COLUMNS)} and scores, found {header[:6]}; "
                    "run `span heatmap --overwrite`"
                )
            rows = np.loadtxt(stream, delimiter=",", dtype=np.float64, ndmin=2)
    except (OSError, ValueError, csv.Error) as error:
        raise HeatmapError(f"{path}: cannot be read as scores ({error}); run `span heatmap --overwrite`") from error
    if rows.shape[1:] != (len(header),):
        raise HeatmapError(
            f"{path}: expected rows of {len(header)} values, found {rows.shape[1:]}; run `span heatmap --overwrite`"
        )
    names = tuple(header[len(PLACE_COLUMNS) :])
    return names, rows[:, :2].astype(np.int32), rows[:, len(PLACE_COLUMNS) :].astype(np.float32)


def write_meta(folder: Path, heatmap: SlideHeatmap, files: Mapping[str, str], fingerprint: str) -> None:
    """Write `meta.json`, which says that the folder is complete.

    Args:
        folder: of the slide.
        heatmap: its scores.
        files: names of the folder's files by what they are: `scores`, `png`, `tif`, `patches`, `regions`, `gallery`.
        fingerprint: of everything that decided the files; a run with the same one has nothing to do.

    Raises:
        OSError: the folder cannot be written.
    """
    lattice = heatmap.lattice
    content = {
        "slide_id": heatmap.slide_id,
        "case_id": heatmap.case_id,
        "checkpoint": heatmap.checkpoint,
        "scores": list(heatmap.names),
        "default_score": heatmap.default_score,
        "predicted": dict(heatmap.predicted),
        "patch_px0": lattice.patch_px0,
        "step_px0": lattice.step_px0,
        "dimensions_px0": list(heatmap.dimensions_px0),
        "mpp": lattice.slide_mpp,
        "slide_path": None if heatmap.slide_path is None else str(heatmap.slide_path),
        "files": dict(files),
        "fingerprint": fingerprint,
    }
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    write_atomically(folder / META_FILE, f"{text}\n".encode())


def read_meta(folder: Path) -> dict[str, Any] | None:
    """The content of `meta.json`; None when the folder is not complete or the file is not what we write."""
    try:
        content = json.loads((folder / META_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("files"), dict) else None


def is_complete(folder: Path, fingerprint: str) -> bool:
    """Whether the folder holds what a run with this fingerprint would write."""
    meta = read_meta(folder)
    if meta is None or meta.get("fingerprint") != fingerprint:
        return False
    return all(isinstance(name, str) and (folder / name).is_file() for name in meta["files"].values())


def write_index(output: Path, rows: Iterable[IndexRow]) -> None:
    """Write `heatmaps.csv`.

    Raises:
        OSError: the folder cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(INDEX_COLUMNS)
    for row in rows:
        writer.writerow(row._replace(error=" ".join(row.error.split())))
    write_atomically(output / INDEX_FILE, text.getvalue().encode())
