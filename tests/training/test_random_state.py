from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch

from span_sparse.training.random_state import gathered, random_state, restore_random_state

CPU = torch.device("cpu")


def draws(device: torch.device) -> list[float]:
    return [random.gauss(0, 1), np.random.standard_normal(), *torch.rand(3, device=device).tolist()]


def through_a_file(state):
    """As a checkpoint is read: tensors and plain values only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_every_generator_goes_on_where_it_was(device: str) -> None:
    place = torch.device(device)
    draws(place)  # in the middle of a pair of normal numbers, of which one is kept
    state = through_a_file(random_state(place))
    expected = draws(place)
    assert draws(place) != expected
    restore_random_state(state, place)
    assert draws(place) == expected


def test_a_state_of_a_gpu_is_of_use_without_one() -> None:
    state = random_state(CPU) | {"cuda": torch.zeros(16, dtype=torch.uint8)}
    expected = draws(CPU)
    restore_random_state(state, CPU)
    assert draws(CPU) == expected


def test_one_process_gathers_itself() -> None:
    assert gathered({"a": 1}) == [{"a": 1}]
