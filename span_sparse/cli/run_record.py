"""What was run, how did it go, and is it finished?

Three files of the run folder, written by the first process:

`environment.json`  when training starts: machine and versions (`provenance.py`)
`run.json`          when training starts and whenever `status` changes: `running`, then `finished`, `failed` or
                    `interrupted`; a run that was killed stays `running`. Command, seed, data, code, how the weights
                    were chosen
`history.csv`       one row per epoch: every figure that was logged, learning rate, seconds

A resumed run keeps the epochs before the checkpoint and the time at which it began.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from span_sparse.cli.provenance import command_line, data_identity, environment, git_revision
from span_sparse.cli.run_files import (
    ENVIRONMENT_FILE,
    HISTORY_FILE,
    METRICS_FILE,
    RUN_FILE,
    read_history,
    read_json,
)
from span_sparse.cli.run_folder import SaveResolvedConfig
from span_sparse.datasets.datamodule import SlideDataModule
from span_sparse.errors import ConfigError
from span_sparse.files import write_atomically


def default_loggers(run_dir: Path) -> list[Logger]:
    """CSV, and TensorBoard where it is installed."""
    loggers: list[Logger] = [CSVLogger(save_dir=run_dir, name="logs")]
    if find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(save_dir=run_dir, name="tensorboard"))
    return loggers


class RunRecorder(SaveResolvedConfig):
    """Keeps the three files; one for each run, made by LightningCLI.

    Attributes:
        selection: how the weights were chosen, known to the first process when training has ended: `selected_by`,
            `best_epoch`, `epochs`, `early_stopping`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.selection: dict[str, Any] = {}
        self._record: dict[str, Any] = {}
        self._history: list[dict[str, str]] = []
        self._epoch_began_s = 0.0
        self._learning_rate = 0.0
        self._validated = False

    @property
    def split_hash(self) -> str | None:
        """Name of the split; None outside of a training."""
        return (self._record.get("data") or {}).get("split_hash")

    @staticmethod
    def of(trainer: lightning.Trainer) -> RunRecorder | None:
        """The recorder of a trainer; None in a trial run (`fast_dev_run`), which leaves nothing behind."""
        callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
        return next((one for one in callbacks if isinstance(one, RunRecorder)), None)

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Refuses a choice of weights by anything but validation."""
        for callback in _choosers(trainer):
            if str(callback.monitor).startswith(("train_", "test_")):
                raise ConfigError(
                    f"{type(callback).__name__} monitors {callback.monitor!r}; weights are chosen on the validation "
                    "side alone, monitor a figure that starts with val_, for example val_loss"
                )

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Data, network and checkpoint are accepted: writes the run's first files, removes an earlier run's results."""
        if not trainer.is_global_zero:
            return
        run_dir = Path(trainer.default_root_dir)
        (run_dir / METRICS_FILE).unlink(missing_ok=True)  # its presence says that a run is complete
        self.save_config(trainer, pl_module, "fit")
        resumed = trainer.ckpt_path is not None
        earlier = read_json(run_dir / RUN_FILE) if resumed else {}
        self._history = read_history(run_dir / HISTORY_FILE) if resumed else []
        if not resumed:
            (run_dir / HISTORY_FILE).unlink(missing_ok=True)
        data = getattr(trainer, "datamodule", None)
        now = _now()
        self._record = {
            "status": "running",
            "started": earlier.get("started", now),
            "resumed": [*earlier.get("resumed", []), *([now] if resumed else [])],
            "ended": None,
            "command": command_line(),
            "seed": self.config.get("seed_everything"),
            "model": type(pl_module).__name__,
            "network": type(getattr(pl_module, "settings", None)).__name__.removesuffix("Config"),
            "task": getattr(getattr(pl_module, "task", None), "kind", None),
            "data": data_identity(data) if isinstance(data, SlideDataModule) else None,
            "git": git_revision(Path.cwd()),
        }
        _write_json(run_dir / ENVIRONMENT_FILE, environment(trainer))
        self._write(run_dir)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """A run that goes on in the middle of an epoch does not start it."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Looks at clock and learning rate."""
        self._epoch_began_s, self._validated = time.monotonic(), False
        self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Notes that the validation figures at hand are of this epoch."""
        self._validated = True

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Adds a row to `history.csv`."""
        figures = trainer.callback_metrics  # in every process: this may gather
        if not trainer.is_global_zero:
            return
        epoch = trainer.current_epoch
        row = {"epoch": str(epoch)}
        for name, value in figures.items():
            if self._validated or not name.startswith("val_"):
                row[name] = f"{float(value):.6g}"
        row["learning_rate"] = f"{self._learning_rate:.6g}"
        row["seconds"] = f"{time.monotonic() - self._epoch_began_s:.3f}"
        self._history = [*(one for one in self._history if int(one["epoch"]) < epoch), row]
        _write_history(Path(trainer.default_root_dir) / HISTORY_FILE, self._history)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Says how the weights were chosen."""
        if trainer.is_global_zero:
            self.selection = selection(trainer)
            self._record["selection"] = self.selection
            self._write(Path(trainer.default_root_dir))

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Says that the run failed or was interrupted."""
        asked_to = isinstance(exception, KeyboardInterrupt | SystemExit)
        first_line = next(iter(str(exception).splitlines()), "")
        error = None if asked_to else f"{type(exception).__name__}: {first_line[:500]}"
        self._end(trainer, "interrupted" if asked_to else "failed", error)

    def finish(self, trainer: lightning.Trainer) -> None:
        """Says that the run is finished, its test included."""
        self._end(trainer, "finished", None)

    def _end(self, trainer: lightning.Trainer, status: str, error: str | None) -> None:
        if self._record and trainer.is_global_zero:
            self._record |= {"status": status, "ended": _now(), "error": error}
            self._write(Path(trainer.default_root_dir))

    def _write(self, run_dir: Path) -> None:
        _write_json(run_dir / RUN_FILE, self._record)


def selection(trainer: lightning.Trainer) -> dict[str, Any]:
    """Which epoch's weights were kept by which rule, after `fit`."""
    epochs = trainer.current_epoch
    stopped = next((one for one in _choosers(trainer) if isinstance(one, EarlyStopping) and one.stopped_epoch), None)
    saved = trainer.checkpoint_callback
    rule, best_epoch = None, None
    if isinstance(saved, ModelCheckpoint) and saved.best_model_path:
        extreme = "lowest" if saved.mode == "min" else "highest"
        rule = f"{extreme} {saved.monitor} of {epochs} epochs" if saved.monitor else f"last of {epochs} epochs"
        content = torch.load(saved.best_model_path, map_location="cpu", weights_only=True, mmap=True)
        best_epoch = int(content["epoch"])
    if rule is not None and stopped is not None:
        rule += f", stopped early: {stopped.monitor} did not improve for {stopped.patience} epochs"
    return {
        "selected_by": rule,
        "best_epoch": best_epoch,
        "epochs": epochs,
        "early_stopping": None
        if stopped is None
        else {"monitor": stopped.monitor, "patience": stopped.patience, "stopped_epoch": stopped.stopped_epoch},
    }


def _choosers(trainer: lightning.Trainer) -> list[Any]:
    callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    return [one for one in callbacks if isinstance(one, ModelCheckpoint | EarlyStopping)]


def _write_history(path: Path, rows: list[dict[str, str]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
