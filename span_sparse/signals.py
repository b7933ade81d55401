"""Has somebody asked this process to stop, and how do its helpers sleep through it?

A cluster sends SIGUSR1 some time before the time limit and SIGTERM before it takes a node away, to every process of a
step. Both end a process on the spot unless it says otherwise. Within `noted()` they leave a note, and whoever is in a
position to stop well asks for it with `requested()`. Nothing else happens in the handler: it may run between any two
instructions, in each process at another one, so a checkpoint written there is of different steps, or waits for ever
for the other processes.

The first seconds of a training are spent importing torch, and a signal may come then: this module imports nothing of
weight, so that `noted()` can be entered before. The last second is spent ending Python; a job that is killed in it has
failed although everything is done, so stop signals are ignored then.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import Final

STOP_SIGNALS: Final = (signal.SIGUSR1, signal.SIGTERM)

_HELPERS_IGNORE: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

_requested = 0


def requested() -> int:
    """Number of the stop signal that came last within `noted()`, 0 for none."""
    return _requested


@contextmanager
def noted(*, with_interrupt: bool = False) -> Iterator[None]:
    """Stop signals are noted instead of ending the process; within itself and in other threads it changes nothing.

    Args:
        with_interrupt: the first Ctrl-C is noted too; a second one interrupts as usual.
    """
    global _requested
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is _note:
        yield
        return
    _requested = 0
    atexit.unregister(_ignore)
    atexit.register(_ignore)
    before = {number: signal.signal(number, _note) for number in STOP_SIGNALS}
    if with_interrupt and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a shell's background
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _note_interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _ignore() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _note_interrupt(number: int, _: FrameType | None) -> None:
    global _requested
    _requested = number
    signal.signal(number, signal.default_int_handler)
    os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")


def _note(number: int, _: FrameType | None) -> None:
    global _requested
    _requested = number


@contextmanager
def blocked() -> Iterator[None]:
    """Processes started now never see a stop signal or Ctrl-C, from their first instruction on; their parent ends them.

    A terminal and a cluster signal whole groups. What arrives here meanwhile is delivered afterwards.
    """
    resource_tracker.ensure_running()  # Python starts it with the first process, and unblocks signals then
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELPERS_IGNORE)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
