"""How does a YAML file become a run? `lightning fit --config experiments/span.yaml`, or `span fit`.

LightningCLI does the parsing and the training. Ours besides: metrics of several processes are computed on unpadded
shares (Lightning's own distributed sampler is off), the resolved configuration lies in the run's folder, and after
`fit` the best checkpoint is tested once on the test split, with intervals, and what was written is printed.
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback

from span_sparse.training import SlideClassifier
from span_sparse.training.prediction import prediction_frame

SUBCOMMANDS = ("fit", "validate", "test")


class SaveResolvedConfig(SaveConfigCallback):
    """Writes the resolved configuration into the run's folder, beside checkpoints and metrics."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def save_config(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Writes `config.yaml`; called on the first process only."""
        run_dir = Path(trainer.default_root_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, str(run_dir / "config.yaml"), skip_none=False, overwrite=True, multifile=False)


class SpanCLI(LightningCLI):
    """LightningCLI with a test after `fit`."""

    def _parse_ckpt_path(self) -> None:
        """Resuming keeps the settings of YAML and command line; Lightning's way lets the checkpoint override them."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The verbs that train and test."""
        return {verb: arguments for verb, arguments in LightningCLI.subcommands().items() if verb in SUBCOMMANDS}

    def before_fit(self) -> None:
        """Says what is about to happen on which device."""
        devices = (
            f"{self.trainer.num_devices} × {self.trainer.accelerator.__class__.__name__.removesuffix('Accelerator')}"
        )
        self._print(f"training on {devices}; run folder {self.trainer.default_root_dir}")

    def after_fit(self) -> None:
        """Tests the best checkpoint on the test split, if there is one."""
        if (
            self.trainer.interrupted
            or getattr(self.trainer, "fast_dev_run", False)
            or not isinstance(self.model, SlideClassifier)
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
        if not trainer.is_global_zero or not isinstance(model, SlideClassifier) or model.test_outcomes is None:
            return
        from span_sparse.evaluation import parse_predictions, write_evaluation

        assert model.task is not None
        items = data.items("test")
        frame = prediction_frame(
            model.test_outcomes, items, model.task.class_names, split=["test"] * len(items), fold=data.split_column
        )
        run_dir = Path(trainer.default_root_dir)
        table = parse_predictions(frame, source=str(run_dir / "predictions.csv"))
        files = write_evaluation(run_dir, table)
        self._report(files.metrics.get("test", {}), run_dir)

    def _report(self, metrics: dict[str, Any], run_dir: Path) -> None:
        checkpoints = self.trainer.checkpoint_callback
        lines = []
        if metrics.get("auc") is not None:
            interval = metrics.get("auc_ci")
            between = f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
            lines.append(
                f"test AUC {metrics['auc']:.3f}{between}, "
                f"{metrics['num_slides']} slides of {metrics['num_cases']} cases"
            )
        best = getattr(checkpoints, "best_model_path", "")
        if best:
            lines.append(f"best checkpoint  {best}")
        lines += [f"{label:<17}{run_dir / name}" for label, name in _RUN_FILES.items() if (run_dir / name).exists()]
        self._print("\n".join(lines))

    def _print(self, text: str) -> None:
        if self.trainer.is_global_zero:
            print(text, flush=True)


_RUN_FILES = {
    "metrics": "metrics.json",
    "predictions": "predictions.csv",
    "figures": "roc.png",
    "configuration": "config.yaml",
}


def _quieten() -> None:
    """Silences two lines of lightning 2.6 that a user can do nothing about.

    A deprecation inside Lightning's own use of torch's pytree (torch 2.13), and an advice to install litlogger, which
    would bring lightning-sdk, whose script takes the name `lightning` away from this package.
    """
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()
    )


def main(args: list[str]) -> int:
    """Runs LightningCLI on `args`, for example `["fit", "--config", "experiments/span.yaml"]`; returns 0.

    Raises:
        SpanError: bad input.
    """
    _quieten()
    SpanCLI(
        lightning.LightningModule,
        lightning.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=SaveResolvedConfig,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        trainer_defaults={"use_distributed_sampler": False},
        parser_kwargs={
            "prog": "lightning",
            "description": "Train and test SPAN on a feature store.",
            **{
                verb: {"usage": f"lightning {verb} --config FILE.yaml [--SECTION.KEY VALUE ...]"}
                for verb in SUBCOMMANDS
            },
        },
        args=None if args == sys.argv[1:] else args,
    )
    return 0
