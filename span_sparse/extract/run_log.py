"""What does a run write about itself while it goes, and when it ends, however it ends?

The process list after a slide, the QC page once a minute, and both at the end. Writing the list may take a twentieth of
the time: it is rewritten at once as long as it is short, and seldom where ten thousand slides are found complete.

A full disk refuses these files too. That is no reason to stop before the slides are: they are tried again, and only the
last time counts.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from span_sparse.extract.process_list import (
    DONE,
    SlideStatus,
    process_list_path,
    read_process_lists,
    update_process_list,
)
from span_sparse.extract.qc_page import write_qc_page

PAGE_INTERVAL_S: Final = 60.0
LIST_SHARE: Final = 0.05
"""Of the time, at most, that goes into writing the list."""


class RunLog:
    """Process list and page of a run.

    Args:
        store: the store.
        shard: name of the shard; empty for the whole cohort.
        order: the run's slides in the order of the cohort.
    """

    def __init__(self, store: Path, shard: str, order: list[str]) -> None:
        self._store, self._path, self._order = store, process_list_path(store, shard), order
        self._before = read_process_lists(store)
        self._statuses: dict[str, SlideStatus] = {}
        self._page_s, self._next_list_s = time.monotonic(), 0.0

    def add(self, status: SlideStatus) -> SlideStatus:
        """Note an outcome; a slide of an earlier run comes back with the seconds it took then."""
        before = self._before.get(status.slide_id)
        if status.resumed and before is not None and before.status == DONE:
            status = replace(status, seconds=before.seconds)
        self._statuses[status.slide_id] = status
        start_s = time.monotonic()
        if start_s > self._next_list_s:
            with suppress(OSError):
                self._write_list()
            end_s = time.monotonic()
            self._next_list_s = end_s + (end_s - start_s) / LIST_SHARE
        if time.monotonic() - self._page_s > PAGE_INTERVAL_S:
            with suppress(OSError):
                self._write_page()
        return status

    def close(self) -> None:
        """Write both for the last time.

        Raises:
            OSError: the folder of the store cannot be written.
        """
        self._write_list()
        self._write_page()

    def _write_list(self) -> None:
        rows = [self._statuses[slide_id] for slide_id in self._order if slide_id in self._statuses]
        update_process_list(self._path, rows, self._store)

    def _write_page(self) -> None:
        write_qc_page(self._store, read_process_lists(self._store).values())
        self._page_s = time.monotonic()
