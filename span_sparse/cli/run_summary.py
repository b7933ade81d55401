"""What can be said about a run from its folder alone?

Everything is taken from `run.json`, `history.csv`, `metrics.json` and `config.yaml`. Any of them may be missing, of an
older version or damaged: a folder that cannot be understood is a run with a `problem`, not the end of the list.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from span_sparse.cli.run_files import (
    CONFIG_FILE,
    HEADLINES,
    HISTORY_FILE,
    METRICS_FILE,
    RUN_FILE,
    read_history,
    read_json,
)
from span_sparse.errors import ConfigError

FINISHED: Final = "finished"
UNKNOWN: Final = "unknown"
_NOT_RUNS: Final = frozenset({"checkpoints", "logs", "tensorboard"})


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run.

    Attributes:
        path: its folder.
        status: `finished`, `running` (or killed), `failed`, `interrupted`; `unknown` without `run.json`.
        started: time in UTC, empty when unknown.
        network: kind of network, empty when unknown.
        task: kind of task, empty when unknown.
        seed: of the run.
        best_epoch: of the weights that were kept.
        split: column of the sides.
        split_hash: name of the split's content, empty when unknown.
        val: figures of the best epoch on the validation side.
        test: figures on the test side.
        test_intervals: of the figures that have one.
        problem: why little is known, empty as a rule.
    """

    path: Path
    status: str = UNKNOWN
    started: str = ""
    network: str = ""
    task: str = ""
    seed: int | None = None
    best_epoch: int | None = None
    split: str = ""
    split_hash: str = ""
    val: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    test_intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    problem: str = ""

    @property
    def headline(self) -> str | None:
        """The figure this run is judged by, the first of the usual ones that it has."""
        known = (*HEADLINES, "loss")
        return next((name for figures in (self.test, self.val) for name in known if name in figures), None)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        intervals = {name: list(interval) for name, interval in self.test_intervals.items()}
        return values | {"path": str(self.path), "test_intervals": intervals}


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """Run folders in these folders and below, each once, in the order of their names.

    Raises:
        ConfigError: a folder does not exist.
    """
    found: dict[Path, None] = {}
    for root in folders:
        if not root.is_dir():
            raise ConfigError(f"{root}: no such folder; runs lie where `trainer.default_root_dir` says")
        for place, names, files in os.walk(root):
            names[:] = sorted(set(names) - _NOT_RUNS)
            if {RUN_FILE, CONFIG_FILE} & set(files):
                found[Path(place)] = None
    return list(found)


def read_run(path: Path) -> RunSummary:
    """The summary of a run folder; never fails."""
    record, metrics = read_json(path / RUN_FILE), read_json(path / METRICS_FILE)
    damaged = [
        name
        for name, content in ((RUN_FILE, record), (METRICS_FILE, metrics))
        if not content and (path / name).exists()
    ]
    if damaged:
        return RunSummary(path, problem=f"{damaged[0]} is damaged")
    if not record:
        return RunSummary(path, **_test_figures(metrics), problem=f"{RUN_FILE} is missing")
    chosen, data = _dict(record.get("selection")), _dict(record.get("data"))
    best_epoch = chosen.get("best_epoch")
    rows = [row for row in read_history(path / HISTORY_FILE) if row["epoch"] == str(best_epoch)]
    val = {
        name.removeprefix("val_"): number
        for name, text in (rows[-1] if rows else {}).items()
        if name.startswith("val_") and (number := _number(text)) is not None
    }
    return RunSummary(
        path,
        status=_text(record.get("status")) or UNKNOWN,
        started=_text(record.get("started")),
        network=_text(record.get("network")),
        task=_text(record.get("task")),
        seed=_integer(record.get("seed")),
        best_epoch=_integer(best_epoch),
        split=_text(data.get("split")),
        split_hash=_text(data.get("split_hash")),
        val=val,
        **_test_figures(metrics),
        problem=_text(record.get("error")),
    )


def overfitting(history: Iterable[Mapping[str, str]]) -> str | None:
    """A sentence about a run that went on learning its training slides by heart, or None.

    Said when the validation loss ends a fifth, and 0.02, above its best epoch, while the training loss fell.

    Args:
        history: rows of `history.csv`.
    """
    losses = [
        (int(row["epoch"]), train, val)
        for row in history
        if (train := _number(row.get("train_loss"))) is not None and (val := _number(row.get("val_loss"))) is not None
    ]
    if not losses:
        return None
    best, last = min(losses, key=lambda row: row[2]), losses[-1]
    if last[2] - best[2] <= max(0.2 * abs(best[2]), 0.02) or last[1] >= best[1]:
        return None
    return (
        f"overfitting: val_loss rose from {best[2]:.3g} (epoch {best[0]}) to {last[2]:.3g} (epoch {last[0]}) while "
        f"train_loss fell from {best[1]:.3g} to {last[1]:.3g}. More dropout, weight_decay or augmentation, or a "
        "smaller network, may help; a ModelCheckpoint that monitors val_loss keeps the best epoch"
    )


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a run, `config.yaml` with dotted names.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    source = path / CONFIG_FILE
    try:
        content = yaml.safe_load(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror or error}; {path} is not a run") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{source} is damaged: {' '.join(str(error).split())[:200]}") from error
    return dict(_flattened("", content))


def _flattened(prefix: str, value: Any) -> Iterable[tuple[str, Any]]:
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list) and any(isinstance(one, dict) for one in value):
        children = enumerate(value)
    entries = [pair for key, child in children for pair in _flattened(f"{prefix}.{key}" if prefix else str(key), child)]
    return entries or [(prefix, value)]


def _test_figures(metrics: dict[str, Any]) -> dict[str, Any]:
    """Figures of the test side: what `metrics.json` has an interval for, or a place for one."""
    test = _dict(metrics.get("test"))
    figures, intervals = {}, {}
    for name in (key.removesuffix("_ci") for key in test if key.endswith("_ci")):
        if (value := _number(test.get(name))) is not None:
            figures[name] = value
            bounds = test[f"{name}_ci"]
            if isinstance(bounds, list) and len(bounds) == 2 and None not in map(_number, bounds):
                intervals[name] = (float(bounds[0]), float(bounds[1]))
    return {"test": figures, "test_intervals": intervals}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
