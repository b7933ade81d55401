"""Batches of patches on their way through an encoder, several at a time.

The engine hands over batches and asks for vectors later, in the same order, so that an encoder on a device can copy,
compute and fetch at once. That is all an `EncodingStream` promises:

1. `prepare()` loads what takes long to load; it is called once, in a thread of its own, while slides are opened.
2. `submit(patches)` takes a batch; its memory belongs to the caller again when it returns.
3. `ready()` says whether the vectors of the oldest batch can be collected without waiting.
4. `collect()` gives them, or raises what went wrong with that batch; the batches behind it are not touched.

An encoder that knows nothing of streams (every plug-in that has an identity and a call) goes through `CallStream`.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from span_sparse.extract.encoder import PatchEncoder


class EncodingStream(Protocol):
    """See the module."""

    def prepare(self) -> None:
        """Load; without it the first batch does."""
        ...

    def submit(self, patches: NDArray[np.uint8], /) -> None:
        """Take a batch, uint8 RGB `[batch, input_size_px, input_size_px, 3]`.

        Raises:
            ValueError: another shape or dtype; the batch was not taken.
        """
        ...

    def ready(self) -> bool:
        """Whether `collect` would return at once; False without a batch."""
        ...

    def collect(self) -> NDArray[Any]:
        """Vectors `[batch, dimension]` of the oldest batch, after waiting for them.

        Raises:
            IndexError: no batch is on its way.
            Exception: whatever the encoder raised for this batch.
        """
        ...


@runtime_checkable
class StreamingEncoder(Protocol):
    """A `PatchEncoder` that also works on several batches at a time."""

    def encoding_stream(self) -> EncodingStream:
        """A stream of its own; cheap, nothing is loaded yet."""
        ...


class CallStream:
    """A stream that calls the encoder when it is given a batch: nothing overlaps, everything is kept in order.

    Args:
        encoder: what is called.
    """

    def __init__(self, encoder: PatchEncoder) -> None:
        self._encoder = encoder
        self._results: deque[NDArray[Any] | Exception] = deque()

    def prepare(self) -> None:
        """Nothing: what the encoder loads, it loads when it is called."""

    def submit(self, patches: NDArray[np.uint8], /) -> None:
        """Encode; an error waits until the batch is collected."""
        try:
            self._results.append(self._encoder(patches))
        except Exception as error:  # whatever an encoder raises
            self._results.append(error)

    def ready(self) -> bool:
        """Whether there is a batch."""
        return bool(self._results)

    def collect(self) -> NDArray[Any]:
        """Vectors of the oldest batch, or its error."""
        result = self._results.popleft()
        if isinstance(result, Exception):
            raise result
        return result


def stream_of(encoder: PatchEncoder) -> EncodingStream:
    """The encoder's own stream, or calls of it where it has none."""
    return encoder.encoding_stream() if isinstance(encoder, StreamingEncoder) else CallStream(encoder)
