"""How does a torch network become a `PatchEncoder`?

patches → device → transform → network → finite? → float32. The pieces a network cannot promise by itself:

* *The same vector whatever the batch.* Libraries choose another kernel, with another order of additions, for another
  batch size. Patches therefore go through the network in chunks of one fixed size, the last one padded with black: the
  shapes, and with them the kernels, are always the same. What is left is rounding.
* *Cheap to send.* A worker process receives how to load the network, not the network; it loads when the first patch
  comes.
* *No garbage in the store.* float16 arithmetic overflows on some networks; the patch that does is named, not stored.

Precision, by name: `float32` computes and stores float32, TF32 off. `float16` stores float16 and computes float16 where
that is fast (CUDA autocast), float32 on a CPU: both round to the same stored format, and count as one encoder.
`bfloat16` computes bfloat16 on either device, whose 8 bits are coarser than what float16 stores: another revision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from span_sparse.errors import ConfigError
from span_sparse.extract.encoder import check_patches
from span_sparse.extract.encoders.transform import Transform
from span_sparse.float32 import exact_convolutions
from span_sparse.types import EncoderIdentity

PRECISIONS: Final = ("float32", "float16", "bfloat16")

_CHUNK: Final = {"cuda": 64, "cpu": 8}
"""Patches in the network at a time. Part of the arithmetic: another size is another rounding."""


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
    _network: Callable[[Tensor], Tensor] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_settings(self.device, self.compute)
        size = self.identity.input_size_px
        if self.transform.input_px(size) != self.transform.crop_px:
            raise ConfigError(
                f"patches of {size} px are too small for the encoder {self.identity.name}, which crops "
                f"{self.transform.crop_px} px of them; use a larger --patch-size"
            )

    def __getstate__(self) -> tuple[object, ...]:
        """Everything but the network, which every process loads for itself."""
        return self.identity, self.transform, self.load, self.device, self.compute, self.chunk

    def __setstate__(self, state: tuple[object, ...]) -> None:
        """A copy that has loaded nothing yet."""
        names = ("identity", "transform", "load", "device", "compute", "chunk")
        for name, value in zip((*names, "_network"), (*state, None), strict=True):
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
        check_patches(patches, self.identity.input_size_px)
        device = torch.device(self.device)
        size = self.chunk or _CHUNK[device.type]
        output = np.empty((len(patches), self.identity.dimension), dtype=np.float32)
        with torch.inference_mode(), _exact_convolutions():
            network = self._network = self._network or self.load(device)
            for start in range(0, len(patches), size):
                part = patches[start : start + size]
                vectors = self._encode(network, part, size, device)
                self._refuse_non_finite(vectors, start)
                output[start : start + len(part)] = vectors.numpy()
        return output

    def _encode(
        self, network: Callable[[Tensor], Tensor], part: NDArray[np.uint8], size: int, device: torch.device
    ) -> Float[Tensor, "patches channels"]:
        pixels = torch.zeros((size, *part.shape[1:]), dtype=torch.uint8, pin_memory=device.type == "cuda")
        pixels[: len(part)] = torch.from_numpy(np.ascontiguousarray(part))
        inputs = self.transform(pixels.to(device, non_blocking=True))
        with self._autocast(device):
            vectors = network(inputs)
        expected = [size, self.identity.dimension]
        found = list(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
        if found != expected:
            raise ConfigError(
                f"the encoder {self.identity.name} gives {found} for {size} patches, expected vectors {expected}; "
                "these are the weights or the program of another encoder"
            )
        return vectors[: len(part)].float().cpu()

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        if self.compute == "bfloat16":
            return torch.autocast(device.type, torch.bfloat16)
        if self.compute == "float16" and device.type == "cuda":
            return torch.autocast(device.type, torch.float16)
        return nullcontext()

    def _refuse_non_finite(self, vectors: Float[Tensor, "patches channels"], start: int) -> None:
        stored = vectors.to(getattr(torch, self.identity.precision))
        bad = (~torch.isfinite(stored).all(dim=1)).nonzero()
        if len(bad):
            raise ConfigError(
                f"the encoder {self.identity.name} gives no finite {self.identity.precision} vector for patch "
                f"{start + int(bad[0])} of the batch; try --precision float32"
            )


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
