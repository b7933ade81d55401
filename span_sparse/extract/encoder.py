"""What must an object do to turn patches into features?

One protocol: an identity and a call. Whatever satisfies it can fill a store: the embedded descriptor, a frozen
foundation model, a network of the user's own. The pipeline hands it pixels and asks for vectors; it never asks what is
inside.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from span_sparse.types import EncoderIdentity


@runtime_checkable
class PatchEncoder(Protocol):
    """Maps a batch of patches to one vector each.

    The contract, beyond the signatures:

    * deterministic: the same patch gives the same vector, today and on another process;
    * patch-wise: the vector of a patch does not depend on its batch mates, their number or their order, so the batch
      size is free and an interrupted extraction resumes to the same store;
    * picklable: worker processes receive a copy;
    * finite: every uint8 patch, also a white, black or constant one, gives finite numbers;
    * the identity changes whenever the vectors change.
    """

    @property
    def identity(self) -> EncoderIdentity:
        """What decides the vector: name, revision, readout, dimension, precision, input size and resolution."""
        ...

    def __call__(self, patches: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """Encode patches.

        Args:
            patches: uint8 RGB `[batch, input_size_px, input_size_px, 3]` at `identity.mpp`; `batch` may be 0.

        Returns:
            float32 `[batch, identity.dimension]`, finite.

        Raises:
            ValueError: another shape or dtype.
        """
        ...


def check_patches(patches: NDArray[Any], input_size_px: int) -> None:
    """Refuse what is not a batch of RGB patches of the expected size.

    Args:
        patches: should be uint8 `[batch, input_size_px, input_size_px, 3]`.
        input_size_px: edge the encoder was built for.

    Raises:
        ValueError: another shape or dtype, with expected and got.

    >>> check_patches(np.zeros((2, 32, 32, 4), np.uint8), 32)
    Traceback (most recent call last):
    ...
    ValueError: patches must be uint8 [batch, 32, 32, 3], got uint8 [2, 32, 32, 4]
    """
    if patches.dtype != np.uint8 or patches.ndim != 4 or patches.shape[1:] != (input_size_px, input_size_px, 3):
        raise ValueError(
            f"patches must be uint8 [batch, {input_size_px}, {input_size_px}, 3], "
            f"got {patches.dtype} {list(patches.shape)}"
        )
