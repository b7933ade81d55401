"""Cross-entropy and multi-label loss against hand-written terms, slide by slide."""

from __future__ import annotations

import math

import pytest
import torch

from span_sparse.losses import cross_entropy, multi_label_bce


def test_hand_numbers() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(4.0), 0.0]])
    losses = cross_entropy(logits, torch.tensor([0, 0]))
    assert losses.tolist() == pytest.approx([math.log(4), math.log(5 / 4)], rel=1e-6)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_class_weights_act_on_a_single_slide(label: int) -> None:
    logits, weights = torch.randn(1, 3), torch.tensor([0.5, 2.0, 7.0])
    plain = cross_entropy(logits, torch.tensor([label]))
    weighted = cross_entropy(logits, torch.tensor([label]), weights)
    torch.testing.assert_close(weighted, plain * weights[label])


def test_a_slide_does_not_see_its_batch_mates() -> None:
    logits, labels, weights = torch.randn(5, 3), torch.tensor([0, 2, 1, -1, 2]), torch.tensor([1.0, 5.0, 0.25])
    together = cross_entropy(logits, labels, weights)
    alone = torch.cat([cross_entropy(logits[i : i + 1], labels[i : i + 1], weights) for i in range(5)])
    torch.testing.assert_close(together, alone, equal_nan=True)
    assert together.isnan().tolist() == [False, False, False, True, False]


def test_an_unknown_label_leaves_the_gradients_of_the_others_alone() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    losses = cross_entropy(logits, torch.tensor([1, -1]))
    losses[~losses.isnan()].mean().backward()
    assert logits.grad is not None
    assert logits.grad[1].tolist() == [0, 0, 0]
    expected = logits.detach()[0].softmax(dim=0) - torch.tensor([0.0, 1.0, 0.0])
    torch.testing.assert_close(logits.grad[0], expected)


def test_multi_label_hand_numbers() -> None:
    logits = torch.tensor([[0.0, math.log(3.0), -math.log(3.0)]])
    targets = torch.tensor([[1.0, 0.0, torch.nan]])
    assert multi_label_bce(logits, targets).item() == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-6)
    weighted = multi_label_bce(logits, targets, torch.tensor([5.0, 9.0, 9.0]))
    assert weighted.item() == pytest.approx((5 * math.log(2) + math.log(4)) / 2, rel=1e-6)


def test_multi_label_slides_without_any_label_are_nan_and_harmless() -> None:
    logits = torch.randn(3, 2, requires_grad=True)
    targets = torch.tensor([[1.0, 0.0], [torch.nan, torch.nan], [torch.nan, 1.0]])
    losses = multi_label_bce(logits, targets)
    assert losses.isnan().tolist() == [False, True, False]
    losses[~losses.isnan()].mean().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[1].tolist() == [0, 0]
    assert logits.grad[2, 0] == 0
    for row in (0, 2):
        torch.testing.assert_close(losses[row], multi_label_bce(logits[[row]], targets[[row]])[0])


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    (cross_entropy(logits, torch.tensor([0, 0])) + multi_label_bce(logits, torch.eye(2))).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_gradcheck() -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    labels, weights = torch.tensor([0, 3, 1]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    targets = torch.tensor([[0.0, 1.0, torch.nan, 1.0]] * 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda rows: cross_entropy(rows, labels, weights), (logits,))
    assert torch.autograd.gradcheck(lambda rows: multi_label_bce(rows, targets, weights), (logits,))
