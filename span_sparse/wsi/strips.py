"""Work on the rows of a large picture in strips, on a few threads.

A strip fits into a processor's cache, which a thumbnail of 30 million pixels does not, and numpy, Pillow and OpenSlide
let other threads run meanwhile. The strips, and with them every result, do not depend on the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")

STRIP_ROWS: Final = 128
MAX_THREADS: Final = 4
"""Readers are processes, which plan slides side by side; more threads each would only queue up."""


def in_strips(work: Callable[[slice], Result], num_rows: int) -> list[Result]:
    """Results of `work` for consecutive slices of rows, in their order.

    Args:
        work: may run in several threads at once; must not depend on the other strips.
        num_rows: of the picture.
    """
    return in_threads(work, [slice(top, min(top + STRIP_ROWS, num_rows)) for top in range(0, num_rows, STRIP_ROWS)])


def in_threads(work: Callable[[Part], Result], parts: Iterable[Part]) -> list[Result]:
    """Results of `work` for each part, in their order; an error is raised when no thread runs any more."""
    parts = list(parts)
    num_threads = min(MAX_THREADS, _num_cores(), len(parts))
    if num_threads < 2:
        return [work(part) for part in parts]
    with ThreadPoolExecutor(num_threads, thread_name_prefix="strips") as pool:
        return list(pool.map(work, parts))


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
