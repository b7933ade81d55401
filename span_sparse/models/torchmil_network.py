"""How are other groups' MIL models trained on the same slides, splits and schedule as SPAN?

The models are those of the library torchmil (Castro-Macías et al.), each wrapped into the interface of our networks:

1. The batch is split into slides; each is a bag of its own, so that no padding is needed and batch mates do not matter.
2. A model of torchmil answers with one logit `z` for the second of two classes; here it becomes the logits `(0, z)`,
   whose softmax is the sigmoid of `z`.
3. What a model adds to the loss of its answer (CLAM's clusters of instances, DSMIL's highest instance) is
   `own_losses`, as its own `compute_loss` gives it (CLAM's with cross-entropy, one of the two choices of its authors).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from span_sparse.errors import ConfigError
from span_sparse.models.assembly import Place
from span_sparse.models.config import TorchmilConfig
from span_sparse.models.pooling import bags


class TorchmilNetwork(nn.Module):
    """A model of torchmil.

    Args:
        config: which model.
        num_features: of a patch.
        num_classes: must be two.

    Raises:
        ConfigError: torchmil is not installed, or the task does not have two classes.
    """

    def __init__(self, config: TorchmilConfig, *, num_features: int, num_classes: int) -> None:
        super().__init__()
        if num_classes != 2:
            raise ConfigError(
                f"the models of torchmil answer for two classes, the task has {num_classes}; use SpanMilConfig, "
                "AttentionPoolingConfig or MeanPoolingConfig"
            )
        project = nn.Sequential(nn.Linear(num_features, config.hidden), nn.ReLU())
        self.model = _model(config, num_features, project)

    def forward(
        self, features: Float[Tensor, "tokens features"], place: Place, num_slides: int
    ) -> Float[Tensor, "slides 2"]:
        """Logits of every slide."""
        rows, sites, _ = bags(features, place, num_slides)
        logits = torch.stack([self._answer(bag[None]).reshape(()) for bag in rows.split(sites.counts)])
        return torch.stack([torch.zeros_like(logits), logits], dim=1)

    def own_losses(
        self,
        features: Float[Tensor, "tokens features"],
        place: Place,
        labels: Int[Tensor, " slides"],
    ) -> Float[Tensor, " slides"]:
        """What the model adds to the cross-entropy of each slide's answer; zero for ABMIL and TransMIL.

        Args:
            features: patch features.
            place: where the patches lie.
            labels: class index of each slide.
        """
        rows, sites, _ = bags(features, place, len(labels))
        if self._adds_no_loss:
            return features.new_zeros(len(labels))
        losses = []
        for bag, label in zip(rows.split(sites.counts), labels, strict=True):
            _, parts = self.model.compute_loss(label[None].float(), bag[None])
            _, *own = parts.values()  # the first one is the loss of the answer
            losses.append(torch.stack([torch.as_tensor(part).reshape(()) for part in own]).sum())
        return torch.stack(losses)

    @property
    def _adds_no_loss(self) -> bool:
        """Whether the loss of the answer is all there is."""
        return type(self.model).__name__ in ("ABMIL", "TransMIL")

    def _answer(self, bag: Tensor) -> Tensor:
        """Logit of one slide. DSMIL trains bag and highest instance apart and answers with the mean of both."""
        if not self.training and type(self.model).__name__ == "DSMIL":
            return self.model.predict(bag)
        return self.model(bag)


class _InstanceCrossEntropy(nn.Module):
    """Loss of CLAM's instances. torchmil 1.0 gives targets `[instances, 1]`, on which its own smooth SVM fails."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets.flatten().long())


def _model(config: TorchmilConfig, num_features: int, project: nn.Module) -> Any:
    try:
        from torchmil.models import ABMIL, CLAM_SB, DSMIL, TransMIL
    except ImportError as error:
        raise ConfigError(
            f"network {config.name!r} is a model of torchmil, which cannot be imported ({error}); run "
            "`pip install 'span-sparse[baselines]'`"
        ) from error
    shared: dict[str, Any] = {"in_shape": (num_features,), "feat_ext": project}
    width = config.hidden // 2
    if config.name == "abmil":
        return ABMIL(att_dim=width, gated=True, **shared)
    if config.name == "clam_sb":
        model: Any = CLAM_SB(att_dim=width, gated=True, **shared)
        model.inst_loss_fn = _InstanceCrossEntropy()
        return model
    if config.name == "dsmil":
        return DSMIL(att_dim=width, **shared)
    model = TransMIL(att_dim=config.hidden, n_heads=8, **shared)
    for layer in model.layers:
        layer.norm2.requires_grad_(False)  # belongs to a perceptron that TransMIL does not have; DDP would wait for it
    return model
