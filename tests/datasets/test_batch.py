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


def test_targets_and_patch_labels_travel_with_their_slides() -> None:
    def sample(index: int, num_patches: int) -> SlideSample:
        rows = torch.arange(num_patches)
        return SlideSample(
            index, torch.zeros(num_patches, 2), torch.stack([rows, rows], dim=1).int(), -1,
            targets=torch.tensor([index + 0.5, torch.nan, 1.0]),
            patch_ratios=torch.stack([rows / 10 + index, rows / 100], dim=1), patch_labels=rows + 10 * index,
        )  # fmt: skip

    batch = collate([sample(7, 3), sample(2, 1)])
    assert batch.targets is not None
    assert batch.patch_ratios is not None
    assert batch.patch_labels is not None
    assert batch.targets.nan_to_num(-9).tolist() == [[7.5, -9, 1], [2.5, -9, 1]]
    assert batch.patch_labels.tolist() == [70, 71, 72, 20]
    assert torch.allclose(batch.patch_ratios, torch.tensor([[7, 0], [7.1, 0.01], [7.2, 0.02], [2, 0]]))
    moved = batch.to("meta")
    assert {moved.targets.device.type, moved.patch_ratios.device.type, moved.patch_labels.device.type} == {"meta"}
    plain = collate([SlideSample(0, torch.ones(2, 3), torch.tensor([[0, 1], [1, 0]], dtype=torch.int32), 0)])
    assert (plain.targets, plain.patch_ratios, plain.patch_labels) == (None, None, None)
    assert plain.to("cpu").patch_labels is None
