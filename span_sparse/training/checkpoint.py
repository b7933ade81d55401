"""How is a checkpoint opened that somebody else made? As data: weights and plain values, never pickled objects."""

from __future__ import annotations

import pickle
from pathlib import Path

from span_sparse.errors import CheckpointError, SpanError
from span_sparse.training.slide_classifier import SlideClassifier


def load_classifier(path: Path) -> SlideClassifier:
    """Restores a classifier from its checkpoint alone, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: missing, damaged, not a checkpoint of ours, or holding anything but tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file; `lightning fit` writes them under RUN/checkpoints")
    try:
        model = SlideClassifier.load_from_checkpoint(str(path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, it holds objects other than tensors and plain values, or is damaged "
            f"({str(error).splitlines()[0]})"
        ) from error
    except SpanError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (RuntimeError, KeyError, TypeError, AttributeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a checkpoint of a span-sparse slide classifier ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''})"
        ) from error
    if model.task is None:
        raise CheckpointError(f"{path}: the checkpoint does not say which classes and features it is for")
    return model.eval()
