"""What became of each slide?

`STORE.process_list.csv`, beside the store, has one row for each slide that was tried: `slide_id, status, error,
seconds, num_patches`. It is rewritten whole after every slide, under a temporary name, so that it is readable at any
moment of a run and after a kill. It is a log for people: whether a slide is complete is decided by the store alone.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from span_sparse.files import write_atomically

COLUMNS: Final = ("slide_id", "status", "error", "seconds", "num_patches")
DONE: Final = "done"
FAILED: Final = "failed"
PENDING: Final = "pending"


@dataclass(frozen=True, slots=True)
class SlideStatus:
    """The outcome of one slide.

    Attributes:
        slide_id: the slide.
        status: `done` (complete in the store), `failed`, or `pending` (dry run).
        error: the reason in one line; empty unless failed.
        seconds: time it took, of the run that wrote it.
        num_patches: patches in the store; 0 when failed.
        resumed: it was already complete, from an earlier run; not a column of the table.
    """

    slide_id: str
    status: str
    error: str = ""
    seconds: float = 0.0
    num_patches: int = 0
    resumed: bool = False


def process_list_path(store: Path) -> Path:
    """Where the process list of a store lies: beside it."""
    return store.with_name(f"{store.name}.process_list.csv")


def write_process_list(path: Path, statuses: Iterable[SlideStatus]) -> None:
    """Replace the table in one step.

    Raises:
        OSError: the folder cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for row in statuses:
        error = " ".join(row.error.split())
        writer.writerow((row.slide_id, row.status, error, f"{row.seconds:.2f}", row.num_patches))
    write_atomically(path, text.getvalue().encode())


def read_process_list(path: Path) -> list[SlideStatus]:
    """The rows of a table; none when it is missing, and without the rows that are not what we write."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    return [status for row in rows if (status := _parse(row)) is not None]


def _parse(row: dict[str, str | None]) -> SlideStatus | None:
    slide_id, status, error = row.get("slide_id"), row.get("status"), row.get("error")
    if not slide_id or status not in (DONE, FAILED) or error is None:
        return None
    try:
        return SlideStatus(slide_id, status, error, float(row["seconds"] or 0), int(row["num_patches"] or 0))
    except (KeyError, ValueError):
        return None
