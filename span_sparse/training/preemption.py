"""How does a training end when the cluster wants its node back, and go on later as if nothing had happened?

1. SIGUSR1 or SIGTERM only leaves a note (`span_sparse.signals`), possibly in some of the processes only.
2. After a step of the optimiser all processes ask each other whether anybody has a note. In the middle of accumulated
   gradients, and where a validation comes next, they wait for the next step.
3. They write one checkpoint, `resume.ckpt` in the run folder: what Lightning keeps, the position in the epoch
   (`TrainingLoader`), every process's random generators and sums of the epoch. Then all leave with `Interrupted`.
4. A run folder with a `resume.ckpt` is a run that was interrupted: training into it goes on there. The file goes when
   the run is complete.

When the training is done the checkpoint is written too: a job stopped during the test that follows need not train
again. Lightning's own requeueing saves inside the signal handler instead, where processes of different speed are in
different steps: they wait for each other for ever, or save different steps, and the position in the epoch is lost.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, Final

import lightning
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.trainer.states import TrainerFn

from span_sparse import signals
from span_sparse.training.checkpoint_io import AtomicCheckpointIO
from span_sparse.training.epoch_sums import EpochSums, add_epoch_sums, epoch_sums
from span_sparse.training.random_state import gathered, random_state, restore_random_state

RESUME_FILE: Final = "resume.ckpt"

_STATES: Final = "random_states"
_SUMS: Final = "epoch_sums"
_STOPPED_EARLY: Final = "stopped_early"


class Interrupted(SystemExit):
    """The training stopped because it was asked to; `resume.ckpt` says how to go on.

    Uncaught, it ends the first process with the shell's code for the signal, 138 or 143, and the others with 0: a
    launcher that sees one of them fail kills the first.

    Attributes:
        checkpoint: where the training goes on.
        is_first_process: the one that speaks.
    """

    def __init__(self, number: int, checkpoint: Path, *, is_first_process: bool) -> None:
        super().__init__(128 + number if is_first_process else 0)
        self.checkpoint, self.is_first_process = checkpoint, is_first_process
        self.signal = signal.Signals(number).name


def resume_path(run_dir: Path) -> Path:
    """Where a training into this run folder would go on, if it was interrupted."""
    return run_dir / RESUME_FILE


def make_preemptible(trainer: lightning.Trainer) -> None:
    """Lets a trainer stop for the signals that `signals.noted()` notes, and write checkpoints whole or not at all.

    Must be called before `fit`; the callback has to be the last one, so that its checkpoint holds what others did.
    """
    trainer.callbacks.append(Preemption())  # pyright: ignore[reportAttributeAccessIssue]
    trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    connector: Any = trainer._signal_connector
    connector.register_signal_handlers = lambda: None
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False


class Preemption(lightning.Callback):
    """Writes `resume.ckpt` and raises `Interrupted` when any process was asked to stop; see `make_preemptible`."""

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] = []
        self._restored_sums: list[EpochSums] = []
        self._sums: list[EpochSums] = []
        self._leaving_for = 0

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the random generators of all processes, and whether early stopping has ended the training."""
        checkpoint[_STATES] = gathered(random_state(trainer.strategy.root_device))
        checkpoint[_SUMS] = self._sums
        checkpoint[_STOPPED_EARLY] = trainer.should_stop

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps the random generators until the training starts: building it draws numbers."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._restored, self._restored_sums = checkpoint.get(_STATES, []), checkpoint.get(_SUMS, [])
            trainer.should_stop = checkpoint.get(_STOPPED_EARLY, False)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Sets the random generators; with another number of processes there is none for each."""
        if len(self._restored) == trainer.world_size:
            restore_random_state(self._restored[trainer.global_rank], trainer.strategy.root_device)
        self._restored = []

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Saves after a step of the optimiser when any process was asked to stop."""
        if self._restored_sums:
            add_epoch_sums(trainer, self._restored_sums[trainer.global_rank])
            self._restored_sums = []
        if not _between_steps(trainer):
            return
        if trainer.strategy.reduce_boolean_decision(bool(signals.requested()), all=False):
            self._leaving_for = max(gathered(signals.requested()))
            self._sums = gathered(epoch_sums(trainer))
            self._save(trainer)
            self._sums = []

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Leaves, now that the step before is in the logs as well."""
        self._leave(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Saves the end of the training; leaves when any process was asked to stop."""
        if getattr(trainer, "fast_dev_run", False):
            return
        self._leaving_for = max(gathered(signals.requested()))
        self._save(trainer)
        self._leave(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(resume_path(Path(trainer.default_root_dir)))

    def _leave(self, trainer: lightning.Trainer) -> None:
        if self._leaving_for:
            path = resume_path(Path(trainer.default_root_dir))
            raise Interrupted(self._leaving_for, path, is_first_process=trainer.is_global_zero)


def _between_steps(trainer: lightning.Trainer) -> bool:
    """Whether the optimiser has just made a step and the next batch is trained on; the same in every process."""
    fit_loop = trainer.fit_loop
    epoch_loop, fetcher = fit_loop.epoch_loop, fit_loop._data_fetcher
    if fit_loop._should_accumulate() or epoch_loop._num_ready_batches_reached():
        return False
    return fetcher is not None and not epoch_loop._should_check_val_fx(fetcher)
