"""How is a checkpoint opened that somebody else made? As data: weights and plain values, never pickled objects."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from span_sparse.errors import CheckpointError, SpanError
from span_sparse.training.patch_segmenter import PatchSegmenter
from span_sparse.training.slide_classifier import SlideClassifier
from span_sparse.training.slide_tasks import MultiLabelClassifier, SlideRegressor
from span_sparse.training.survival_model import SurvivalModel
from span_sparse.training.task_module import TaskModule

_MODULES: Final[dict[str, type[TaskModule]]] = {
    module.task_type.kind: module
    for module in (SlideClassifier, MultiLabelClassifier, SlideRegressor, SurvivalModel, PatchSegmenter)
}


def load_model(path: Path) -> TaskModule:
    """Restores a model of any task from its checkpoint alone, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: missing, damaged, not a checkpoint of ours, or holding anything but tensors and plain values.
    """
    content = checked_checkpoint(path)
    with _explained(path):
        task: Any = content["hyper_parameters"].get("task")
        if not isinstance(task, dict):
            raise CheckpointError("it does not say which network, classes and features it is for")
        kind = task.get("kind", SlideClassifier.task_type.kind)  # the first checkpoints did not say it
        if not isinstance(kind, str) or kind not in _MODULES:
            raise CheckpointError(f"it is for the task {kind!r}, expected one of {', '.join(_MODULES)}")
        model = _MODULES[kind].load_from_checkpoint(str(path), map_location="cpu", weights_only=True)
    return model.eval()


def checked_checkpoint(path: Path) -> dict[str, Any]:
    """Refuses a file that `load_from_checkpoint` or a resumed run could not use, before anything is built.

    Raises:
        CheckpointError: missing, damaged, not a checkpoint of ours, or holding anything but tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file; `lightning fit` writes them under RUN/checkpoints")
    with _explained(path):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= content.keys():
        raise CheckpointError(f"{path}: not a checkpoint of span-sparse")
    return content


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, it holds objects other than tensors and plain values, or is damaged "
            f"({str(error).splitlines()[0]})"
        ) from error
    except SpanError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle may raise anything: struct.error, IndexError, ...
        raise CheckpointError(
            f"{path}: not a checkpoint of span-sparse, or damaged ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no further information'})"
        ) from error
