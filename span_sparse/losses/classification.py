"""What does a wrong class cost? One loss a slide, so that weights act whatever the batch size.

`torch.nn.CrossEntropyLoss(weight=w)` divides by the batch's summed weights: with one slide a batch, the usual case in
this field, every weight cancels. Here a slide's loss is multiplied by the weight of its class and nothing is divided.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

_TINY = 1e-12
"""Keeps the gradient of `(1 − p)^γ` finite where p is 1."""


def cross_entropy(
    logits: Float[Tensor, "slides classes"],
    labels: Int64[Tensor, " slides"],
    class_weights: Float[Tensor, " classes"] | None = None,
    *,
    focal_gamma: float = 0.0,
) -> Float[Tensor, " slides"]:
    """Cross-entropy of every slide, NaN where the label is negative (unknown).

    With `focal_gamma` γ > 0 the focal loss `−(1 − p)^γ log p`, p of the true class (Lin et al., ICCV 2017, equation 4).

    Args:
        logits: unnormalised log-probabilities.
        labels: class indices.
        class_weights: factor of each class.
        focal_gamma: γ.
    """
    known = labels.clamp(min=0)
    losses = F.cross_entropy(logits, known, reduction="none")
    if focal_gamma > 0:
        losses = losses * (-torch.expm1(-losses)).clamp(min=_TINY) ** focal_gamma
    if class_weights is not None:
        losses = losses * class_weights.to(losses.dtype)[known]
    return losses.masked_fill(labels < 0, torch.nan)


def multi_label_bce(
    logits: Float[Tensor, "slides classes"],
    targets: Float[Tensor, "slides classes"],
    positive_weights: Float[Tensor, " classes"] | None = None,
) -> Float[Tensor, " slides"]:
    """Binary cross-entropy of every slide, the mean over its known labels; NaN for a slide with none.

    Args:
        logits: one a label.
        targets: 0, 1, or NaN where unknown.
        positive_weights: factor of the positive term of each label.
    """
    known = ~targets.isnan()
    losses = F.binary_cross_entropy_with_logits(
        logits, targets.nan_to_num(), pos_weight=positive_weights, reduction="none"
    )
    count = known.sum(dim=1)
    means = (losses * known).sum(dim=1) / count.clamp(min=1)  # never 0 / 0: its gradient is NaN even where masked
    return means.masked_fill(count == 0, torch.nan)
