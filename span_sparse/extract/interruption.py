"""How does a run end well when it is told to?

Ctrl-C sends SIGINT, which Python raises as `KeyboardInterrupt`. A cluster sends SIGTERM some seconds before SIGKILL,
which by default ends the process on the spot, workers running and files half written. Within `termination_raises` it
raises `SystemExit` with the shell's code for it, 143, so that the same `finally` blocks run.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def termination_raises() -> Iterator[None]:
    """SIGTERM raises `SystemExit(143)` in the main thread; elsewhere nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the cleaning up; SIGKILL still can
    raise SystemExit(128 + number)
