from __future__ import annotations

import torch

from span_sparse.datasets import SlideSample, collate


def test_collate_numbers_the_slides_and_keeps_every_row() -> None:
    first = SlideSample(11, torch.arange(6.0).view(3, 2), torch.tensor([[0, 1], [5, 0], [2, 2]], dtype=torch.int32), 1)
    second = SlideSample(4, torch.full((1, 2), 9.0).half(), torch.tensor([[0, 1]], dtype=torch.int32), -1)
    batch = collate([first, second])
    assert batch.coords.tolist() == [[0, 0, 1], [0, 5, 0], [0, 2, 2], [1, 0, 1]]
    assert batch.coords.dtype == torch.int32
    assert batch.features.tolist() == [[0, 1], [2, 3], [4, 5], [9, 9]]
    assert batch.features.dtype == torch.float32
    assert batch.labels.tolist() == [1, -1]
    assert batch.indices.tolist() == [11, 4]
    assert batch.num_slides == 2


def test_a_moved_batch_is_the_same_batch() -> None:
    sample = SlideSample(0, torch.ones(2, 3), torch.tensor([[0, 1], [1, 0]], dtype=torch.int32), 0)
    moved = collate([sample, sample]).to("meta")
    assert {tensor.device.type for tensor in (moved.coords, moved.features, moved.labels, moved.indices)} == {"meta"}
    assert moved.coords.shape == (4, 3)
    assert moved.num_slides == 2
