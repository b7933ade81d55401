"""How is a model of any task trained? One step for training, validation, test and prediction.

What the model is for (task, encoder, lattice) comes from the data module when a run starts and from the checkpoint
afterwards, so a checkpoint alone restores the model and says which features it accepts. A task adds to this base: how
many outputs the network has, the loss and one row of outcomes a slide (`_batch_step`), the figures of a whole split
(`figures`), and the columns of its prediction table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import lightning
import torch
from jaxtyping import Float
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from span_sparse.datasets import SlideBatch, Task
from span_sparse.datasets.slide_dataset import SlideItem
from span_sparse.errors import CheckpointError, ConfigError, TrainingError
from span_sparse.models import build_network, network_as_dict, network_from_dict
from span_sparse.nn import DecoderStage, EncoderStage
from span_sparse.nn import execution as nn_execution
from span_sparse.training.optimisation import parameter_groups, warm_up_cosine
from span_sparse.training.outcomes import OutcomeCollector, Outcomes


class StepOutput(NamedTuple):
    """What every step computes.

    Attributes:
        losses: of every slide, NaN where nothing is known of it.
        columns: one row a slide of everything that figures and prediction table need.
    """

    losses: Float[Tensor, " slides"]
    columns: dict[str, Tensor]


class TaskModule(lightning.LightningModule):
    """Base of the modules of all tasks.

    Args:
        network: settings of the network; None for the task's default.
        learning_rate: peak learning rate of AdamW.
        weight_decay: on weight matrices only.
        warm_up_epochs: epochs of linear warm-up before the cosine.
        checkpoint_activations: compute the layers again in the backward pass instead of keeping what they computed:
            about a third more time for a fraction of the memory; for slides that do not fit otherwise.
        execution: overrides how the network is computed on its device (`span_sparse.nn.Execution`: implementation of
            the attention, sizes of chunks); no part of the checkpoint, since it changes results by rounding at most.
        task: what the model is for, as plain values; filled in from the data module and kept in the checkpoint.
        own: settings of the subclass, plain values.

    Raises:
        ConfigError: settings that cannot work.
    """

    task_type: ClassVar[type[Task]] = Task
    network_types: ClassVar[tuple[type[Any], ...]] = ()
    """Networks this task can be solved with; the first one's defaults are the task's."""

    taken_from_data: ClassVar[tuple[str, ...]] = ()
    """Settings of the subclass that `prepare` fills in and outputs depend on: a resumed run must find the same."""

    network: nn.Module

    def __init__(
        self,
        network: Any = None,
        *,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-4,
        warm_up_epochs: int = 0,
        checkpoint_activations: bool = False,
        execution: dict[str, Any] | None = None,
        task: dict[str, Any] | None = None,
        own: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(network, dict):  # from a checkpoint
            network = network_from_dict(network)
            if not isinstance(network, self.network_types):
                raise CheckpointError(
                    f"the checkpoint holds a {type(network).__name__}, with which {type(self).__name__} cannot work"
                )
        if learning_rate <= 0 or weight_decay < 0 or warm_up_epochs < 0:
            raise ConfigError(
                f"learning_rate {learning_rate} must be positive, weight_decay {weight_decay} and "
                f"warm_up_epochs {warm_up_epochs} not negative"
            )
        self.settings = self.network_types[0]() if network is None else network
        self.learning_rate, self.weight_decay, self.warm_up_epochs = learning_rate, weight_decay, warm_up_epochs
        self.checkpoint_activations = checkpoint_activations
        self.execution = execution or {}
        with nn_execution(**self.execution):  # refuses unknown settings now
            pass
        self.own = own or {}
        self._task: Task | None = None
        self.outcomes = OutcomeCollector()
        self.test_outcomes: Outcomes | None = None
        if task is None:
            self._remember()
        else:
            self._build(self.task_type.from_dict(task))

    # what a task adds

    def num_outputs(self) -> int:
        """Outputs of the network, by slide or by patch."""
        raise NotImplementedError

    def prepare(self, items: Sequence[SlideItem]) -> None:
        """Takes from the training slides what the loss needs (bins, scale); refuses settings that do not fit the task.

        Args:
            items: the training slides; empty when a checkpoint is opened without data.

        Raises:
            ConfigError: names setting and task.
        """

    def _batch_step(self, batch: SlideBatch) -> StepOutput:
        """Losses and outcomes of a batch."""
        raise NotImplementedError

    def figures(self, outcomes: Outcomes, case_ids: Sequence[str]) -> dict[str, float]:
        """Figures of a whole split by name, `loss` among them; without those that cannot be computed.

        Args:
            outcomes: the rows of the split.
            case_ids: the case of each row.
        """
        raise NotImplementedError

    def prediction_columns(self, outcomes: Outcomes) -> dict[str, list[Any]]:
        """The task's columns of the prediction table, one value a row."""
        raise NotImplementedError

    # what all tasks share

    @property
    def task(self) -> Any:
        """What the model is for; None until it is known."""
        return self._task

    def _remember(self) -> None:
        """Hyper-parameters as plain values: what `load_from_checkpoint` calls the constructor with."""
        self.save_hyperparameters(
            {
                "network": network_as_dict(self.settings),
                "learning_rate": self.learning_rate,
                "weight_decay": self.weight_decay,
                "warm_up_epochs": self.warm_up_epochs,
                "checkpoint_activations": self.checkpoint_activations,
                "task": None if self._task is None else self._task.as_dict(),
                **self.own,
            }
        )

    def _build(self, task: Task, items: Sequence[SlideItem] = ()) -> None:
        self._task = task
        self.prepare(items)
        self.network = build_network(self.settings, num_features=task.num_features, num_classes=self.num_outputs())
        for module in self.network.modules():
            if isinstance(module, EncoderStage | DecoderStage):
                module.recompute = self.checkpoint_activations
        self._remember()

    def setup(self, stage: str) -> None:
        """Builds the network for the data module's task, or checks that it fits the checkpoint's."""
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            return
        if not isinstance(data.task, self.task_type):
            raise ConfigError(
                f"{type(self).__name__} is for a {self.task_type.__name__}, the data are set up for a "
                f"{type(data.task).__name__}; change `model.class_path` or `data.init_args.task`"
            )
        if self._task is None:
            self._build(data.task, data.items("train"))
            return
        ours, theirs = self._purpose(self._task), self._purpose(data.task)
        if ours != theirs:
            raise ConfigError(
                f"{data.cohort_path}: the data's task {theirs} does not match the checkpoint's {ours}; use the cohort "
                "and the settings the model was trained for"
            )
        self._task.check_features(data.task.encoder, data.task.lattice, str(data.store_path))
        if stage == "fit":
            self.prepare(data.items("train"))

    @staticmethod
    def _purpose(task: Task) -> dict[str, Any]:
        """The task without the names of columns, which may differ between two tables."""
        values = {name: value for name, value in task.as_dict().items() if "column" not in name}
        return {name: value for name, value in values.items() if name not in ("encoder", "lattice")}

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
        if self._task is not None:
            task = self.task_type.from_dict(saved["task"])
            theirs = self._purpose(task)
            pairs += [
                (name.replace("_", " "), value, theirs[name]) for name, value in self._purpose(self._task).items()
            ]
            pairs.append(("encoder", self._task.encoder, task.encoder))
            pairs.append(("lattice", self._task.lattice, task.lattice))
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            pairs += [(key, getattr(self, key), saved.get(key)) for key in ("learning_rate", "weight_decay")]
            pairs += [(key, self.own[key], saved.get(key)) for key in self.taken_from_data]
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

    def forward(self, batch: SlideBatch) -> Float[Tensor, "rows outputs"]:
        """Outputs of every slide of a batch, or of every patch in a segmentation."""
        with nn_execution(**self.execution):
            return self.network(batch.features, self.place(batch), batch.num_slides)

    def place(self, batch: SlideBatch) -> Any:
        """Where the patches of a batch lie, in the form that costs the network least.

        A network with a `prepare` takes the geometry that was made of a validated batch, or its valid coordinates; the
        others take coordinates.
        """
        return batch.place if hasattr(self.network, "prepare") else batch.coords

    def training_step(self, batch: SlideBatch, batch_index: int) -> Float[Tensor, ""]:
        """Sum of the losses over the slides a step has as a rule.

        A mean would give the few slides of an epoch's last batch, or of a batch full of large slides, more weight than
        others, and more so when gradients of several batches are accumulated.
        """
        losses = self._batch_step(batch).losses
        usual = getattr(getattr(self.trainer, "datamodule", None), "slides_per_step", len(losses))
        self.log(
            "train_loss",
            losses.mean(),
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            batch_size=batch.num_slides,
            sync_dist=True,
        )
        return losses.sum() / usual

    def on_train_epoch_end(self) -> None:
        """Ends a training that diverged: its checkpoints would be of no use."""
        if not torch.isfinite(self.trainer.callback_metrics.get("train_loss", torch.zeros(()))):
            raise TrainingError(
                f"the training loss is not finite in epoch {self.current_epoch}: training diverged; lower the learning "
                "rate, add warm-up epochs or gradient_clip_val"
            )

    def validation_step(self, batch: SlideBatch, batch_index: int) -> None:
        """Collects the outcome of each slide."""
        self.outcomes.add(self.predict_step(batch))

    def test_step(self, batch: SlideBatch, batch_index: int) -> None:
        """Collects the outcome of each slide."""
        self.outcomes.add(self.predict_step(batch))

    def predict_step(self, batch: SlideBatch, batch_index: int = 0) -> Outcomes:
        """The outcome of each slide."""
        step = self._batch_step(batch)
        return Outcomes(batch.indices, {**step.columns, "loss": step.losses})

    def on_validation_epoch_end(self) -> None:
        """Logs figures of the whole validation split, each slide counted once."""
        self._log_figures("val", self.outcomes.gather())

    def on_test_epoch_end(self) -> None:
        """Logs figures of the whole test split and keeps the outcomes for the prediction table."""
        self.test_outcomes = self.outcomes.gather()
        self._log_figures("test", self.test_outcomes)

    def _log_figures(self, split: str, outcomes: Outcomes) -> None:
        items = self.trainer.datamodule.items(split)  # pyright: ignore[reportAttributeAccessIssue]
        values = self.figures(outcomes, [items[index].case_id for index in outcomes.indices.tolist()])
        # the values are the same in every process already; `sync_dist` only tells Lightning so
        for name, value in values.items():
            self.log(f"{split}_{name}", value, prog_bar=not name.endswith("accuracy"), batch_size=1, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and a cosine over epochs."""
        optimizer = torch.optim.AdamW(parameter_groups(self.network, self.weight_decay), lr=self.learning_rate)
        epochs = self.trainer.max_epochs or 1
        scheduler = warm_up_cosine(optimizer, warm_up_epochs=self.warm_up_epochs, max_epochs=epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}
