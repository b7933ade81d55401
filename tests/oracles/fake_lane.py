"""A lane that is no CUDA stream: batches are made ready in a thread, on the CPU."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import torch


class FakeLane:
    """Events are numbers; `log` says who did what, in order."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.log = device, []
        self.inside = threading.local()
        self.num_marks = 0

    def enter(self) -> None:
        self.log.append(("enter", threading.current_thread().name))

    @contextmanager
    def working(self):
        self.inside.lane = True
        yield
        self.inside.lane = False

    def mark(self) -> tuple[str, int]:
        self.num_marks += 1
        return ("staged" if getattr(self.inside, "lane", False) else "asked", self.num_marks)

    def wait(self, event) -> None:
        self.log.append(("wait", event))

    def hand_over(self, event, tensors) -> None:
        self.log.append(("hand over", event[0], sorted(id(tensor) for tensor in tensors)))
