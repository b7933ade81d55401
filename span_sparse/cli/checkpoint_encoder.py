"""With which encoder are slides read for a checkpoint? With the one it was trained on, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from span_sparse.datasets import Task
    from span_sparse.extract.encoder import PatchEncoder

_BFLOAT16: Final = "+bfloat16"
"""End of the revision of features that were computed in bfloat16 (`extract.encoders.torch_encoder`)."""


def checkpoint_encoder(
    task: Task, checkpoint: Path, *, encoder: str | None, weights: Path | None, trust_program: bool, device: str
) -> PatchEncoder:
    """The encoder that a checkpoint's features came from.

    Args:
        task: of the checkpoint; holds the identity of the encoder.
        checkpoint: for messages.
        encoder: name or program file, if it is not the identity's name.
        weights: file or folder of its weights; None for the cache.
        trust_program: load a program, which can run its author's code.
        device: where it works.

    Raises:
        CheckpointError: it cannot be made here, or what is at hand is another one.
    """
    from span_sparse.errors import CheckpointError, ConfigError
    from span_sparse.extract.encoders import load_encoder
    from span_sparse.extract.encoders.loading import DESCRIPTOR

    identity = task.encoder
    try:
        found = load_encoder(
            encoder or identity.name,
            weights=weights,
            device="cpu" if identity.name == DESCRIPTOR else device,
            precision="bfloat16" if identity.revision.endswith(_BFLOAT16) else identity.precision,
            input_size_px=identity.input_size_px,
            mpp=identity.mpp,
            trust_program=trust_program,
        )
    except ConfigError as error:
        raise CheckpointError(
            f"{checkpoint}: was trained on features of {identity.name} ({identity.input_size_px} px at "
            f"{identity.mpp:g} µm/px), which cannot be made here: {error}"
        ) from error
    if differences := identity.differences(found.identity):
        raise CheckpointError(
            f"{checkpoint}: was trained on features of another encoder (checkpoint != here): "
            f"{'; '.join(differences)}; name the right one with --encoder or --encoder-weights"
        )
    return found
