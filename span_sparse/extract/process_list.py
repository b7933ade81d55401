"""What became of each slide?

`STORE.process_list.csv`, beside the store, has one row for each slide that was tried: `slide_id, status, error,
seconds, num_patches, failed_patches`. It is rewritten whole under a temporary name, so that it is readable at any
moment of a run and after a kill. It is a log for people: whether a slide is complete is decided by the store alone.

Several runs may work on one store:

* shards (an array of cluster jobs on a shared file system) have a list each, `STORE.process_list.shard-2-of-8.csv`.
  Whoever reads takes all lists, the one written last wins, so nobody needs a lock that such a file system may not have;
* runs that share a list merge their rows into it under a lock. Rewriting it from what one run knows would drop the
  other's rows.
"""

from __future__ import annotations

import csv
import importlib
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from span_sparse.files import write_atomically

COLUMNS: Final = ("slide_id", "status", "error", "seconds", "num_patches", "failed_patches")
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
        seconds: time from its first step to its last, of the run that wrote it.
        num_patches: patches in the store; 0 when failed.
        failed_patches: cells with tissue that could not be read.
        resumed: it was already complete, from an earlier run; not a column of the table.
    """

    slide_id: str
    status: str
    error: str = ""
    seconds: float = 0.0
    num_patches: int = 0
    failed_patches: int = 0
    resumed: bool = False


def process_list_path(store: Path, shard: str = "") -> Path:
    """Where a process list of a store lies: beside it.

    Args:
        store: folder of the store.
        shard: as in `2-of-8`; empty for a run over the whole cohort.
    """
    return store.with_name(f"{store.name}.process_list{f'.shard-{shard}' if shard else ''}.csv")


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
        writer.writerow((row.slide_id, row.status, error, f"{row.seconds:.2f}", row.num_patches, row.failed_patches))
    write_atomically(path, text.getvalue().encode())


def update_process_list(path: Path, statuses: Iterable[SlideStatus], store: Path) -> None:
    """Put rows into the table: those of other slides stay, new ones come first, in the order given.

    Args:
        path: the table; made when missing.
        statuses: the rows.
        store: the store, whose root document serves as the lock.

    Raises:
        OSError: the folder cannot be written.
    """
    ours = {row.slide_id: row for row in statuses}
    with _alone(store / "zarr.json"):
        others = [row for row in read_process_list(path) if row.slide_id not in ours]
        write_process_list(path, [*ours.values(), *others])


def read_process_list(path: Path) -> list[SlideStatus]:
    """The rows of a table; none when it is missing, and without the rows that are not what we write."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    return [status for row in rows if (status := _parse(row)) is not None]


def read_process_lists(store: Path) -> dict[str, SlideStatus]:
    """The rows of all lists of a store by slide; of several rows of a slide, that of the list written last."""
    found: list[tuple[float, Path]] = []
    prefix = f"{store.name}.process_list."
    for path in store.absolute().parent.iterdir():
        if path.name.startswith(prefix) and path.suffix == ".csv":
            with suppress(OSError):  # replaced while we look
                found.append((path.stat().st_mtime, path))
    return {row.slide_id: row for _, path in sorted(found) for row in read_process_list(path)}


def _parse(row: dict[str, str | None]) -> SlideStatus | None:
    slide_id, status, error = row.get("slide_id"), row.get("status"), row.get("error")
    if not slide_id or status not in (DONE, FAILED) or error is None:
        return None
    try:
        seconds, num_patches = float(row["seconds"] or 0), int(row["num_patches"] or 0)
        failed_patches = int(row.get("failed_patches") or 0)  # lists of version 0.1 lack it
    except (KeyError, ValueError):
        return None
    return SlideStatus(slide_id, status, error, seconds, num_patches, failed_patches)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, where the system and the file system have such locks."""
    if os.name != "posix":
        yield
        return
    fcntl = importlib.import_module("fcntl")
    with path.open("r+b") as file:  # opened for writing, because network file systems demand it; never written
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
