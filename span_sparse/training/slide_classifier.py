"""How is a slide classifier trained? One step for training, validation, test and prediction.

What the classifier is for (classes, encoder, lattice) comes from the data module when a run starts and from the
checkpoint afterwards, so a checkpoint alone restores the model and says which features it accepts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import lightning
import torch
from jaxtyping import Float
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from span_sparse.datasets import ClassificationTask, SlideBatch
from span_sparse.errors import CheckpointError, ConfigError
from span_sparse.losses import cross_entropy
from span_sparse.models import (
    NetworkConfig,
    SpanMilConfig,
    SpanUnetConfig,
    build_network,
    network_as_dict,
    network_from_dict,
)
from span_sparse.training.optimisation import parameter_groups, warm_up_cosine
from span_sparse.training.outcomes import OutcomeCollector, Outcomes


class StepOutput(NamedTuple):
    """What every step computes.

    Attributes:
        logits: one row a slide.
        losses: cross-entropy of every slide, NaN where unlabelled.
    """

    logits: Float[Tensor, "slides classes"]
    losses: Float[Tensor, " slides"]


class SlideClassifier(lightning.LightningModule):
    """Classification of slides.

    Args:
        network: which network, with its settings.
        learning_rate: peak learning rate of AdamW.
        weight_decay: on weight matrices only.
        warm_up_epochs: epochs of linear warm-up before the cosine.
        class_weights: weights of the classes in the loss, in the order of the classes; a slide's loss is multiplied by
            the weight of its class, at any batch size.
        task: what the classifier is for, as plain values; filled in from the data module and kept in the checkpoint.

    Raises:
        ConfigError: settings that cannot work.
    """

    network: nn.Module

    def __init__(
        self,
        network: NetworkConfig | None = None,
        *,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-4,
        warm_up_epochs: int = 0,
        class_weights: list[float] | None = None,
        task: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(network, dict):  # from a checkpoint
            saved = network_from_dict(network)
            if isinstance(saved, SpanUnetConfig):
                raise CheckpointError("the checkpoint holds a SPAN-UNet, which labels patches, not slides")
            network = saved
        self.settings: NetworkConfig = SpanMilConfig() if network is None else network
        if learning_rate <= 0 or weight_decay < 0 or warm_up_epochs < 0:
            raise ConfigError(
                f"learning_rate {learning_rate} must be positive, weight_decay {weight_decay} and "
                f"warm_up_epochs {warm_up_epochs} not negative"
            )
        self.learning_rate, self.weight_decay, self.warm_up_epochs = learning_rate, weight_decay, warm_up_epochs
        self.class_weights = class_weights
        self.task: ClassificationTask | None = None
        self.outcomes = OutcomeCollector()
        self.test_outcomes: Outcomes | None = None
        if task is None:
            self._remember()
        else:
            self._build(ClassificationTask.from_dict(task))

    def _remember(self) -> None:
        """Hyper-parameters as plain values: what `load_from_checkpoint` calls the constructor with."""
        self.save_hyperparameters(
            {
                "network": network_as_dict(self.settings),
                "learning_rate": self.learning_rate,
                "weight_decay": self.weight_decay,
                "warm_up_epochs": self.warm_up_epochs,
                "class_weights": self.class_weights,
                "task": None if self.task is None else self.task.as_dict(),
            }
        )

    def _build(self, task: ClassificationTask) -> None:
        if self.class_weights is not None and len(self.class_weights) != task.num_classes:
            raise ConfigError(
                f"class_weights has {len(self.class_weights)} entries, the task {task.num_classes} classes: "
                f"{list(task.class_names)}"
            )
        self.task = task
        self.network = build_network(self.settings, num_features=task.num_features, num_classes=task.num_classes)
        self._remember()

    def setup(self, stage: str) -> None:
        """Builds the network for the data module's task, or checks that it fits the checkpoint's."""
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            return
        if self.task is None:
            self._build(data.task)
            return
        if self.task.class_names != data.task.class_names:
            raise ConfigError(
                f"{data.cohort_path}: classes {list(data.task.class_names)} do not match the checkpoint's "
                f"{list(self.task.class_names)}; set data.class_names or use the cohort the model was trained for"
            )
        self.task.check_features(data.task.encoder, data.task.lattice, str(data.store_path))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another network or task, and a resumed run whose optimiser is set otherwise.

        Lightning would restore the optimiser's own learning rate and decay over those of the YAML, and weights of
        another encoder of the same width without a word.

        Raises:
            CheckpointError: names every setting that differs.
        """
        saved: dict[str, Any] = checkpoint.get("hyper_parameters") or {}
        if not isinstance(saved.get("network"), dict) or not isinstance(saved.get("task"), dict):
            raise CheckpointError("the checkpoint does not say which network, classes and features it is for")
        pairs = [
            (f"network {key}", value, saved["network"].get(key))
            for key, value in network_as_dict(self.settings).items()
        ]
        if self.task is not None:
            task = ClassificationTask.from_dict(saved["task"])
            pairs.append(("class names", list(self.task.class_names), list(task.class_names)))
            pairs.append(("encoder", self.task.encoder, task.encoder))
            pairs.append(("lattice", self.task.lattice, task.lattice))
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            pairs += [(key, getattr(self, key), saved.get(key)) for key in ("learning_rate", "weight_decay")]
        differences = [f"{name}: {ours!r} != {theirs!r}" for name, ours, theirs in pairs if ours != theirs]
        if differences:
            raise CheckpointError(
                f"the settings differ from the checkpoint's (now != checkpoint): {'; '.join(differences)}. "
                "Its settings are in the config.yaml of its run folder; with others, start a new run"
            )

    def on_fit_start(self) -> None:
        """Says how large the network is."""
        total = sum(parameter.numel() for parameter in self.network.parameters())
        trained = sum(parameter.numel() for parameter in self.network.parameters() if parameter.requires_grad)
        frozen = "" if trained == total else f", {total - trained:,} of them frozen because the head cannot reach them"
        rank_zero_info(f"{type(self.network).__name__}: {total:,} parameters{frozen}")

    def forward(self, batch: SlideBatch) -> Float[Tensor, "slides classes"]:
        """Logits of every slide of a batch."""
        return self.network(batch.features, batch.coords, batch.num_slides)

    def _batch_step(self, batch: SlideBatch) -> StepOutput:
        logits = self(batch).float()
        weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        return StepOutput(logits, cross_entropy(logits, batch.labels, weights))

    def training_step(self, batch: SlideBatch, batch_index: int) -> Float[Tensor, ""]:
        """Mean loss of the batch."""
        loss = self._batch_step(batch).losses.mean()
        self.log(
            "train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=batch.num_slides, sync_dist=True
        )
        return loss

    def validation_step(self, batch: SlideBatch, batch_index: int) -> None:
        """Collects the outcome of each slide."""
        self.outcomes.add(self._outcomes(batch))

    def test_step(self, batch: SlideBatch, batch_index: int) -> None:
        """Collects the outcome of each slide."""
        self.outcomes.add(self._outcomes(batch))

    def predict_step(self, batch: SlideBatch, batch_index: int = 0) -> Outcomes:
        """The outcome of each slide."""
        return self._outcomes(batch)

    def _outcomes(self, batch: SlideBatch) -> Outcomes:
        step = self._batch_step(batch)
        return Outcomes(batch.indices, batch.labels, step.logits.softmax(dim=1), step.losses)

    def on_validation_epoch_end(self) -> None:
        """Logs figures of the whole validation split, each slide counted once."""
        self._log_metrics("val", self.outcomes.gather())

    def on_test_epoch_end(self) -> None:
        """Logs figures of the whole test split and keeps the outcomes for the prediction table."""
        self.test_outcomes = self.outcomes.gather()
        self._log_metrics("test", self.test_outcomes)

    def _log_metrics(self, split: str, outcomes: Outcomes) -> None:
        values = {f"{split}_{name}": value for name, value in outcomes.metrics().items()}
        # the values are the same in every process already; `sync_dist` only tells Lightning so
        for name, value in values.items():
            self.log(name, value, prog_bar=not name.endswith("accuracy"), batch_size=1, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and a cosine over epochs."""
        optimizer = torch.optim.AdamW(parameter_groups(self.network, self.weight_decay), lr=self.learning_rate)
        epochs = self.trainer.max_epochs or 1
        scheduler = warm_up_cosine(optimizer, warm_up_epochs=self.warm_up_epochs, max_epochs=epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}
