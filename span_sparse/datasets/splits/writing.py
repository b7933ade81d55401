"""How is a split written so that another program, or ours, reads the same one back?

`wide` repeats the cohort table and adds a column for each fold, so that one file is enough for training; `patho-bench`
holds id, case, label and folds of the slides that take part; `clam` is a folder with a file for each fold; `stamp`
knows patients only. The bytes depend on the content alone: no dates, no folder names.

A file that is there and says something else is not replaced without being told to: yesterday's results rest on it.
"""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from span_sparse.cohort import CASE_ID, MPP, SLIDE_ID, SPLIT_VALUES, CohortTable
from span_sparse.datasets.splits.formats import CLAM_FILE, FOLD_COLUMN, FORMATS
from span_sparse.datasets.splits.table import SplitFormat, Splits, cases_of
from span_sparse.errors import CohortError
from span_sparse.files import write_atomically


def write_splits(
    splits: Splits,
    cohort: CohortTable,
    output: Path,
    *,
    format: SplitFormat = "wide",
    label: str = "label",
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Write a split; each file appears whole or not at all.

    Args:
        splits: what to write.
        cohort: the table it was made for.
        output: the file; for `clam` the folder.
        format: see `formats`.
        label: column that `patho-bench` repeats.
        overwrite: replace files that hold something else.

    Returns:
        The files of the split, also those that held it already.

    Raises:
        CohortError: a file is there and differs, or slides of a case are on two sides and `stamp` cannot say so.
        OSError: the folder cannot be written.
    """
    contents = _contents(splits, cohort, Path(output), format, label)
    _refuse_stale_folds(Path(output), contents)
    to_write = {path: content for path, content in contents.items() if not _holds(path, content)}
    for path in to_write:
        if path.exists() and not overwrite:
            raise CohortError(f"{path} exists and holds something else; use --overwrite, or name another file")
    for path, content in to_write.items():
        write_atomically(path, content)
    return tuple(contents)


def _contents(splits: Splits, cohort: CohortTable, output: Path, format: str, label: str) -> dict[Path, bytes]:
    match format:
        case "wide":
            return {output: _wide(splits, cohort)}
        case "patho-bench":
            return {output: _patho_bench(splits, cohort, label)}
        case "clam":
            if output.is_file():
                raise CohortError(
                    f"{output}: format clam is a folder of splits_0.csv, ..., found a file; name a folder"
                )
            return {output / f"splits_{fold}.csv": _clam(side_of) for fold, side_of in _folds(splits, cohort).items()}
        case "stamp":
            return {output: _stamp(splits, cohort)}
        case _:
            raise CohortError(f"split format {format!r}: expected one of {', '.join(FORMATS)}")


def _refuse_stale_folds(output: Path, contents: dict[Path, bytes]) -> None:
    """A fold that an earlier run left in CLAM's folder would be read as one of this split."""
    if not output.is_dir():
        return
    stale = sorted(path for path in output.iterdir() if CLAM_FILE.fullmatch(path.name) and path not in contents)
    if stale:
        raise CohortError(f"{stale[0]} is a fold of another split; remove it, or name another folder")


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def _folds(splits: Splits, cohort: CohortTable) -> dict[int, dict[str, str]]:
    """Sides by fold, the slides in the order of the cohort table."""
    return {
        fold: {slide: side_of[slide] for slide in cohort.slide_ids if slide in side_of}
        for fold, side_of in sorted(splits.sides.items())
    }


def _table(rows: list[list[str]], delimiter: str) -> bytes:
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return stream.getvalue().encode("utf-8")


def _cell(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def _wide(splits: Splits, cohort: CohortTable) -> bytes:
    frame = cohort.frame
    names = [name for name in frame.columns if not FOLD_COLUMN.fullmatch(name)]
    if all(math.isnan(mpp) for mpp in frame[MPP]):
        names.remove(MPP)
    folds = _folds(splits, cohort)
    rows = [[*names, *(f"fold_{fold}" for fold in folds)]]
    for slide, values in zip(cohort.slide_ids, frame[names].itertuples(index=False), strict=True):
        rows.append([*map(_cell, values), *(side_of.get(slide, "") for side_of in folds.values())])
    return _table(rows, ",")


def _patho_bench(splits: Splits, cohort: CohortTable, label: str) -> bytes:
    folds = _folds(splits, cohort)
    labels = cohort.labels(label)
    rows = [[CASE_ID, SLIDE_ID, label, *(f"fold_{fold}" for fold in folds)]]
    for slide, case in cases_of(cohort).items():
        sides = [side_of.get(slide, "") for side_of in folds.values()]
        if any(sides):
            rows.append([case, slide, _cell(labels[slide]), *sides])
    return _table(rows, "\t")


def _clam(side_of: dict[str, str]) -> bytes:
    columns = [[slide for slide, side in side_of.items() if side == wanted] for wanted in SPLIT_VALUES]
    rows = [["", *SPLIT_VALUES]]
    for number in range(max(map(len, columns))):
        rows.append([str(number), *(column[number] if number < len(column) else "" for column in columns)])
    return _table(rows, ",")


def _stamp(splits: Splits, cohort: CohortTable) -> bytes:
    case_of = cases_of(cohort)
    folds: list[dict[str, list[str]]] = []
    for number, (fold, side_of) in enumerate(_folds(splits, cohort).items()):
        if fold != number:
            raise CohortError(f"format stamp numbers its folds 0, 1, ...; expected fold {number}, found fold {fold}")
        sides: dict[str, str] = {}
        for slide, side in side_of.items():
            if sides.setdefault(case_of[slide], side) != side:
                raise CohortError(
                    f"case {case_of[slide]!r} is on two sides of fold {fold}; format stamp holds cases, not slides: "
                    "put all slides of a case on one side"
                )
        wanted = [side for side in SPLIT_VALUES if side != "val" or "val" in sides.values()]
        folds.append({f"{side}_patients": [case for case in sides if sides[case] == side] for side in wanted})
    return (json.dumps({"splits": folds}, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
