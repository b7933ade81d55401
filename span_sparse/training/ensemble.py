"""May these checkpoints speak together? Only models of the same task, on the same features.

Folds of one study agree in everything but the weights. A model of another encoder, or with the classes in another
order, would be averaged with them without a sign: probabilities are numbers between 0 and 1 whatever they are about.

What models say of slides is averaged later, over tables (`span_sparse.evaluation.ensemble`). What segmenters say of
patches is not in their tables, so it is averaged here: mean probability of each class, judged at the mean of the
models' decision thresholds.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from span_sparse.datasets import SlideBatch
from span_sparse.errors import CheckpointError
from span_sparse.sparse import ValidCoords
from span_sparse.training.checkpoint import load_model
from span_sparse.training.outcomes import Outcomes
from span_sparse.training.patch_segmenter import NUM_THRESHOLDS, PatchSegmenter
from span_sparse.training.survival_model import SurvivalModel
from span_sparse.training.task_module import TaskModule


class Ensemble:
    """Models that look at the same batches.

    Args:
        models: in evaluation mode, all on one device; of the same task and features.

    Attributes:
        models: as given.
        voices: those whose outcomes are told: the models and, of several segmenters, what they say together.
    """

    def __init__(self, models: Sequence[TaskModule]) -> None:
        self.models = list(models)
        self.voices = list(models)
        self._segmenters = [model for model in models if isinstance(model, PatchSegmenter)]
        if len(self._segmenters) > 1:
            self._together = copy.deepcopy(self._segmenters[0])
            mean = torch.stack([model.decision_threshold for model in self._segmenters]).mean()
            steps = NUM_THRESHOLDS + 1
            self._together.decision_threshold.fill_(torch.round(mean * steps) / steps)
            self.voices.append(self._together)

    def prepare(self, coords: ValidCoords, num_slides: int) -> tuple[Any, ...]:
        """The geometry of a batch for each of the models, None for those that need none.

        Models of the same settings, such as the folds of a study, share one.
        """
        made: list[tuple[Any, Any]] = []
        for model in self.models:
            known = next((geometry for settings, geometry in made if settings == model.settings), None)
            prepare = getattr(model.network, "prepare", None)
            made.append(
                (model.settings, prepare(coords, num_slides) if known is None and prepare is not None else known)
            )
        return tuple(geometry for _, geometry in made)

    def predict(self, batch: SlideBatch) -> tuple[Outcomes, ...]:
        """The outcomes of a batch on the models' device, by each of the voices.

        Args:
            batch: its geometry is what `prepare` made, or None.
        """
        geometries = (None,) * len(self.models) if batch.geometry is None else batch.geometry
        batches = [replace(batch, geometry=geometry) for geometry in geometries]
        if len(self._segmenters) < 2:
            return tuple(model.predict_step(one) for model, one in zip(self.models, batches, strict=True))
        logits = [model(one).float() for model, one in zip(self._segmenters, batches, strict=True)]
        steps = [model.judged(one, batch) for model, one in zip(self._segmenters, logits, strict=True)]
        steps.append(self._together.judged(self._mean(logits), batch))
        return tuple(Outcomes(batch.indices, {**step.columns, "loss": step.losses}) for step in steps)

    def _mean(self, logits: Sequence[Tensor]) -> Tensor:
        """Logits of the mean probabilities."""
        if self._together.is_binary:
            return torch.logit(torch.stack([one.sigmoid() for one in logits]).mean(dim=0), eps=1e-7)
        return torch.stack([one.softmax(dim=1) for one in logits]).mean(dim=0).clamp(min=1e-30).log()


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
