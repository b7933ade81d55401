"""The device that `--device` means, and what suits it where nobody says anything else."""

from __future__ import annotations

import os
from typing import Final

MAX_READERS: Final = 8
"""Reading processes on a GPU unless somebody says otherwise."""


def device_of(name: str) -> str:
    """The torch device of `auto`, `cpu`, `cuda` or `cuda:N`; a CUDA one becomes the current device, TF32 off.

    Raises:
        ConfigError: no such device here.
    """
    import torch

    from span_sparse.errors import ConfigError
    from span_sparse.float32 import off_by_default

    off_by_default()
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name!r}: expected auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name!r}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"--device {name}: no CUDA device is available here; use --device cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise ConfigError(f"--device {name}: found {found} GPUs here, counted from 0; use one of them, or cpu")
        if device.index is not None:
            torch.cuda.set_device(device)  # spconv launches on the current device
    return name


def tokens_per_step(device: str) -> int | None:
    """Patches that are evaluated together; None: one slide a step, which is as fast on the CPU."""
    from span_sparse.datasets.batching import EVALUATION_TOKENS_ON_GPU

    return EVALUATION_TOKENS_ON_GPU if device.startswith("cuda") else None


def reading_processes(device: str) -> int:
    """Processes that read the store: on a GPU one for each core, at most 8; on the CPU none beside the network's."""
    return min(MAX_READERS, len(os.sched_getaffinity(0))) if device.startswith("cuda") else 0
