"""Chunks of patches in flight between host and network.

A batch is cut into chunks of one fixed size, the last one padded with black. A *transport* sends a chunk and hands back
a `Flight`, whose vectors arrive later; it has a fixed number of places, and a chunk that finds none free waits for the
oldest to land. So the copy of one chunk, the network's work on the one before and the way back of the one before that
happen at the same time, in bounded memory, and vectors come out in the order in which patches went in.

On the CPU (`HostTransport`) there is one place and a flight has landed when `send` returns: the plain loop. The CUDA
transport is in `cuda_transport`. Both run the same function on chunks of the same shape, so that which transport it was
does not show in the vectors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from span_sparse.errors import ConfigError
from span_sparse.extract.encoder import check_patches
from span_sparse.types import EncoderIdentity

Compute = Callable[[Tensor], Tensor]
"""From uint8 `[chunk, edge, edge, 3]` on the network's device to vectors `[chunk, dimension]` there."""


class Flight(Protocol):
    """A chunk on its way."""

    def landed(self) -> bool:
        """Whether its vectors are here."""
        ...

    def vectors(self) -> Float[Tensor, "chunk channels"]:
        """Its vectors, float32 on the CPU, after waiting for them; overwritten when its place is used again."""
        ...


class Transport(Protocol):
    """Sends chunks to a network.

    Attributes:
        num_places: chunks that may be on their way at a time.
    """

    num_places: int

    def send(self, patches: UInt8[Tensor, "patches edge edge 3"], /) -> Flight:
        """Send at most a chunk of patches; they may be overwritten when it returns."""
        ...


class HostTransport:
    """A network on the CPU: a chunk is computed when it is sent.

    Args:
        compute: see `Compute`.
        shape: of a chunk, `(chunk, edge, edge, 3)`.
    """

    num_places = 1

    def __init__(self, compute: Compute, shape: tuple[int, int, int, int]) -> None:
        self._compute, self._pixels = compute, torch.zeros(shape, dtype=torch.uint8)

    def send(self, patches: UInt8[Tensor, "patches edge edge 3"], /) -> _Landed:
        """Compute."""
        fill(self._pixels, patches)
        return _Landed(self._compute(self._pixels).float())


@dataclass(frozen=True, slots=True)
class _Landed:
    """A flight that is over."""

    result: Tensor

    def landed(self) -> bool:
        return True

    def vectors(self) -> Float[Tensor, "chunk channels"]:
        return self.result


def fill(chunk: UInt8[Tensor, "chunk edge edge 3"], patches: UInt8[Tensor, "patches edge edge 3"]) -> None:
    """Copy patches into a chunk and blacken the rest of it."""
    chunk[: len(patches)].copy_(patches)
    chunk[len(patches) :].zero_()


@dataclass(slots=True, eq=False)
class _Batch:
    """A batch that was submitted.

    Attributes:
        vectors: float32 `[batch, dimension]`, filled as chunks land.
        num_flying: chunks that have not landed.
        error: the first that was raised for it.
    """

    vectors: NDArray[np.float32]
    num_flying: int = 0
    error: Exception | None = None


class NetworkStream:
    """An `EncodingStream` over a transport.

    Args:
        identity: of the vectors.
        chunk: patches in the network at a time.
        open_transport: loads the network; called once, by `prepare` or by the first batch.
    """

    def __init__(self, identity: EncoderIdentity, chunk: int, open_transport: Callable[[], Transport]) -> None:
        self._identity, self._chunk, self._open = identity, chunk, open_transport
        self._transport: Transport | None = None
        self._batches: deque[_Batch] = deque()
        self._flights: deque[tuple[_Batch, int, int, Flight]] = deque()

    def prepare(self) -> None:
        """Load the network."""
        if self._transport is None:
            self._transport = self._open()

    def submit(self, patches: NDArray[np.uint8], /) -> None:
        """Send a batch on its way; returns when the last of its patches has been copied."""
        check_patches(patches, self._identity.input_size_px)
        batch = _Batch(np.empty((len(patches), self._identity.dimension), np.float32))
        self._batches.append(batch)
        try:
            self.prepare()
            for start in range(0, len(patches), self._chunk):
                self._send(batch, start, patches[start : start + self._chunk])
        except Exception as error:  # whatever a network raises; told when the batch is collected
            batch.error = batch.error or error

    def ready(self) -> bool:
        """Whether the oldest batch has landed."""
        while self._flights and self._flights[0][-1].landed():
            self._land()
        return bool(self._batches) and not self._batches[0].num_flying

    def collect(self) -> NDArray[np.float32]:
        """Vectors of the oldest batch.

        Raises:
            ConfigError: the weights cannot be loaded, or a vector is not finite; the message names the patch.
        """
        batch = self._batches.popleft()
        while batch.num_flying:
            self._land()
        if batch.error is not None:
            raise batch.error
        return batch.vectors

    def _send(self, batch: _Batch, start: int, patches: NDArray[np.uint8]) -> None:
        assert self._transport is not None
        while len(self._flights) >= self._transport.num_places:
            self._land()
        flight = self._transport.send(torch.from_numpy(np.ascontiguousarray(patches)))
        batch.num_flying += 1
        self._flights.append((batch, start, len(patches), flight))

    def _land(self) -> None:
        """Wait for the oldest chunk and keep its vectors."""
        batch, start, num_patches, flight = self._flights.popleft()
        batch.num_flying -= 1
        try:
            vectors = flight.vectors()[:num_patches]
            self._refuse_non_finite(vectors, start)
            batch.vectors[start : start + num_patches] = vectors.numpy()
        except Exception as error:  # an error of the device shows when its work is waited for
            batch.error = batch.error or error

    def _refuse_non_finite(self, vectors: Float[Tensor, "patches channels"], start: int) -> None:
        stored = vectors.to(getattr(torch, self._identity.precision))
        bad = (~torch.isfinite(stored).all(dim=1)).nonzero()
        if len(bad):
            raise ConfigError(
                f"the encoder {self._identity.name} gives no finite {self._identity.precision} vector for patch "
                f"{start + int(bad[0])} of the batch; try --precision float32"
            )
