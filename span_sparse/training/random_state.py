"""Where do all random number generators of this process stand?

Lightning's checkpoints do not say, so after a resume dropout would be another one than without the interruption. The
state is tensors and plain values: a checkpoint that holds it is still loaded as data, without unpickling.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.distributed
from numpy.random import get_state, set_state


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's global generators, and of the device's if it is a GPU."""
    name, keys, *rest = get_state()
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Sets what `random_state` gave; a state of another kind of device leaves the device's generator alone."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def gathered(value: Any) -> list[Any]:
    """The values of all processes by rank, on every process; small plain values."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
