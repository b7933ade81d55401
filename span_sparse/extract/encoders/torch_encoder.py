"""A torch network as a `PatchEncoder`.

patches → device → transform → network → finite? → float32. The pieces a network cannot promise by itself:

* *The same vector whatever the batch.* Libraries choose another kernel, with another order of additions, for another
  batch size. Patches therefore go through the network in chunks of one fixed size, the last one padded with black: the
  shapes, and with them the kernels, are always the same. What is left is rounding.
* *A device that never waits.* Chunks are copied, computed and fetched at once (`network_stream`); a call is one
  batch through such a stream, the engine keeps several batches in it.
* *Cheap to send.* A worker process receives how to load the network, not the network; it loads when the first patch
  comes.
* *No garbage in the store.* float16 arithmetic overflows on some networks; the patch that does is named, not stored.

Precision, by name: `float32` computes and stores float32, TF32 off. `float16` stores float16 and computes float16 where
that is fast (CUDA autocast), float32 on a CPU: both round to the same stored format, and count as one encoder.
`bfloat16` computes bfloat16 on either device, whose 8 bits are coarser than what float16 stores: another revision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from span_sparse.errors import ConfigError
from span_sparse.extract.encoders.cuda_transport import CudaTransport
from span_sparse.extract.encoders.network_stream import HostTransport, NetworkStream, Transport
from span_sparse.extract.encoders.transform import Transform
from span_sparse.float32 import exact_convolutions
from span_sparse.types import EncoderIdentity

PRECISIONS: Final = ("float32", "float16", "bfloat16")

_CHUNK: Final = {"cuda": 64, "cpu": 8}
"""Patches in the network at a time. Part of the arithmetic: another size is another rounding.

On an H200 a ViT-L reaches 0.97 of its own best speed at 64, and a slide's last chunk is padded by 32 patches on
average; 256 would waste 128 patches a slide for the rest.
"""


_AUTOCAST: Final[dict[str, dict[str, torch.dtype]]] = {
    "float32": {},
    "float16": {"cuda": torch.float16},
    "bfloat16": {"cuda": torch.bfloat16, "cpu": torch.bfloat16},
}


def computed_precision(precision: str) -> Mapping[str, torch.dtype]:
    """The dtype in which matrix products of a precision are computed, by device type; float32 where there is none."""
    return _AUTOCAST[precision]


def stored_precision(precision: str) -> str:
    """The dtype in which vectors of a precision are stored: a store holds `float16` or `float32`."""
    return "float32" if precision == "float32" else "float16"


@dataclass(slots=True)
class TorchEncoder:
    """A frozen network behind the `PatchEncoder` protocol.

    Attributes:
        identity: of the vectors.
        transform: from patches to the network's input.
        load: gives the function from inputs `[batch, 3, edge, edge]` to vectors `[batch, dimension]`, on a device;
            picklable, called once in each process, when the first patch comes.
        device: `cpu`, `cuda` or `cuda:N`.
        compute: precision of the arithmetic, one of `PRECISIONS`; the identity has that of the stored vectors.
        chunk: patches in the network at a time; None: by device.

    Raises:
        ConfigError: an unknown precision, a device that is not there, patches too small for the transform.
    """

    identity: EncoderIdentity
    transform: Transform
    load: Callable[[torch.device], Callable[[Tensor], Tensor]]
    device: str = "cpu"
    compute: str = "float32"
    chunk: int | None = None
    _stream: NetworkStream | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_settings(self.device, self.compute)
        size = self.identity.input_size_px
        if self.transform.input_px(size) != self.transform.crop_px:
            raise ConfigError(
                f"patches of {size} px are too small for the encoder {self.identity.name}, which crops "
                f"{self.transform.crop_px} px of them; use a larger --patch-size"
            )

    def __getstate__(self) -> tuple[object, ...]:
        """Everything but the stream with its network, which every process loads for itself."""
        return self.identity, self.transform, self.load, self.device, self.compute, self.chunk

    def __setstate__(self, state: tuple[object, ...]) -> None:
        """A copy that has loaded nothing yet."""
        names = ("identity", "transform", "load", "device", "compute", "chunk")
        for name, value in zip((*names, "_stream"), (*state, None), strict=True):
            setattr(self, name, value)

    def __call__(self, patches: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """Encode patches.

        Args:
            patches: uint8 RGB `[batch, input_size_px, input_size_px, 3]`; `batch` may be 0.

        Returns:
            float32 `[batch, dimension]`, finite in the identity's precision.

        Raises:
            ValueError: another shape or dtype.
            ConfigError: the weights cannot be loaded, or a vector is not finite; the message names the patch.
        """
        stream = self._stream = self._stream or self.encoding_stream()
        stream.submit(patches)
        return stream.collect()

    def encoding_stream(self) -> NetworkStream:
        """A stream of batches with a network of its own; nothing is loaded yet."""
        return NetworkStream(self.identity, self._chunk_size, self._open_transport)

    @property
    def _chunk_size(self) -> int:
        return self.chunk or _CHUNK[torch.device(self.device).type]

    def _open_transport(self) -> Transport:
        device = torch.device(self.device)
        shape = (self._chunk_size, self.identity.input_size_px, self.identity.input_size_px, 3)
        with torch.inference_mode():
            compute = partial(self._compute, self.load(device), device)
        if device.type == "cuda":
            return CudaTransport(compute, shape, self.identity.dimension, device)
        return HostTransport(compute, shape)

    def _compute(
        self, network: Callable[[Tensor], Tensor], device: torch.device, pixels: UInt8[Tensor, "chunk edge edge 3"]
    ) -> Float[Tensor, "chunk channels"]:
        with torch.inference_mode(), _exact_convolutions():
            inputs = self.transform(pixels)
            with self._autocast(device):
                vectors = network(inputs)
        expected = [len(pixels), self.identity.dimension]
        found = list(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
        if found != expected:
            raise ConfigError(
                f"the encoder {self.identity.name} gives {found} for {len(pixels)} patches, expected vectors "
                f"{expected}; these are the weights or the program of another encoder"
            )
        return vectors

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        dtype = computed_precision(self.compute).get(device.type)
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def check_settings(device: str, precision: str) -> None:
    """Refuse what this process cannot compute.

    Raises:
        ConfigError: an unknown precision, a device other than `cpu`, `cuda`, `cuda:N`, or a GPU that is not there.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision {precision}: expected one of {', '.join(PRECISIONS)}")
    kind, _, index = device.partition(":")
    if kind not in _CHUNK or (index and not (kind == "cuda" and index.isdecimal())):
        raise ConfigError(f"--device {device}: expected cpu, cuda or cuda:N")
    if kind == "cuda":
        number = torch.cuda.device_count()
        if int(index or 0) >= number:
            raise ConfigError(
                f"--device {device}: found {number} GPUs here (`span doctor` says more); use --device cpu"
            )


@contextmanager
def _exact_convolutions() -> Iterator[None]:
    # cuDNN would use TF32 (10 bits) for float32 convolutions, and choose kernels by timing them
    cudnn = torch.backends.cudnn
    before = cudnn.enabled, cudnn.benchmark, cudnn.deterministic
    with exact_convolutions():
        try:
            cudnn.enabled, cudnn.benchmark, cudnn.deterministic = True, False, True
            yield
        finally:
            cudnn.enabled, cudnn.benchmark, cudnn.deterministic = before
