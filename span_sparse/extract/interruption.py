"""How does a run end well when it is told to?

Signals are noted, and the run asks for them between two steps (`check`), where it can end its workers, finish the slide
that is being written and close its lists. Raised where they arrive, between any two instructions, they leave a worker
that nobody knows of, which Python then waits for at its exit for ever, or a slide that is closed twice, which crashes.

A second Ctrl-C does raise, for those who cannot wait for the step to end.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from span_sparse.signals import noted, requested


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Note SIGTERM, SIGUSR1 and the first Ctrl-C; outside the main thread nothing is changed.

    Yields:
        `check()`, which raises `KeyboardInterrupt` after Ctrl-C, and `SystemExit` with 128 + its number after another
        signal.
    """
    interrupts: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        interrupts.append(number)
        signal.signal(number, signal.default_int_handler)

    def check() -> None:
        if interrupts:
            raise KeyboardInterrupt
        if number := requested():
            raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    with noted():
        before = signal.signal(signal.SIGINT, note)
        try:
            yield check
        finally:
            signal.signal(signal.SIGINT, before)
