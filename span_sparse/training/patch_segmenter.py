"""How are the patches of a slide segmented? SPAN-UNet, trained with cross-entropy and Dice.

Two classes are one logit a patch. Which probability counts as positive is a decision of its own, apart from the share
of a patch's area that made it positive in training (`SegmentationTask.threshold`): after every validation epoch it is
set to the value with the highest Dice over all validation patches, and kept in the checkpoint. Choosing it on the test
split, or silently taking 0.5, are the two usual mistakes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from span_sparse.datasets import SegmentationTask, SlideBatch
from span_sparse.datasets.batch import NO_LABEL
from span_sparse.datasets.slide_dataset import SlideItem
from span_sparse.errors import ConfigError
from span_sparse.losses import binary_segmentation_loss, multi_class_segmentation_loss
from span_sparse.metrics import dice, intersection_over_union
from span_sparse.models import SpanUnetConfig
from span_sparse.training.outcomes import Outcomes
from span_sparse.training.task_module import StepOutput, TaskModule

NUM_THRESHOLDS = 99
"""Decision thresholds that are tried: 0.01, 0.02, … 0.99."""


class PatchSegmenter(TaskModule):
    """A class for every patch.

    Args:
        network: settings of SPAN-UNet; None for the segmentation preset.
        dice_weight: λ of the loss `(1 − λ)·CE + λ·Dice`.
        positive_weight: factor of the positive patches in the cross-entropy, for two classes; negatives over positives
            of the training patches evens them out.
        class_weights: factors of the classes in the cross-entropy, for more than two.
        settings: as in `TaskModule`.

    Raises:
        ConfigError: settings that cannot work.
    """

    task_type = SegmentationTask
    network_types: ClassVar = (SpanUnetConfig,)
    decision_threshold: Tensor

    def __init__(
        self,
        network: SpanUnetConfig | None = None,
        *,
        dice_weight: float = 0.75,
        positive_weight: float = 1.0,
        class_weights: list[float] | None = None,
        **settings: Any,
    ) -> None:
        if not 0 <= dice_weight <= 1 or positive_weight <= 0:
            raise ConfigError(
                f"dice_weight {dice_weight} must be between 0 and 1, positive_weight {positive_weight} positive"
            )
        self.dice_weight, self.positive_weight, self.class_weights = dice_weight, positive_weight, class_weights
        own = {"dice_weight": dice_weight, "positive_weight": positive_weight, "class_weights": class_weights}
        super().__init__(network, own=own, **settings)
        self.register_buffer("decision_threshold", torch.tensor(0.5))

    @property
    def is_binary(self) -> bool:
        """Whether there are two classes."""
        return self.task.num_classes == 2

    def num_outputs(self) -> int:
        """One logit a patch for two classes, else one a class."""
        return 1 if self.is_binary else self.task.num_classes

    def prepare(self, items: Sequence[SlideItem]) -> None:
        """Checks the weights; see `TaskModule.prepare`."""
        if self.class_weights is not None and (self.is_binary or len(self.class_weights) != self.num_outputs()):
            raise ConfigError(
                f"class_weights has {len(self.class_weights)} entries, the task's classes are "
                f"{list(self.task.class_names)}; for two classes set positive_weight instead"
            )
        if self.positive_weight != 1 and not self.is_binary:
            raise ConfigError("positive_weight is for two classes; set class_weights")

    def _batch_step(self, batch: SlideBatch) -> StepOutput:
        return self.judged(self(batch).float(), batch)

    def judged(self, logits: Tensor, batch: SlideBatch) -> StepOutput:
        """Losses and agreement of logits, whoever computed them.

        Args:
            logits: `[patches, outputs]`.
            batch: with the labels of the patches.
        """
        assert batch.patch_labels is not None
        slides = batch.coords[:, 0].long()
        losses, tables = [], []
        for slide in range(batch.num_slides):
            rows = (slides == slide) & (batch.patch_labels != NO_LABEL)
            losses.append(self._loss(logits[rows], batch.patch_labels[rows]))
            tables.append(self._agreement(logits[rows], batch.patch_labels[rows]))
        return StepOutput(torch.stack(losses), {"agreement": torch.stack(tables)})

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of one slide; without labelled patches nothing in training, and NaN else."""
        counts = (len(labels),)
        if not len(labels):
            return logits.sum() * 0 if self.training else logits.new_tensor(torch.nan)
        if self.is_binary:
            targets = labels.to(logits.dtype)
            weights = {"positive_weight": self.positive_weight, "dice_weight": self.dice_weight}
            return binary_segmentation_loss(logits[:, 0], targets, counts, **weights)[0]
        factors = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        return multi_class_segmentation_loss(
            logits, labels, counts, class_weights=factors, dice_weight=self.dice_weight
        )[0]

    def _agreement(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Numbers of patches of one slide.

        Returns:
            For two classes int64 `[thresholds, 3]`: hits, false alarms, misses of the second class at each decision
            threshold; else the confusion matrix `[true class, predicted class]`.
        """
        if not self.is_binary:
            size = self.task.num_classes
            cells = labels * size + logits.argmax(dim=1)
            return torch.bincount(cells, minlength=size**2).view(size, size)
        above = (logits.sigmoid() * (NUM_THRESHOLDS + 1)).floor().long().clamp(max=NUM_THRESHOLDS)  # thresholds reached
        by_label = [
            torch.bincount(above[labels == label, 0], minlength=NUM_THRESHOLDS + 1).flip(0).cumsum(0).flip(0)[1:]
            for label in (0, 1)
        ]  # patches at or above each threshold
        false_alarms, hits = by_label
        return torch.stack([hits, false_alarms, (labels == 1).sum() - hits], dim=1)

    def on_validation_epoch_end(self) -> None:
        """Chooses the decision threshold and logs the figures."""
        outcomes = self.outcomes.gather()
        if self.is_binary:
            scores = dice(*outcomes["agreement"].sum(dim=0).numpy().T)
            if not np.isnan(scores).all():
                self.decision_threshold.fill_((int(np.nanargmax(scores)) + 1) / (NUM_THRESHOLDS + 1))
        self._log_figures("val", outcomes)

    def figures(self, outcomes: Outcomes, case_ids: Sequence[str]) -> dict[str, float]:
        """Loss; Dice and IoU: `dice` the mean over slides, `pooled_dice` and `pooled_iou` over all patches.

        Of the second of two classes at the decision threshold; of more classes, means over those after the first one,
        the background. Slides without patches of a class, annotated or predicted, do not count for it.
        """
        agreement = self._counts(outcomes)  # (slides, classes, 3)
        losses = outcomes["loss"][~outcomes["loss"].isnan()]
        values = {"loss": losses.mean().item()} if len(losses) else {}
        pooled = agreement.sum(axis=0).T
        figures = {
            "dice": dice(*np.moveaxis(agreement, 2, 0)),
            "pooled_dice": dice(*pooled),
            "pooled_iou": intersection_over_union(*pooled),
        }
        return values | {name: float(np.nanmean(value)) for name, value in figures.items() if not np.isnan(value).all()}

    def _counts(self, outcomes: Outcomes) -> np.ndarray:
        """Hits, false alarms and misses of every slide and foreground class, `[slides, classes, 3]`."""
        agreement = outcomes["agreement"].numpy()
        if self.is_binary:
            position = round(self.decision_threshold.item() * (NUM_THRESHOLDS + 1)) - 1
            return agreement[:, position : position + 1]
        hits = np.diagonal(agreement, axis1=1, axis2=2)
        return np.stack([hits, agreement.sum(axis=1) - hits, agreement.sum(axis=2) - hits], axis=2)[:, 1:]

    def prediction_columns(self, outcomes: Outcomes) -> dict[str, list[Any]]:
        """`hits_, false_alarms_, misses_<class>` in patches, and `dice_<class>`, of every foreground class."""
        columns: dict[str, list[Any]] = {}
        for name, counts in zip(self.task.class_names[1:], self._counts(outcomes).swapaxes(0, 1), strict=True):
            hits, false_alarms, misses = counts.T
            columns |= {f"hits_{name}": hits.tolist(), f"false_alarms_{name}": false_alarms.tolist()}
            columns |= {f"misses_{name}": misses.tolist(), f"dice_{name}": dice(hits, false_alarms, misses).tolist()}
        return columns
