"""May these checkpoints speak together? Only models of the same task, on the same features.

Folds of one study agree in everything but the weights. A model of another encoder, or with the classes in another
order, would be averaged with them without a sign: probabilities are numbers between 0 and 1 whatever they are about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from span_sparse.errors import CheckpointError
from span_sparse.training.checkpoint import load_model
from span_sparse.training.survival_model import SurvivalModel
from span_sparse.training.task_module import TaskModule


def load_ensemble(paths: Sequence[Path]) -> list[TaskModule]:
    """Restores models that agree in task, classes and features.

    Args:
        paths: their checkpoints.

    Raises:
        CheckpointError: a checkpoint cannot be used, or differs from the first one; names what and both values.
    """
    models = [load_model(path) for path in paths]
    for path, model in zip(paths[1:], models[1:], strict=True):
        differences = _differences(models[0], model)
        if differences:
            raise CheckpointError(
                f"{path}: cannot be averaged with {paths[0]} (first != this one): {'; '.join(differences)}. "
                "An ensemble needs models of the same task, classes, encoder and lattice"
            )
    return models


def checkpoint_hash(path: Path) -> str:
    """SHA-256 of the file.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _differences(first: TaskModule, other: TaskModule) -> list[str]:
    ours, theirs = first.task.as_dict(), other.task.as_dict()
    if ours["kind"] != theirs["kind"]:
        return [f"task: {ours['kind']} != {theirs['kind']}"]
    found = [
        f"{name.replace('_', ' ')}: {value!r} != {theirs[name]!r}"
        for name, value in ours.items()
        if "column" not in name and name not in ("encoder", "lattice") and value != theirs[name]
    ]
    if "columns" in ours and ours["columns"] != theirs["columns"]:  # of a multi-label task: what it answers
        found.append(f"columns: {ours['columns']!r} != {theirs['columns']!r}")
    found += [f"encoder {line}" for line in first.task.encoder.differences(other.task.encoder)]
    if ours["lattice"] != theirs["lattice"]:
        found.append(f"lattice: {ours['lattice']} != {theirs['lattice']}")
    if isinstance(first, SurvivalModel) and isinstance(other, SurvivalModel):
        pairs = (("loss", first.loss, other.loss), ("num_bins", first.num_outputs(), other.num_outputs()))
        found += [f"{name}: {mine} != {yours}" for name, mine, yours in pairs if mine != yours]
    return found
