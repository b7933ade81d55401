"""What does a wrong patch cost? Cross-entropy and Dice, mixed: `(1 − λ)·CE + λ·Dice`, λ = 0.75.

Cross-entropy alone is content to miss a small lesion; Dice alone has no gradient worth following where there is none,
so a slide without positive patches is trained by cross-entropy only (as in the authors' code). Dice is computed a
slide: pooled over a batch it would let large slides drown small ones and depend on batch mates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

_SMOOTH = 1e-6


def soft_dice(probabilities: Float[Tensor, " patches"], targets: Float[Tensor, " patches"]) -> Float[Tensor, ""]:
    """`(2 Σ p t + ε) / (Σ p + Σ t + ε)` of one class of one slide (Milletari et al. 2016)."""
    return (2 * (probabilities * targets).sum() + _SMOOTH) / (probabilities.sum() + targets.sum() + _SMOOTH)


def binary_segmentation_loss(
    logits: Float[Tensor, " tokens"],
    targets: Float[Tensor, " tokens"],
    counts: tuple[int, ...],
    *,
    positive_weight: float = 1.0,
    dice_weight: float = 0.75,
) -> Float[Tensor, " slides"]:
    """The loss of every slide.

    Args:
        logits: one a patch, the patches of each slide contiguous.
        targets: 0 or 1.
        counts: patches of each slide.
        positive_weight: factor of the positive term of the cross-entropy, negatives over positives of the training set.
        dice_weight: λ.
    """
    weight = logits.new_tensor(positive_weight)
    losses = []
    for scores, truth in zip(logits.split(counts), targets.split(counts), strict=True):
        entropy = F.binary_cross_entropy_with_logits(scores, truth, pos_weight=weight)
        dice = 1 - soft_dice(scores.sigmoid(), truth)
        losses.append(torch.where(truth.any(), (1 - dice_weight) * entropy + dice_weight * dice, entropy))
    return torch.stack(losses)


def multi_class_segmentation_loss(
    logits: Float[Tensor, "tokens classes"],
    targets: Int64[Tensor, " tokens"],
    counts: tuple[int, ...],
    *,
    class_weights: Float[Tensor, " classes"] | None = None,
    dice_weight: float = 0.75,
) -> Float[Tensor, " slides"]:
    """The loss of every slide; Dice is the mean over the classes that occur in it.

    Args:
        logits: one row a patch, the patches of each slide contiguous.
        targets: class indices.
        counts: patches of each slide.
        class_weights: factors of the cross-entropy.
        dice_weight: λ.
    """
    losses = []
    for scores, truth in zip(logits.split(counts), targets.split(counts), strict=True):
        entropy = F.cross_entropy(scores, truth, reduction="none")
        if class_weights is not None:
            entropy = entropy * class_weights[truth]
        probabilities = scores.softmax(dim=1)
        dice = torch.stack(
            [1 - soft_dice(probabilities[:, name], (truth == name).to(scores.dtype)) for name in truth.unique()]
        )
        losses.append((1 - dice_weight) * entropy.mean() + dice_weight * dice.mean())
    return torch.stack(losses)
