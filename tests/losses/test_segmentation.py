"""Cross-entropy and Dice of patches: hand numbers, a second implementation, and independence of batch mates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from span_sparse.losses import binary_segmentation_loss, multi_class_segmentation_loss, soft_dice

COUNTS = (7, 1, 12)


def dice_by_hand(p: NDArray[np.float64], t: NDArray[np.float64]) -> float:
    overlap = sum(float(a) * float(b) for a, b in zip(p, t, strict=True))
    return (2 * overlap + 1e-6) / (float(p.sum()) + float(t.sum()) + 1e-6)


def test_soft_dice_hand_numbers() -> None:
    def dice(p: list[float], t: list[float]) -> float:
        return soft_dice(torch.tensor(p).double(), torch.tensor(t).double()).item()

    assert dice([1, 1, 0, 0], [1, 0, 0, 0]) == pytest.approx(2 / 3, abs=1e-6)
    assert dice([0.5, 0.5], [1, 0]) == pytest.approx(0.5, abs=1e-6)
    assert dice([1, 0], [0, 1]) == pytest.approx(0, abs=1e-6)
    assert dice([0, 0], [0, 0]) == 1
    assert dice([0.2, 0.9, 0.4], [1, 1, 0]) == pytest.approx(2 * 1.1 / 3.5, abs=1e-6)


@pytest.mark.parametrize(("positive_weight", "dice_weight"), [(1.0, 0.75), (4.0, 0.75), (2.0, 0.0), (3.0, 1.0)])
def test_binary_equals_a_second_implementation(positive_weight: float, dice_weight: float) -> None:
    logits, targets = torch.randn(20).double(), (torch.rand(20) < 0.4).double()
    targets[7] = 0  # the slide of one patch has no lesion
    ours = binary_segmentation_loss(
        logits, targets, COUNTS, positive_weight=positive_weight, dice_weight=dice_weight
    ).tolist()
    start = 0
    for loss, count in zip(ours, COUNTS, strict=True):
        z, t = logits[start : start + count].numpy(), targets[start : start + count].numpy()
        p = 1 / (1 + np.exp(-z))
        entropy = float(np.mean(-positive_weight * t * np.log(p) - (1 - t) * np.log(1 - p)))
        mixed = (1 - dice_weight) * entropy + dice_weight * (1 - dice_by_hand(p, t))
        assert loss == pytest.approx(mixed if t.any() else entropy, rel=1e-9)
        start += count


@pytest.mark.parametrize("weighted", [False, True])
def test_multi_class_equals_a_second_implementation(weighted: bool) -> None:
    logits, targets = torch.randn(20, 4).double(), torch.randint(0, 3, (20,))  # class 3 never occurs
    weights = torch.tensor([1.0, 0.25, 3.0, 9.0]).double() if weighted else None
    ours = multi_class_segmentation_loss(logits, targets, COUNTS, class_weights=weights).tolist()
    start = 0
    for loss, count in zip(ours, COUNTS, strict=True):
        z, t = logits[start : start + count].numpy(), targets[start : start + count].numpy()
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        factors = np.ones(4) if weights is None else weights.numpy()
        entropy = sum(-factors[name] * math.log(row[name]) for row, name in zip(p, t, strict=True)) / count
        dices = [1 - dice_by_hand(p[:, name], (t == name).astype(float)) for name in sorted(set(t.tolist()))]
        assert loss == pytest.approx(0.25 * entropy + 0.75 * sum(dices) / len(dices), rel=1e-9)
        start += count


def test_a_slide_does_not_see_its_batch_mates() -> None:
    logits, truth = torch.randn(20), (torch.rand(20) < 0.5).float()
    many, names = torch.randn(20, 3), torch.randint(0, 3, (20,))
    together = binary_segmentation_loss(logits, truth, COUNTS, positive_weight=3.0)
    multi = multi_class_segmentation_loss(many, names, COUNTS, class_weights=torch.tensor([1.0, 2.0, 5.0]))
    for slide, rows in enumerate(torch.arange(20).split(COUNTS)):
        alone = binary_segmentation_loss(logits[rows], truth[rows], (len(rows),), positive_weight=3.0)
        torch.testing.assert_close(together[slide], alone[0])
        alone = multi_class_segmentation_loss(
            many[rows], names[rows], (len(rows),), class_weights=torch.tensor([1.0, 2.0, 5.0])
        )
        torch.testing.assert_close(multi[slide], alone[0])


def test_extreme_logits_and_slides_without_lesion_have_finite_gradients() -> None:
    logits = torch.tensor([1e4, -1e4, 1e4, -1e4, -1e4], requires_grad=True)
    loss = binary_segmentation_loss(logits, torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0]), (3, 2))
    assert loss.isfinite().all()
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_gradcheck() -> None:
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    truth = torch.tensor([1.0, 0, 0, 1, 0, 0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda rows: binary_segmentation_loss(rows, truth, (4, 2), positive_weight=2.0), (logits,)
    )
    many = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    names = torch.tensor([0, 1, 1, 0, 2, 2])
    assert torch.autograd.gradcheck(lambda rows: multi_class_segmentation_loss(rows, names, (4, 2)), (many,))
