"""Time and peak memory of a call, on the CPU or on CUDA.

On the CPU the memory is the resident memory of the process, with every freed tensor given back to the system at once:
what glibc keeps for later depends on the history of the process, and made the same model need 227 MB in one run and
371 MB in the next.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path

import torch

MOST_REPETITIONS = 12
FEWEST_REPETITIONS = 3

_M_MMAP_THRESHOLD = -3
"""glibc's number of the option: allocations from this size on are given back to the system when they are freed."""


def repeat(call: Callable[[], object], device: torch.device, budget_s: float) -> tuple[list[float], list[float]]:
    """Wall and CPU seconds of up to twelve repetitions within a budget: at least three, or one that exceeds it."""
    walls: list[float] = []
    cpus: list[float] = []
    while not walls or (
        len(walls) < MOST_REPETITIONS
        and (sum(walls) < budget_s or (len(walls) < FEWEST_REPETITIONS and walls[0] < budget_s))
    ):
        synchronise(device)
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        synchronise(device)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return walls, cpus


def synchronise(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_growth_mb(call: Callable[[], object], device: torch.device) -> float:
    """Growth of peak memory over what is loaded, in MB."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_THRESHOLD, 2**16)
    gc.collect()
    library.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark (Linux)
    before = _status_kib("VmRSS")
    call()
    growth = _status_kib("VmHWM") - before
    library.mallopt(_M_MMAP_THRESHOLD, 2**25)  # where the threshold ends up by itself
    return growth * 1024 / 1e6


def available_bytes(device: torch.device) -> int:
    """Free memory of the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def release(device: torch.device) -> None:
    """Gives back what the last cell left behind, in a process that measures several."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _status_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
