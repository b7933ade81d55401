"""How are several questions, or a number, learnt of a slide? Multi-label classification and regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torchmetrics.functional import mean_absolute_error, pearson_corrcoef, r2_score
from torchmetrics.functional.classification import binary_auroc

from span_sparse.datasets import MultiLabelTask, RegressionTask, SlideBatch
from span_sparse.datasets.slide_dataset import SlideItem
from span_sparse.errors import ConfigError
from span_sparse.losses import multi_label_bce
from span_sparse.models import AttentionPoolingConfig, MeanPoolingConfig, NetworkConfig, SpanMilConfig
from span_sparse.training.outcomes import Outcomes, by_case
from span_sparse.training.task_module import StepOutput, TaskModule

_NETWORKS = (SpanMilConfig, MeanPoolingConfig, AttentionPoolingConfig)


class MultiLabelClassifier(TaskModule):
    """Several independent yes-or-no questions per slide; unanswered ones are left out of loss and figures.

    Args:
        network: which network, with its settings.
        positive_weights: factor of the loss of each question's positive slides.
        settings: as in `TaskModule`.

    Raises:
        ConfigError: settings that cannot work.
    """

    task_type = MultiLabelTask
    network_types: ClassVar = _NETWORKS

    def __init__(
        self, network: NetworkConfig | None = None, *, positive_weights: list[float] | None = None, **settings: Any
    ) -> None:
        self.positive_weights = positive_weights
        super().__init__(network, own={"positive_weights": positive_weights}, **settings)

    def num_outputs(self) -> int:
        """One logit a question."""
        return len(self.task.columns)

    def prepare(self, items: Sequence[SlideItem]) -> None:
        """Checks the weights; see `TaskModule.prepare`."""
        if self.positive_weights is not None and len(self.positive_weights) != self.num_outputs():
            raise ConfigError(
                f"positive_weights has {len(self.positive_weights)} entries, the task {self.num_outputs()} columns: "
                f"{list(self.task.columns)}"
            )

    def _batch_step(self, batch: SlideBatch) -> StepOutput:
        logits = self(batch).float()
        assert batch.targets is not None
        weights = None if self.positive_weights is None else logits.new_tensor(self.positive_weights)
        losses = multi_label_bce(logits, batch.targets, weights)
        return StepOutput(losses, {"probabilities": logits.sigmoid(), "targets": batch.targets})

    def figures(self, outcomes: Outcomes, case_ids: Sequence[str]) -> dict[str, float]:
        """Loss, and the mean AUC over the questions that have both answers."""
        losses = outcomes["loss"][~outcomes["loss"].isnan()]
        values = {"loss": losses.mean().item()} if len(losses) else {}
        areas = []
        for scores, targets in zip(outcomes["probabilities"].T, outcomes["targets"].T, strict=True):
            known = ~targets.isnan()
            if len(targets[known].unique()) == 2:
                areas.append(binary_auroc(scores[known], targets[known].long()))
        return values | ({"auc": torch.stack(areas).mean().item()} if areas else {})

    def prediction_columns(self, outcomes: Outcomes) -> dict[str, list[Any]]:
        """`true_<column>` (empty where unknown) and `prob_<column>` of every question."""
        columns: dict[str, list[Any]] = {}
        for position, name in enumerate(self.task.columns):
            targets = outcomes["targets"][:, position].tolist()
            columns[f"true_{name}"] = [None if target != target else int(target) for target in targets]
        for position, name in enumerate(self.task.columns):
            columns[f"prob_{name}"] = outcomes["probabilities"][:, position].double().tolist()
        return columns


class SlideRegressor(TaskModule):
    """A number per slide. The network predicts it standardised by mean and spread of the training cases.

    Args:
        network: which network, with its settings.
        huber_delta: standard deviations beyond which the loss grows linearly; 0 for the squared error.
        scale: mean and standard deviation; taken from the training cases and kept in the checkpoint.
        settings: as in `TaskModule`.

    Raises:
        ConfigError: settings that cannot work.
    """

    task_type = RegressionTask
    network_types: ClassVar = _NETWORKS
    taken_from_data = ("scale",)

    def __init__(
        self,
        network: NetworkConfig | None = None,
        *,
        huber_delta: float = 1.0,
        scale: list[float] | None = None,
        **settings: Any,
    ) -> None:
        if huber_delta < 0:
            raise ConfigError(f"huber_delta {huber_delta} must not be negative; 0 is the squared error")
        self.huber_delta = huber_delta
        super().__init__(network, own={"huber_delta": huber_delta, "scale": scale}, **settings)

    def num_outputs(self) -> int:
        """One."""
        return 1

    def prepare(self, items: Sequence[SlideItem]) -> None:
        """Mean and spread of the training cases; see `TaskModule.prepare`."""
        if items and self.own["scale"] is None:
            targets = torch.tensor([item.targets[0] for item in items], dtype=torch.float64)
            values = by_case(targets, [item.case_id for item in items])
            self.own["scale"] = [values.mean().item(), values.std(correction=0).item()]

    def _batch_step(self, batch: SlideBatch) -> StepOutput:
        mean, spread = self.own["scale"] or (0.0, 1.0)
        outputs = self(batch).float().squeeze(1)
        assert batch.targets is not None
        targets = batch.targets[:, 0]
        errors = outputs - (targets - mean) / spread
        if self.huber_delta:
            losses = F.huber_loss(errors, torch.zeros_like(errors), reduction="none", delta=self.huber_delta)
        else:
            losses = errors.square()
        return StepOutput(losses, {"predictions": outputs * spread + mean, "targets": targets})

    def figures(self, outcomes: Outcomes, case_ids: Sequence[str]) -> dict[str, float]:
        """Loss by slide; mean absolute error, R² and Pearson's r by case (means over a case's slides)."""
        known = ~outcomes["targets"].isnan()
        if not known.any():
            return {}
        cases = [case_id for case_id, is_known in zip(case_ids, known.tolist(), strict=True) if is_known]
        predictions, targets = (by_case(outcomes[name][known].double(), cases) for name in ("predictions", "targets"))
        values = {"loss": outcomes["loss"][known].mean().item()}
        values["mae"] = mean_absolute_error(predictions, targets).item()
        if len(targets.unique()) > 1:
            values["r2"] = r2_score(predictions, targets).item()
            if len(predictions.unique()) > 1:
                values["pearson"] = pearson_corrcoef(predictions, targets).item()
        return values

    def prediction_columns(self, outcomes: Outcomes) -> dict[str, list[Any]]:
        """`y_true` (empty where unknown) and `y_pred`."""
        targets = outcomes["targets"].double().tolist()
        return {
            "y_true": [None if target != target else target for target in targets],
            "y_pred": outcomes["predictions"].double().tolist(),
        }
