"""What does a run leave in its folder, and how is the user told?"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import lightning
from lightning.pytorch.cli import SaveConfigCallback

from span_sparse.cli.run_files import CONFIG_FILE, HEADLINES, METRICS_FILE

_SHOWN: Final = {
    "metrics": METRICS_FILE,
    "predictions": "predictions.csv",
    "figures": "roc.png",
    "configuration": CONFIG_FILE,
}


class SaveResolvedConfig(SaveConfigCallback):
    """Writes the resolved configuration into the run's folder, beside checkpoints and metrics."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Writes nothing yet: a run that is refused must not replace what an earlier one has left."""

    def save_config(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Writes `config.yaml`; for the first process."""
        run_dir = Path(trainer.default_root_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, str(run_dir / CONFIG_FILE), skip_unset=False, overwrite=True, multifile=False)


def summary(run_dir: Path, metrics: dict[str, Any], best_checkpoint: str) -> str:
    """The test figure with its interval, and where things lie.

    Args:
        run_dir: the run folder.
        metrics: of the test split, as in `metrics.json`; empty without labels.
        best_checkpoint: path, empty when there is none.
    """
    lines = []
    name = next((name for name in HEADLINES if metrics.get(name) is not None), None)
    if name is not None:
        interval = metrics.get(f"{name}_ci")
        between = f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
        counts = f"{metrics['num_slides']} slides of {metrics['num_cases']} cases"
        lines.append(f"test {HEADLINES[name]} {metrics[name]:.3f}{between}, {counts}")
    if best_checkpoint:
        lines.append(f"{'best checkpoint':<17}{_relative(best_checkpoint)}")
    lines += [f"{label:<17}{run_dir / name}" for label, name in _SHOWN.items() if (run_dir / name).exists()]
    return "\n".join(lines)


def _relative(path: str) -> Path:
    """Relative to the current folder where it lies below it."""
    absolute = Path(path).absolute()
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute
