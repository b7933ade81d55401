"""Which slides belong to a study, and what does its table say about them?

1. The text: UTF-8 (a byte-order mark is dropped), comma, semicolon or tab, whichever the header has most of.
2. The header: names are stripped and aliases mapped (`patient_id` → `case_id`, `filename` → `path`, ...).
3. The cells: everything is text. Ids keep their leading zeros, labels their spelling. An empty cell is missing, and so
   are `NA`, `N/A`, `NaN`, `nan`, `None` and `null`, except in ids and paths, where these are ordinary names.
4. The rows: one per slide, no id twice; several slides of a case are normal.

Letting pandas guess the types turns id `0012` into 12, the patient `NA` into a missing one and class `1` into 1.0 as
soon as another label is missing.
"""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Final

import pandas as pd

from span_sparse.errors import CohortError

SLIDE_ID: Final = "slide_id"
CASE_ID: Final = "case_id"
PATH: Final = "path"
MPP: Final = "mpp"
TISSUE_MASK: Final = "tissue_mask"
SPLIT_VALUES: Final = ("train", "val", "test")
MISSING_VALUES: Final = frozenset({"NA", "N/A", "NaN", "nan", "None", "null"})
SLIDE_SUFFIXES: Final = (
    ".svs",
    ".tif",
    ".tiff",
    ".ndpi",
    ".vms",
    ".vmu",
    ".scn",
    ".mrxs",
    ".svslide",
    ".bif",
    ".czi",
    ".dcm",
)
"""Of several files with a slide's name, those that are slides and not its annotations or thumbnails."""

_ALIASES: Final = {
    "slide": SLIDE_ID,
    "patient_id": CASE_ID,
    "patient": CASE_ID,
    "wsi": PATH,
    "filename": PATH,
    "image_path": PATH,
}
_DELIMITERS: Final = (",", ";", "\t")


@dataclass(frozen=True, slots=True, eq=False)
class CohortTable:
    """One row per slide.

    Attributes:
        path: the file it was read from.
        frame: columns `slide_id`, `case_id` (text), `mpp` (µm per pixel, NaN when not given), `path` when the table has
            one (None when empty), and every other column as text with None for missing.
        lines: line of each row in the file, for messages.
    """

    path: Path
    frame: pd.DataFrame
    lines: tuple[int, ...] = ()

    @property
    def slide_ids(self) -> tuple[str, ...]:
        """Ids in the order of the table."""
        return tuple(self.frame[SLIDE_ID])

    def slide_path(self, slide_id: str, slides_dir: Path) -> Path:
        """The slide's file: the `path` column if it has a value, else the file whose name or stem is the id.

        The table cannot name a file outside `slides_dir`; links that lie in that folder are followed, since they are
        the owner's way of gathering slides from several disks.

        Args:
            slide_id: a slide of the table.
            slides_dir: the folder that paths are relative to.

        Raises:
            CohortError: no such slide, no or several files, or a file outside `slides_dir`.
        """
        given = self.value(slide_id, PATH)
        target = self._inside(slides_dir, slide_id, slide_id if given is None else given)
        if given is None and not target.is_file():
            return self._by_stem(slide_id, slides_dir)
        if not target.exists():
            raise CohortError(f"{self.path}: slide {slide_id!r}: there is no file {target}; correct column {PATH!r}")
        return target

    def file_of(self, slide_id: str, column: str, slides_dir: Path) -> Path | None:
        """The file that a column names for a slide, such as its tissue mask; None where the cell is empty.

        Args:
            slide_id: a slide of the table.
            column: of paths relative to `slides_dir`.
            slides_dir: the folder that paths are relative to.

        Raises:
            CohortError: no such slide or file, or a file outside `slides_dir`.
        """
        given = self.value(slide_id, column)
        if given is None:
            return None
        target = self._inside(slides_dir, slide_id, given)
        if not target.is_file():
            raise CohortError(f"{self.place(slide_id, column)}: there is no file {target} for slide {slide_id!r}")
        return target

    def value(self, slide_id: str, column: str) -> str | None:
        """A slide's cell, None where it is empty or the table has no such column.

        Raises:
            CohortError: no such slide.
        """
        return self._cell(slide_id, column) if column in self.frame else None

    def place(self, slide_id: str, column: str) -> str:
        """Where a cell is, for messages: `FILE, line N, column 'name'`."""
        row = self.slide_ids.index(slide_id)
        return f"{self.path}, line {self.lines[row] if self.lines else row + 2}, column {column!r}"

    def mpp(self, slide_id: str) -> float | None:
        """Micrometres per pixel given for the slide, None when the table gives none."""
        value = float(self._cell(slide_id, MPP))
        return None if math.isnan(value) else value

    def case_of(self, slide_id: str) -> str:
        """The slide's patient or case."""
        return self._cell(slide_id, CASE_ID)

    def labels(self, column: str) -> dict[str, str | None]:
        """Class name of each slide, None where it is missing.

        Raises:
            CohortError: there is no such column.
        """
        self._require_column(column)
        return dict(zip(self.frame[SLIDE_ID], self.frame[column], strict=True))

    def splits(self, column: str) -> dict[str, str]:
        """Side of each slide, train, val or test; a slide without a value takes no part and is left out.

        Raises:
            CohortError: there is no such column, or it holds something else; names the line.
        """
        self._require_column(column)
        sides: dict[str, str] = {}
        lines = self.lines or range(2, len(self.frame) + 2)
        for line, slide_id, value in zip(lines, self.frame[SLIDE_ID], self.frame[column], strict=True):
            if value is None:
                continue
            if value not in SPLIT_VALUES:
                raise CohortError(
                    f"{self.path}, line {line}, column {column!r}: expected one of {', '.join(SPLIT_VALUES)} or "
                    f"nothing, found {value!r} for slide {slide_id!r}"
                )
            sides[slide_id] = value
        return sides

    def check_no_leakage(self, column: str) -> None:
        """Refuse splits that put slides of one case on two sides.

        Raises:
            CohortError: naming the case, its sides and two of its slides.
        """
        seen: dict[str, tuple[str, str]] = {}
        sides = self.splits(column)
        for slide_id, case_id in zip(self.frame[SLIDE_ID], self.frame[CASE_ID], strict=True):
            if slide_id not in sides:
                continue
            side = sides[slide_id]
            first_slide, first_side = seen.setdefault(case_id, (slide_id, side))
            if first_side != side:
                raise CohortError(
                    f"{self.path}, column {column!r}: case {case_id!r} is on two sides, slide {first_slide!r} in "
                    f"{first_side} and slide {slide_id!r} in {side}; put all slides of a case on one side"
                )

    def _cell(self, slide_id: str, column: str) -> str:
        rows = self.frame.loc[self.frame[SLIDE_ID] == slide_id, column]
        if rows.empty:
            raise CohortError(f"{self.path}: there is no slide {slide_id!r} in the table")
        return rows.iloc[0]

    def _inside(self, slides_dir: Path, slide_id: str, name: str) -> Path:
        target = slides_dir / name
        if ".." in Path(name).parts or not target.absolute().is_relative_to(slides_dir.absolute()):
            raise CohortError(
                f"{self.path}: slide {slide_id!r} leads to {target}, outside the slides folder {slides_dir}; "
                "use paths relative to that folder, or name another folder"
            )
        return target

    def _require_column(self, column: str) -> None:
        if column not in self.frame:
            unknown = bool(self.frame[MPP].isna().to_numpy().all())  # the column is added to every table
            found = [name for name in self.frame.columns if name != MPP or not unknown]
            close = difflib.get_close_matches(column.lower(), [name.lower() for name in found], n=1)
            meant = [name for name in found if name.lower() in close]
            hint = f"; did you mean {meant[0]!r}?" if meant else ""
            raise CohortError(f"{self.path}: there is no column {column!r}; it has {', '.join(found)}{hint}")

    def _by_stem(self, slide_id: str, slides_dir: Path) -> Path:
        """The one file with this stem; a slide beside its annotations wins, a folder (DICOM) is the last resort."""
        wanted = slides_dir / slide_id
        found = sorted(entry for entry in wanted.parent.glob("*") if entry.stem == wanted.name and entry.is_file())
        slides = [entry for entry in found if entry.suffix.lower() in SLIDE_SUFFIXES] or found
        if len(slides) == 1:
            return slides[0]
        if not slides and wanted.is_dir() and wanted.name:
            return wanted
        what = f"several files ({', '.join(entry.name for entry in slides[:3])})" if slides else "no file"
        raise CohortError(
            f"{self.path}: slide {slide_id!r}: {what} in {wanted.parent} with that name or stem; add a column {PATH!r}"
        )


def read_cohort(path: Path) -> CohortTable:
    """Read a cohort table (CSV with comma, semicolon or tab).

    Raises:
        CohortError: the file cannot be read, is empty, lacks a column, or a row cannot be used; names the line.
    """
    path = Path(path)
    header, rows = _read_rows(path)
    columns = _columns(path, header)
    lines = [line for line, _ in rows]
    cells = {name: [values[position] or None for _, values in rows] for position, name in enumerate(columns)}
    slide_ids = _slide_ids(path, lines, cells)
    cases = cells.get(CASE_ID, [None] * len(lines))
    frame = pd.DataFrame({SLIDE_ID: pd.Series(slide_ids, dtype=object)})
    frame[CASE_ID] = pd.Series([case or slide for slide, case in zip(slide_ids, cases, strict=True)], dtype=object)
    frame[MPP] = _mpps(path, lines, cells.get(MPP, [None] * len(lines)))
    for name, values in cells.items():
        if name not in frame:
            missing = frozenset() if name in (PATH, TISSUE_MASK) else MISSING_VALUES
            frame[name] = pd.Series([None if value in missing else value for value in values], dtype=object)
    return CohortTable(path, frame, tuple(lines))


def _read_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header and the rows with their line numbers, cells stripped, empty lines left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CohortError(f"cohort table {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CohortError(
            f"cohort table {path} is not UTF-8 text (byte {error.start}); save it as CSV with UTF-8"
        ) from error
    if "\0" in text:
        raise CohortError(f"cohort table {path} holds binary data; save it as CSV with UTF-8")
    first_line = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(_DELIMITERS, key=first_line.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    header: list[str] = []
    rows: list[tuple[int, list[str]]] = []
    line = 0
    try:
        for values in reader:
            start, line = line + 1, reader.line_num
            cells = [value.strip() for value in values]
            if not any(cells):
                continue
            if not header:
                header = cells
            elif len(cells) != len(header):
                raise CohortError(
                    f"{path}, line {start}: expected {len(header)} cells as in the header, found {len(cells)}"
                )
            else:
                rows.append((start, cells))
    except csv.Error as error:
        raise CohortError(f"{path}, line {reader.line_num}: {error}; check the quotes") from error
    if not header:
        raise CohortError(f"cohort table {path} is empty; it needs a header with {SLIDE_ID!r} and one line per slide")
    if not rows:
        raise CohortError(f"cohort table {path} has a header but no slides; add one line per slide")
    return header, rows


def _columns(path: Path, header: list[str]) -> list[str]:
    """Names of the columns with aliases mapped."""
    exact = {name.lower() for name in header}
    columns: list[str] = []
    for position, name in enumerate(header, start=1):
        known = _ALIASES.get(name.lower(), name.lower())
        if name.lower() in _ALIASES and known in exact:
            known = name  # the table has the proper column too
        columns.append(known if known in (SLIDE_ID, CASE_ID, PATH, MPP) else name or f"column_{position}")
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        raise CohortError(f"{path}, line 1: column {repeated[0]!r} occurs more than once (header: {', '.join(header)})")
    if SLIDE_ID not in columns and PATH not in columns:
        raise CohortError(
            f"{path}, line 1: there is no column {SLIDE_ID!r} and none with file names (path, wsi, filename, "
            f"image_path); the header is {', '.join(header)}"
        )
    return columns


def _slide_ids(path: Path, lines: list[int], cells: Mapping[str, Sequence[str | None]]) -> list[str]:
    """Slide ids, from the stem of the file names where the table has no ids; none missing, none twice."""
    source = SLIDE_ID if SLIDE_ID in cells else PATH
    seen: dict[str, int] = {}
    for line, value in zip(lines, cells[source], strict=True):
        if value is None:
            raise CohortError(f"{path}, line {line}, column {source!r}: the slide has no id; fill the cell")
        slide_id = value if source == SLIDE_ID else PureWindowsPath(value).stem
        if slide_id in seen:
            raise CohortError(
                f"{path}, line {line}, column {source!r}: slide {slide_id!r} is in line {seen[slide_id]} already; "
                "every slide needs one line"
            )
        seen[slide_id] = line
    return list(seen)


def _mpps(path: Path, lines: list[int], values: Sequence[str | None]) -> list[float]:
    mpps: list[float] = []
    for line, value in zip(lines, values, strict=True):
        if value is None or value in MISSING_VALUES:
            mpps.append(math.nan)
            continue
        try:
            mpp = float(value)
        except ValueError:
            mpp = math.nan
        if not 0 < mpp < math.inf:
            raise CohortError(
                f"{path}, line {line}, column {MPP!r}: expected a positive number of µm per pixel such as 0.25, "
                f"found {value!r}"
            )
        mpps.append(mpp)
    return mpps
