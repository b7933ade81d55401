"""How does an evaluation go on where it was stopped, and how do many jobs share one?

Every job appends what the models said of a slide to a file of its own, `parts/<shard>.jsonl`, as soon as it is known. A
line has the slide, a key of what was predicted (its features in the store and its label), and the columns of the
prediction table by each model; the first line names the models. Whoever finds a line for every slide writes the table.

A killed job leaves at most an unfinished last line, which is ignored. Lines of other models, or of features that have
changed since, are ignored too: a key that does not match is a slide to predict again. JSON keeps every digit of a
number, so that a table made of parts is the table of one run.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, NamedTuple

from span_sparse.errors import PredictionTableError

FOLDER: Final = "parts"
SYNC_INTERVAL_S: Final = 5.0
"""How often what was written is forced to the disk; a killed process loses nothing, a dead machine this much."""

_FORMAT: Final = 1


class Part(NamedTuple):
    """What the models said of a slide.

    Attributes:
        key: of features and label.
        members: columns of the prediction table by each model; empty for a slide that was left out as missing.
    """

    key: str
    members: tuple[dict[str, Any], ...]


def read_parts(folder: Path, models: Sequence[str]) -> dict[str, Part]:
    """What jobs with these models have predicted so far, by slide; what was written last counts.

    Args:
        folder: of the parts; may be missing.
        models: what identifies each model, in their order.
    """
    found: dict[str, Part] = {}
    for path in sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns):
        with path.open("rb") as file:
            if _parsed(file.readline()) != _header(models):
                continue
            for line in file:
                row = _parsed(line)
                part = _part(row, len(models))
                if part is not None:
                    found[row["slide_id"]] = part
    return found


class PartWriter:
    """Appends to the file of one job; a context manager.

    Args:
        path: the file; what it holds of other models is replaced.
        models: what identifies each model, in their order.

    Raises:
        PredictionTableError: the file cannot be written.
    """

    def __init__(self, path: Path, models: Sequence[str]) -> None:
        self.path, self._models = path, list(models)
        self._synced = time.monotonic()

    def __enter__(self) -> PartWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._opened()
        except OSError as error:
            raise PredictionTableError(f"{self.path}: cannot be written: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, slide_id: str, key: str, members: Sequence[Mapping[str, Any]]) -> None:
        """What the models said of a slide; without members, that it is missing.

        Raises:
            PredictionTableError: the file cannot be written.
        """
        try:
            self._write({"slide_id": slide_id, "key": key, "members": list(members)})
            if time.monotonic() - self._synced > SYNC_INTERVAL_S:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise PredictionTableError(
                f"{self.path}: cannot be written: {error.strerror}; what is there is kept, make room and run again"
            ) from error

    def _opened(self) -> IO[bytes]:
        """Behind the last whole line of a file of these models, else a new file."""
        if self.path.exists():
            content = self.path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if _parsed(whole.partition(b"\n")[0]) == _header(self._models):
                if len(whole) < len(content):
                    os.truncate(self.path, len(whole))
                return self.path.open("ab")
        self._file = self.path.open("wb")
        self._write(_header(self._models))
        return self._file

    def _write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()


def _header(models: Sequence[str]) -> dict[str, Any]:
    return {"format": _FORMAT, "models": list(models)}


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _part(row: Any, num_models: int) -> Part | None:
    if not isinstance(row, dict) or not isinstance(row.get("slide_id"), str) or not isinstance(row.get("key"), str):
        return None
    members = row.get("members")
    if not isinstance(members, list) or len(members) not in (0, num_models):
        return None
    return Part(row["key"], tuple(members)) if all(isinstance(one, dict) for one in members) else None
