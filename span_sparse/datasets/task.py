"""What is a classifier for? The features it reads and the classes it tells apart.

Saved in every checkpoint, so that evaluation needs nothing else and refuses features of another encoder or lattice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from span_sparse.errors import CheckpointError
from span_sparse.grid import LatticeSpec
from span_sparse.types import EncoderIdentity


@dataclass(frozen=True, slots=True)
class ClassificationTask:
    """A slide-level classification task.

    Attributes:
        class_names: in the order of the logits; the last one is the positive class of a binary task.
        encoder: identity of the encoder that made the features.
        lattice: patch size and resolution.
    """

    class_names: tuple[str, ...]
    encoder: EncoderIdentity
    lattice: LatticeSpec

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return len(self.class_names)

    @property
    def num_features(self) -> int:
        """Width of the patch features."""
        return self.encoder.dimension

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints."""
        return {
            "class_names": list(self.class_names),
            "encoder": self.encoder.as_dict(),
            "lattice": self.lattice.as_dict(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ClassificationTask:
        """Inverse of `as_dict`.

        Raises:
            CheckpointError: something is missing or of the wrong kind.
        """
        try:
            return cls(
                class_names=tuple(str(name) for name in values["class_names"]),
                encoder=EncoderIdentity.from_dict(values["encoder"]),
                lattice=LatticeSpec.from_dict(values["lattice"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint's task is incomplete: {type(error).__name__} {error}") from error

    def check_features(self, encoder: EncoderIdentity, lattice: LatticeSpec, where: str) -> None:
        """Refuses features this task's model was not trained on.

        Args:
            encoder: identity of the encoder of the features at hand.
            lattice: their patch size and resolution.
            where: the store, for the message.

        Raises:
            CheckpointError: names every field that differs.
        """
        differences = [f"encoder {line}" for line in self.encoder.differences(encoder)]
        for key, ours in self.lattice.as_dict().items():
            theirs = lattice.as_dict()[key]
            if ours != theirs:
                differences.append(f"lattice {key}: {ours!r} != {theirs!r}")
        if differences:
            raise CheckpointError(
                f"{where}: its features do not match the checkpoint (checkpoint != store): {'; '.join(differences)}. "
                "Extract the slides again with the checkpoint's encoder and lattice"
            )
