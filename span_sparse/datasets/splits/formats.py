"""Which slides does a split file put on which side, in whatever format it is?

The format is recognised by content:

==============  ====================================================================================================
`wide`          CSV (comma or semicolon) with `slide_id` (else `case_id`) and columns `fold_0`, `fold_1`, ... (else
                `split_0`, ..., else `split`) that hold train, val, test or nothing; other columns are ignored
`patho-bench`   the same as a tab-separated table
`clam`          a folder of `splits_0.csv`, `splits_1.csv`, ... or one of them: columns `train`, `val`, `test` of slide
                ids, of unequal length, after a column without a name that numbers the rows
`stamp`         JSON `{"splits": [{"train_patients": [...], "test_patients": [...]}, ...]}` of case ids. Taken for the
                same: the bare list, an object of folds (`{"fold_0": {...}}`), the names `train`, `val`, `test`.
                STAMP has no validation patients in this file; `val_patients` is our addition, which it skips
==============  ====================================================================================================

Everything stays text: a ragged column of numeric ids read by type inference turns slide `12` into `12.0`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from span_sparse.cohort import CASE_ID, MISSING_VALUES, SLIDE_ID, SPLIT_VALUES, read_cohort
from span_sparse.datasets.splits.table import SplitEntry, SplitFile, SplitFormat
from span_sparse.errors import CohortError

FORMATS: Final[tuple[SplitFormat, ...]] = ("wide", "clam", "patho-bench", "stamp")
FOLD_COLUMN: Final = re.compile(r"fold_(0|[1-9]\d{0,3})")
CLAM_FILE: Final = re.compile(r"splits_(0|[1-9]\d{0,3})\.csv")
_SPLIT_COLUMN = re.compile(r"split_(0|[1-9]\d{0,3})")
_JSON_FOLD = re.compile(r"(?:fold_|split_)?(0|[1-9]\d{0,3})")
_PATIENTS = "_patients"
_CASE_NAMES = (CASE_ID, "patient_id", "patient")
_FILE_NAMES = ("path", "wsi", "filename", "image_path", "slide")

Rows = list[tuple[int, list[str]]]
"""Line number and cells of each row."""


def read_split_file(path: Path, format: str = "auto", column: str | None = None) -> SplitFile:
    """Read a split file as it is; what it says about a cohort is for `check_splits` to judge.

    Args:
        path: the file, or for CLAM also the folder.
        format: one of `FORMATS`; `auto` recognises it by content.
        column: for tables: the only split column to read; None for all (see above).

    Raises:
        CohortError: it cannot be read, or is not of this format; names file, line, expected and found.
    """
    path = Path(path)
    if path.is_dir():
        if format not in ("auto", "clam"):
            raise CohortError(f"{path}: expected a file of format {format}, found a folder; name the file")
        return _read_clam_folder(path)
    text = _text(path)
    known = _recognise(path, text) if format == "auto" else format
    match known:
        case "wide" | "patho-bench":
            return _read_table(path, text, known, column)
        case "clam":
            number = CLAM_FILE.fullmatch(path.name)
            fold = int(number[1]) if number else 0
            return SplitFile(path, "clam", SLIDE_ID, {fold: f"fold_{fold}"}, tuple(_clam_entries(path, text, fold)))
        case "stamp":
            return _read_stamp(path, text)
        case _:
            raise CohortError(f"split format {format!r}: expected one of auto, {', '.join(FORMATS)}")


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CohortError(f"split file {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CohortError(f"split file {path} is not UTF-8 text (byte {error.start}); save it with UTF-8") from error
    if "\0" in text:
        raise CohortError(f"split file {path} holds binary data; expected text: CSV, TSV or JSON")
    if not text.strip():
        raise CohortError(f"split file {path} is empty; `span splits make` writes one")
    return text


def _recognise(path: Path, text: str) -> SplitFormat:
    if text.lstrip()[0] in "{[":
        return "stamp"
    header = _first_line(text)
    delimiter = _delimiter(header)
    cells = [cell.strip().strip('"') for cell in header.split(delimiter)]
    if "train" in cells and not {"fold_0", "split", "split_0"} & set(cells):
        return "clam"
    if any(_is_split_column(cell) for cell in cells):
        return "patho-bench" if delimiter == "\t" else "wide"
    raise CohortError(
        f"{path}, line 1: not a split file: expected columns fold_0, ... (our CSV, Patho-Bench), train, val, test "
        f"(CLAM) or JSON (STAMP), found {_shortened(header)}"
    )


def _first_line(text: str) -> str:
    return next(line for line in text.splitlines() if line.strip())


def _delimiter(header: str) -> str:
    return max(",;\t", key=header.count)


def _is_split_column(name: str) -> bool:
    return name == "split" or bool(FOLD_COLUMN.fullmatch(name) or _SPLIT_COLUMN.fullmatch(name))


def _rows(path: Path, text: str, delimiter: str) -> tuple[list[str], Rows]:
    """Header and rows, cells stripped, empty lines left out."""
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    rows: Rows = []
    line = 0
    try:
        for values in reader:
            start, line = line + 1, reader.line_num
            cells = [value.strip() for value in values]
            if any(cells):
                rows.append((start, cells))
    except csv.Error as error:
        raise CohortError(f"{path}, line {reader.line_num}: {error}; check the quotes") from error
    if not rows:
        raise CohortError(f"split file {path} is empty; `span splits make` writes one")
    header = rows[0][1]
    for start, cells in rows[1:]:
        if len(cells) != len(header):
            raise CohortError(
                f"{path}, line {start}: expected {len(header)} cells as in the header, found {len(cells)}"
            )
    return header, rows[1:]


def _read_table(path: Path, text: str, format: SplitFormat, column: str | None) -> SplitFile:
    """Our wide CSV and Patho-Bench's TSV: one row per slide (or case), one column per fold."""
    delimiter = "\t" if format == "patho-bench" else _delimiter(_first_line(text))
    header, rows = _rows(path, text, delimiter)
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    if repeated:
        raise CohortError(f"{path}, line 1: column {repeated[0]!r} occurs more than once")
    folds = _fold_columns(path, header, column)
    lowered = [name.lower() for name in header]
    case_column = next((lowered.index(name) for name in _CASE_NAMES if name in lowered), None)
    unit, ids = SLIDE_ID, []
    if SLIDE_ID in lowered:
        ids = [cells[lowered.index(SLIDE_ID)] for _, cells in rows]
    elif case_column is None or any(name in lowered for name in _FILE_NAMES):
        ids = list(read_cohort(path).slide_ids)  # a cohort table that gives its slides by file names
    else:
        unit, ids = CASE_ID, [cells[case_column] for _, cells in rows]
    entries: list[SplitEntry] = []
    case_of: dict[str, str] = {}
    for identifier, (line, cells) in zip(ids, rows, strict=True):
        if not identifier:
            raise CohortError(f"{path}, line {line}, column {unit!r}: expected an id, found nothing")
        if unit == SLIDE_ID and case_column is not None and cells[case_column]:
            case_of.setdefault(identifier, cells[case_column])
        for fold, name in folds.items():
            side = _side(path, line, name, cells[header.index(name)])
            entries.append(SplitEntry(identifier, fold, side, f"line {line}"))
    return SplitFile(path, format, unit, folds, tuple(entries), case_of)


def fold_number(column: str) -> int:
    """Number of the fold a split column is for; 0 for a column without one."""
    number = FOLD_COLUMN.fullmatch(column) or _SPLIT_COLUMN.fullmatch(column)
    return int(number[1]) if number else 0


def _fold_columns(path: Path, header: list[str], column: str | None) -> dict[int, str]:
    """The split columns by fold number: those called `fold_*`, else `split_*`, else `split`."""
    if column is not None:
        if column not in header:
            raise CohortError(f"{path}, line 1: there is no column {column!r}; it has {', '.join(header)}")
        return {fold_number(column): column}
    for pattern in (FOLD_COLUMN, _SPLIT_COLUMN):
        found = {int(number[1]): name for name in header if (number := pattern.fullmatch(name))}
        if found:
            return dict(sorted(found.items()))
    if "split" in header:
        return {0: "split"}
    raise CohortError(f"{path}, line 1: expected columns fold_0, fold_1, ..., found {_shortened(', '.join(header))}")


def _side(path: Path, line: int, column: str, value: str) -> str | None:
    if not value or value in MISSING_VALUES:
        return None
    if value not in SPLIT_VALUES:
        raise CohortError(
            f"{path}, line {line}, column {column!r}: expected one of {', '.join(SPLIT_VALUES)} or nothing, "
            f"found {_shortened(value)}"
        )
    return value


def _read_clam_folder(folder: Path) -> SplitFile:
    files = {int(number[1]): file for file in folder.iterdir() if (number := CLAM_FILE.fullmatch(file.name))}
    if not files:
        raise CohortError(f"{folder}: expected CLAM's splits_0.csv, splits_1.csv, ..., found none; name the split file")
    entries: list[SplitEntry] = []
    for fold, file in sorted(files.items()):
        entries += _clam_entries(file, _text(file), fold, f"{file.name}, ")
    return SplitFile(folder, "clam", SLIDE_ID, {fold: f"fold_{fold}" for fold in sorted(files)}, tuple(entries))


def _clam_entries(path: Path, text: str, fold: int, before: str = "") -> Iterator[SplitEntry]:
    header, rows = _rows(path, text, _delimiter(_first_line(text)))
    columns = {name: header.index(name) for name in SPLIT_VALUES if name in header}
    strange = [name for position, name in enumerate(header) if name not in SPLIT_VALUES and (name or position)]
    if "train" not in columns or strange or len(header) - len(columns) > 1:
        raise CohortError(
            f"{path}, line 1: expected CLAM's columns (nothing), train, val, test, found {_shortened(','.join(header))}"
        )
    values = {cells[position] for _, cells in rows for position in columns.values()}
    if values and values <= {"True", "False", ""}:
        raise CohortError(
            f"{path}: expected slide ids, found True and False: this is CLAM's *_bool.csv; name splits_k.csv"
        )
    for line, cells in rows:
        for side, position in columns.items():
            if cells[position]:
                yield SplitEntry(cells[position], fold, side, f"{before}line {line}")


def _read_stamp(path: Path, text: str) -> SplitFile:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise CohortError(f"{path}, line {error.lineno}: expected JSON, found {error.msg.lower()}") from error
    except (RecursionError, ValueError) as error:
        raise CohortError(f"{path}: expected STAMP's splits.json, found JSON that cannot be read ({error})") from error
    folds = _stamp_folds(path, content)
    if not folds:
        raise CohortError(f"{path}: expected at least one fold, found none")
    entries: list[SplitEntry] = []
    for fold, (place, sides) in folds.items():
        if not isinstance(sides, dict) or not sides:
            raise CohortError(f"{path}, {place}: expected an object with train_patients, ..., found {_kind(sides)}")
        for key, patients in sides.items():
            entries += _stamp_entries(path, fold, f"{place}.{_shortened(key, quote=False)}", key, patients)
    names = {fold: f"fold_{fold}" for fold in sorted(folds)}
    return SplitFile(path, "stamp", CASE_ID, names, tuple(entries))


def _stamp_folds(path: Path, content: Any) -> dict[int, tuple[str, Any]]:
    """Place and content of each fold."""
    inside = isinstance(content, dict) and "splits" in content
    prefix, folds = ("splits", content["splits"]) if inside else ("", content)
    if isinstance(folds, list):
        return {number: (f"{prefix}[{number}]", fold) for number, fold in enumerate(folds)}
    if isinstance(folds, dict):
        numbers = {key: _JSON_FOLD.fullmatch(key) for key in folds}
        if all(numbers.values()):
            return {
                int(number[1]): (f"{prefix}.{key}".lstrip("."), folds[key]) for key, number in numbers.items() if number
            }
        return {0: (prefix or "(top)", folds)}
    raise CohortError(f"{path}: expected a list or an object of folds, found {_kind(folds)}")


def _stamp_entries(path: Path, fold: int, place: str, key: str, patients: Any) -> Iterator[SplitEntry]:
    side = key.removesuffix(_PATIENTS)
    if side not in SPLIT_VALUES:
        names = ", ".join(side + _PATIENTS for side in SPLIT_VALUES)
        raise CohortError(f"{path}, {place}: expected one of {names}, found {_shortened(key)}")
    if not isinstance(patients, list):
        raise CohortError(f"{path}, {place}: expected a list of patient ids, found {_kind(patients)}")
    for number, patient in enumerate(patients):
        if not isinstance(patient, str) or not patient.strip():
            raise CohortError(
                f"{path}, {place}[{number}]: expected a patient id in quotes, found {_kind(patient)} "
                f"{_shortened(json.dumps(patient), quote=False)}"
            )
        yield SplitEntry(patient.strip(), fold, side, f"{place}[{number}]")


def _kind(value: Any) -> str:
    words = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return words.get(type(value), "a number")


def _shortened(text: str, *, quote: bool = True) -> str:
    """A piece of a file for a message: what a hostile file holds may be long."""
    short = text if len(text) <= 80 else text[:77] + "..."
    return repr(short) if quote else short
