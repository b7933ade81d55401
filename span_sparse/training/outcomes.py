"""What did the model say of each slide of a cohort, when several processes looked at different slides?

Every process keeps one row a slide; at the end of the epoch the rows of all processes are gathered, repeated slides
dropped by their index, and every figure is computed once on the whole cohort. Averaging each process's figures instead
is wrong for uneven shares and for anything that is not a mean, such as the AUC.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed
from jaxtyping import Float, Int64
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_auroc

from span_sparse.datasets.batch import NO_LABEL


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Rows of a cohort, ordered by index.

    Attributes:
        indices: position of each slide in its data set.
        labels: class index or `NO_LABEL`.
        probabilities: of every class.
        losses: of each slide; NaN where unlabelled.
    """

    indices: Int64[Tensor, " slides"]
    labels: Int64[Tensor, " slides"]
    probabilities: Float[Tensor, "slides classes"]
    losses: Float[Tensor, " slides"]

    def metrics(self) -> dict[str, float]:
        """Loss, AUC (macro one-versus-rest) and balanced accuracy of the labelled slides.

        The AUC is left out where a class has no slide.
        """
        known = self.labels != NO_LABEL
        labels, probabilities = self.labels[known], self.probabilities[known]
        num_classes = probabilities.shape[1]
        if not len(labels):
            return {}
        values = {
            "loss": self.losses[known].mean().item(),
            "balanced_accuracy": multiclass_accuracy(probabilities, labels, num_classes, average="macro").item(),
        }
        if len(labels.unique()) == num_classes:
            values["auc"] = multiclass_auroc(probabilities, labels, num_classes, average="macro").item()
        return values


@dataclass(slots=True)
class OutcomeCollector:
    """Collects rows during an evaluation epoch of this process."""

    _parts: list[Outcomes] = field(default_factory=list)

    def add(self, part: Outcomes) -> None:
        """Keeps the rows of one batch, on the CPU."""
        rows = (part.indices, part.labels, part.probabilities, part.losses)
        self._parts.append(Outcomes(*(row.detach().cpu() for row in rows)))

    def gather(self) -> Outcomes:
        """The rows of all processes, each slide once, ordered by index; empties this collector."""
        parts, self._parts = self._parts, []
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            shares: list[list[Outcomes]] = [[] for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(shares, parts)
            parts = [part for share in shares for part in share]
        indices = torch.cat([part.indices for part in parts])
        order = indices.argsort(stable=True)
        first = torch.ones(len(order), dtype=torch.bool)
        first[1:] = indices[order][1:] != indices[order][:-1]
        keep = order[first]
        return Outcomes(
            indices[keep],
            torch.cat([part.labels for part in parts])[keep],
            torch.cat([part.probabilities for part in parts])[keep],
            torch.cat([part.losses for part in parts])[keep],
        )
