"""How does a YAML file become a run? `lightning fit --config experiments/span.yaml`, or `span fit`.

LightningCLI does the parsing and the training. Ours besides:

1. One run folder, `trainer.default_root_dir`: checkpoints, logs, the resolved configuration, predictions and metrics
   lie in it unless the YAML says otherwise. Fitting into the same folder again replaces the run that was there, or goes
   on with it if it was interrupted.
2. Metrics of several processes are computed on unpadded shares (Lightning's own distributed sampler is off).
3. After `fit` the best checkpoint is tested once on the test split, with intervals, and what was written is printed.
4. Checkpoints are read as data (`weights_only`), whoever wrote them.
5. A misspelt setting is one line.
6. SIGUSR1 and SIGTERM end the training with a checkpoint; under SLURM the job comes back and goes on.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, get_args

import lightning
from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from span_sparse.cli.option_errors import explain
from span_sparse.cli.requeue import requeue, slurm_job
from span_sparse.cli.run_files import HISTORY_FILE, read_history
from span_sparse.cli.run_folder import summary
from span_sparse.cli.run_record import RunRecorder, default_loggers
from span_sparse.cli.run_summary import overfitting
from span_sparse.datasets import AnyTask
from span_sparse.errors import ConfigError, SpanError
from span_sparse.float32 import off_by_default
from span_sparse.models import NetworkConfig, SpanUnetConfig, TorchmilConfig
from span_sparse.training import TaskModule
from span_sparse.training.checkpoint import checked_checkpoint
from span_sparse.training.prediction import prediction_frame
from span_sparse.training.preemption import Interrupted, make_preemptible, resume_path

SUBCOMMANDS = ("fit", "validate", "test")
DEFAULT_RUN_DIR = "runs/default"
_HELP = (
    "The YAML file has three blocks: `model` (network and optimisation), `data` (store, cohort table, split) and "
    "`trainer` (devices, epochs, run folder). `experiments/span.yaml` is a complete example. Every key can be given on "
    "the command line too, with dots: --trainer.max_epochs 30. The keys of a class are shown by "
    "--model.help span_sparse.training.SlideClassifier or --data.help span_sparse.datasets.datamodule.SlideDataModule."
)


class SpanParser(LightningArgumentParser):
    """LightningCLI's parser with short errors."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints what is wrong and where to read more; exits with 2."""
        if not self.exit_on_error:  # one of several alternatives that jsonargparse tries
            super().error(message, ex)
        parser: Any = getattr(ex, "subcommand_parser", None) or self
        known = [action.dest for action in parser._actions if action.dest != "help"]
        command = parser.prog.replace(" [options]", "")
        sys.stderr.write(f"error: {explain(message, known)}\n`{command} --help` shows all settings\n")
        self.exit(2)


class SpanCLI(LightningCLI):
    """LightningCLI with a run folder and a test after `fit`."""

    def _parse_ckpt_path(self) -> None:
        """Resuming keeps the settings of YAML and command line; Lightning's way lets the checkpoint override them."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The verbs that train and test, each with the arguments that are not settings."""
        known = LightningCLI.subcommands()
        return {verb: known[verb] | {"weights_only"} for verb in SUBCOMMANDS}

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "fit":
            arguments["ckpt_path"] = self._resumed_from()
        if arguments.get("ckpt_path") not in (None, "best", "last"):
            checked_checkpoint(Path(arguments["ckpt_path"]))
        return {**arguments, "weights_only": True}

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        """Puts checkpoints and logs into the run folder where the YAML does not say otherwise."""
        settings = self._get(self.config_init, "trainer")
        run_dir = Path(settings["default_root_dir"])
        for callback in _as_list(settings["callbacks"]):
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str((run_dir / "checkpoints").absolute())
        if settings["logger"] is None and self.subcommand == "fit":
            kwargs["logger"] = default_loggers(run_dir)
        elif settings["logger"] is None:
            kwargs["logger"] = False
        trainer = super().instantiate_trainer(**kwargs)
        make_preemptible(trainer)
        return trainer

    def _resumed_from(self) -> Any:
        """The checkpoint that was given, or else that of an interrupted run in the run folder, or None."""
        interrupted = resume_path(Path(self.trainer.default_root_dir))
        return self._get(self.config, "ckpt_path") or (str(interrupted) if interrupted.exists() else None)

    def _run_subcommand(self, subcommand: str) -> None:
        super()._run_subcommand(subcommand)
        if subcommand == "fit" and self.trainer.is_global_zero:
            resume_path(Path(self.trainer.default_root_dir)).unlink(missing_ok=True)
            if recorder := RunRecorder.of(self.trainer):
                recorder.finish(self.trainer)
            if note := overfitting(read_history(Path(self.trainer.default_root_dir) / HISTORY_FILE)):
                self._print(note)

    def before_fit(self) -> None:
        """Says what is about to happen on which device."""
        run_dir = Path(self.trainer.default_root_dir)
        devices = (
            f"{self.trainer.num_devices} × {self.trainer.accelerator.__class__.__name__.removesuffix('Accelerator')}"
        )
        resumed = self._resumed_from()
        earlier = (run_dir / "config.yaml").exists()
        what = f", continuing from {resumed}" if resumed else ", replacing the earlier run there" if earlier else ""
        self._print(f"training on {devices}; run folder {run_dir}{what}")

    def after_fit(self) -> None:
        """Tests the best checkpoint on the test split, if there is one."""
        if (
            self.trainer.interrupted
            or getattr(self.trainer, "fast_dev_run", False)
            or not isinstance(self.model, TaskModule)
        ):
            return
        if self.datamodule.items("test"):
            best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
            self.trainer.test(
                self.model, datamodule=self.datamodule, ckpt_path=best or None, verbose=False, weights_only=True
            )
            self.after_test()

    def after_test(self) -> None:
        """Writes predictions, metrics and pictures of the test split into the run's folder."""
        model, data, trainer = self.model, self.datamodule, self.trainer
        if not trainer.is_global_zero or not isinstance(model, TaskModule) or model.test_outcomes is None:
            return
        from span_sparse.evaluation import write_results

        items = data.items("test")
        frame = prediction_frame(model, model.test_outcomes, items, split=["test"] * len(items), fold=data.split_column)
        run_dir = Path(trainer.default_root_dir)
        files = write_results(run_dir, frame, model.task.kind, about={"run": self._about()})
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        self._print(summary(run_dir, files.metrics.get("test", {}), best))

    def _about(self) -> dict[str, Any]:
        """Which weights were tested and how they were chosen."""
        recorder = RunRecorder.of(self.trainer)
        return {
            "checkpoint": str(self.trainer.ckpt_path) if self.trainer.ckpt_path else None,
            "seed": self._get(self.config, "seed_everything"),
            "split_hash": recorder.split_hash if recorder else None,
            "selected_by": None,
            **(recorder.selection if recorder else {}),
        }

    def _print(self, text: str) -> None:
        if self.trainer.is_global_zero:
            print(text, flush=True)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _quieten(verb: str) -> None:
    """Silences lines of lightning 2.6 that a user can do nothing about, or that say something else than they seem to.

    A deprecation inside Lightning's own use of torch's pytree (torch 2.13); an advice to install litlogger, which would
    bring lightning-sdk, whose script takes the name `lightning` away from this package; that the folder of the
    checkpoints is not empty, which `before_fit` says better; and, when nothing is trained, that checkpoints would now
    be written to another folder than that of the checkpoint at hand. That `weights_only` was not set, which is about
    what a checkpoint being written holds, not about how one is loaded. Outside of a job, that there is an `srun`. That
    an epoch has fewer steps than lie between two rows of the step log; `history.csv` has every epoch.
    """
    warnings.filterwarnings(
        "ignore", "The number of training batches .* is smaller than the logging interval", UserWarning
    )
    if slurm_job(os.environ) is None:
        warnings.filterwarnings("ignore", "The `srun` command is available on your system but is not used", UserWarning)
    if verb != "fit":
        warnings.filterwarnings("ignore", "The dirpath has changed from", UserWarning)
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
    warnings.filterwarnings("ignore", r"Checkpoint directory .* exists and is not empty", UserWarning)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()
    )
    logging.getLogger("lightning.pytorch.trainer.connectors.checkpoint_connector").addFilter(
        lambda record: "`weights_only` was not set" not in record.getMessage()
    )


def main(args: list[str]) -> int:
    """Runs LightningCLI on `args`, for example `["fit", "--config", "experiments/span.yaml"]`; returns 0.

    Raises:
        SpanError: bad input.
        SystemExit: told to stop; 0 if the SLURM job comes back, otherwise 138 for SIGUSR1, 143 for SIGTERM
            and 130 for Ctrl-C.
    """
    off_by_default()  # before classes of the user are imported, which may turn it on
    enable_network_classes()
    with warnings.catch_warnings():
        _quieten(args[0])
        try:
            SpanCLI(
                lightning.LightningModule,
                lightning.LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=RunRecorder,
                seed_everything_default=0,
                auto_configure_optimizers=False,
                parser_class=SpanParser,
                trainer_defaults={"use_distributed_sampler": False, "default_root_dir": DEFAULT_RUN_DIR},
                parser_kwargs={
                    "prog": "lightning",
                    "description": "Train and test SPAN on a feature store.",
                    **{verb: dict(_verb_settings(verb)) for verb in SUBCOMMANDS},
                },
                args=None if args == sys.argv[1:] else args,
            )
        except Interrupted as interrupted:
            sys.exit(_leave(interrupted))
        except ValueError as error:  # jsonargparse's, around what a class of ours said of its settings
            if own := _own_error(error):
                raise own from None
            raise
        except MisconfigurationException as error:  # devices that are not there, a metric that nobody logs, ...
            raise ConfigError(" ".join(str(error).split())) from error
    return 0


def _own_error(error: BaseException | None) -> SpanError | None:
    """The error of this package that is the cause of another one, if there is one."""
    while error is not None and not isinstance(error, SpanError):
        error = error.__cause__ or error.__context__
    return error


def _leave(interrupted: Interrupted) -> int:
    """Has the job come back, or says how to go on; the exit code."""
    if not interrupted.is_first_process:
        return 0
    job = None if interrupted.signal == "SIGINT" else slurm_job(os.environ)  # Ctrl-C means: do not come back
    reason = "" if job is None else requeue(os.environ)
    stopped = f"stopped by {interrupted.signal} after writing {interrupted.checkpoint}"
    if job is not None and not reason:
        print(f"{stopped}; SLURM job {job} comes back and goes on there", file=sys.stderr)
        return 0
    alone = f"; SLURM job {job} does not come back: {reason}" if reason else ""
    print(
        f"{stopped}{alone}. The same command goes on there; without that file it starts anew",
        file=sys.stderr,
    )
    return int(interrupted.code or 0)


def enable_network_classes() -> None:
    """Lets a YAML name the class of a network.

    jsonargparse takes a data class for its fields and ignores `class_path`: of two networks or tasks with the same
    settings the first one of the union would be built, and config.yaml would not say which.
    """
    set_parsing_settings(
        subclasses_enabled=[*get_args(NetworkConfig), SpanUnetConfig, TorchmilConfig, *get_args(AnyTask)]
    )


def _verb_settings(verb: str) -> Iterator[tuple[str, str]]:
    yield "usage", f"lightning {verb} --config FILE.yaml [--SECTION.KEY VALUE ...]"
    yield "description", _HELP
