"""How is a classifier of slides trained? Cross-entropy or focal loss; AUC and balanced accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_auroc

from span_sparse.datasets import ClassificationTask, SlideBatch
from span_sparse.datasets.batch import NO_LABEL
from span_sparse.datasets.slide_dataset import SlideItem
from span_sparse.errors import ConfigError
from span_sparse.losses import cross_entropy
from span_sparse.models import (
    AttentionPoolingConfig,
    MeanPoolingConfig,
    NetworkConfig,
    SpanMilConfig,
    TorchmilConfig,
    TorchmilNetwork,
)
from span_sparse.training.outcomes import Outcomes, by_case
from span_sparse.training.task_module import StepOutput, TaskModule


class SlideClassifier(TaskModule):
    """Classification of slides, one class each.

    Args:
        network: which network, with its settings.
        class_weights: weights of the classes in the loss, in the order of the classes; a slide's loss is multiplied by
            the weight of its class, at any batch size. `balanced`: the inverse of the classes' shares of the training
            slides, with mean 1 over these slides.
        balanced_weights: what `balanced` came to; taken from the training slides and kept in the checkpoint.
        focal_gamma: 0 for cross-entropy; above, slides that are classified well count less (Lin et al., ICCV 2017).
        settings: as in `TaskModule`.

    Raises:
        ConfigError: settings that cannot work.
    """

    task_type = ClassificationTask
    network_types: ClassVar = (SpanMilConfig, MeanPoolingConfig, AttentionPoolingConfig, TorchmilConfig)

    def __init__(
        self,
        network: NetworkConfig | TorchmilConfig | None = None,
        *,
        class_weights: list[float] | Literal["balanced"] | None = None,
        balanced_weights: list[float] | None = None,
        focal_gamma: float = 0.0,
        **settings: Any,
    ) -> None:
        if focal_gamma < 0:
            raise ConfigError(f"focal_gamma {focal_gamma} must not be negative; 0 is cross-entropy, 2 the usual value")
        self.class_weights, self.focal_gamma = class_weights, focal_gamma
        own = {"class_weights": class_weights, "balanced_weights": balanced_weights, "focal_gamma": focal_gamma}
        super().__init__(network, own=own, **settings)

    def num_outputs(self) -> int:
        """One logit a class."""
        return self.task.num_classes

    def prepare(self, items: Sequence[SlideItem]) -> None:
        """Class weights; see `TaskModule.prepare`."""
        if self.class_weights == "balanced":
            if items and self.own["balanced_weights"] is None:
                labels = [item.label for item in items]
                counts = [labels.count(label) for label in range(self.task.num_classes)]
                self.own["balanced_weights"] = [len(labels) / (len(counts) * count) for count in counts]
        elif self.class_weights is not None and len(self.class_weights) != self.task.num_classes:
            raise ConfigError(
                f"class_weights has {len(self.class_weights)} entries, the task {self.task.num_classes} classes: "
                f"{list(self.task.class_names)}"
            )

    def _batch_step(self, batch: SlideBatch) -> StepOutput:
        logits = self(batch).float()
        weights = self.own["balanced_weights"] if self.class_weights == "balanced" else self.class_weights
        factors = None if weights is None else logits.new_tensor(weights)
        losses = cross_entropy(logits, batch.labels, factors, focal_gamma=self.focal_gamma)
        if self.training and isinstance(self.network, TorchmilNetwork):
            losses = losses + self.network.own_losses(batch.features, batch.coords, batch.labels)
        return StepOutput(losses, {"labels": batch.labels, "probabilities": logits.softmax(dim=1)})

    def figures(self, outcomes: Outcomes, case_ids: Sequence[str]) -> dict[str, float]:
        """Loss, AUC (macro one-versus-rest) and balanced accuracy of the labelled slides.

        Where cases have several slides and one class each, also `case_auc` of the mean probabilities of each case. An
        AUC is left out where a class does not occur.
        """
        known = outcomes["labels"] != NO_LABEL
        labels, probabilities = outcomes["labels"][known], outcomes["probabilities"][known]
        if not len(labels):
            return {}
        balanced = multiclass_accuracy(probabilities, labels, probabilities.shape[1], average="macro")
        values = {"loss": outcomes["loss"][known].mean().item(), "balanced_accuracy": balanced.item()}
        values |= _auc("auc", probabilities, labels)
        cases = [case_id for case_id, is_known in zip(case_ids, known.tolist(), strict=True) if is_known]
        case_labels = by_case(labels.double(), cases)
        if len(case_labels) < len(labels) and torch.equal(case_labels, case_labels.round()):
            values |= _auc("case_auc", by_case(probabilities, cases), case_labels.long())
        return values

    def prediction_columns(self, outcomes: Outcomes) -> dict[str, list[Any]]:
        """`y_true, y_pred, prob_<class>…`."""
        names = self.task.class_names
        probabilities = outcomes["probabilities"].double()
        return {
            "y_true": [None if label == NO_LABEL else names[label] for label in outcomes["labels"].tolist()],
            "y_pred": [names[best] for best in probabilities.argmax(dim=1).tolist()],
            **{f"prob_{name}": probabilities[:, column].tolist() for column, name in enumerate(names)},
        }


def _auc(name: str, probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    if len(labels.unique()) < probabilities.shape[1]:
        return {}
    return {name: multiclass_auroc(probabilities, labels, probabilities.shape[1], average="macro").item()}
