"""How far is it, how fast, how long still, and what does each worker do?

A table on a terminal, redrawn in place. Elsewhere (the log of a cluster job) a line per slide: redrawing a table there
leaves ten thousand copies of it.

Speeds are those of the last minute or so, because a resumed run skips a thousand slides in a second and then works on
one for minutes: a mean over all would promise an end that never comes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from span_sparse.extract.process_list import DONE, FAILED, SlideStatus

WINDOW_S: Final = 120.0
"""Speeds are measured over so long a time, or since the start."""

MAX_SHOWN_WORKERS: Final = 16


class Rate:
    """Events per second over the last `WINDOW_S` seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._start_s = clock, clock()
        self._events: deque[tuple[float, int]] = deque()
        self._count = 0

    def add(self, count: int) -> None:
        """Count events that happened now."""
        self._events.append((self._clock(), count))
        self._count += count

    def per_second(self) -> float:
        """The rate now."""
        now_s = self._clock()
        while self._events and self._events[0][0] < now_s - WINDOW_S:
            self._count -= self._events.popleft()[1]
        return self._count / max(min(WINDOW_S, now_s - self._start_s), 1e-3)


class Display:
    """What a run shows; a context manager.

    Args:
        console: where; None for silence.
        num_slides: of the run.
        activities: what the workers do, one text each.
    """

    def __init__(self, console: Console | None, num_slides: int, activities: Callable[[], list[str]]) -> None:
        self._console, self._num_slides, self._activities = console, num_slides, activities
        self._num_done = self._num_failed = self._num_patches = 0
        self._slides, self._patches = Rate(), Rate()
        is_live = console is not None and console.is_terminal
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=4) if is_live else None

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def add_patches(self, count: int) -> None:
        """So many patches were finished."""
        self._num_patches += count
        self._patches.add(count)

    def show(self, status: SlideStatus) -> None:
        """A slide has its outcome."""
        self._slides.add(1)
        self._num_failed += status.status == FAILED
        self._num_done += status.status != FAILED
        if self._console is not None and (self._live is None or status.status == FAILED):
            self._console.print(self._line(status), soft_wrap=True)

    def _line(self, status: SlideStatus) -> str:
        slide_id = escape(status.slide_id)
        finished = self._num_done + self._num_failed
        tail = f"[dim]({finished}/{self._num_slides}, {self._speed()})[/]"
        if status.status == FAILED:
            return f"[red]failed[/]  {slide_id}: {escape(status.error)} {tail}"
        if status.resumed:
            return f"kept    {slide_id}: {status.num_patches} patches {tail}"
        if status.status != DONE:
            return f"to do   {slide_id} {tail}"
        failed = f", {status.failed_patches} not readable" if status.failed_patches else ""
        return f"done    {slide_id}: {status.num_patches} patches{failed} in {status.seconds:.1f} s {tail}"

    def _speed(self) -> str:
        left = self._num_slides - self._num_done - self._num_failed
        rate = self._slides.per_second()
        remaining = f"{duration(left / rate)} left" if rate and left else "nothing left" if not left else "? left"
        per_slide = f"{rate:.2g} slides/s" if rate >= 0.1 else f"{60 * rate:.2g} slides/min"
        return f"{per_slide}, {self._patches.per_second():.3g} patches/s, {remaining}"

    def _table(self) -> Table:
        left = self._num_slides - self._num_done - self._num_failed
        table = Table(show_header=False, box=None, padding=(0, 1))
        table.add_row("slides", Text(f"{self._num_done} done, {self._num_failed} failed, {left} left"))
        table.add_row("patches", str(self._num_patches))
        table.add_row("speed", self._speed())
        activities = self._activities()
        for number, text in enumerate(activities[:MAX_SHOWN_WORKERS], start=1):
            table.add_row(f"worker {number}", Text(text, overflow="ellipsis", no_wrap=True))
        if len(activities) > MAX_SHOWN_WORKERS:
            table.add_row("", f"and {len(activities) - MAX_SHOWN_WORKERS} more workers")
        return table


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as `2:05:09`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
