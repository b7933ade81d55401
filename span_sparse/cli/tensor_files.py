"""How are `.pt` files of unknown origin read without running what is in them?

1. The archive's members must be stored as they are (torch writes them so): nothing unpacks to more than the file has.
2. `torch.load(weights_only=True)` knows tensors and plain containers; anything else is refused.
3. One tensor is taken, and its elements are counted against the file before it is copied: a tensor is a view, and one
   with strides of zero claims any size.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from span_sparse.errors import ExchangeError
from span_sparse.files import replacing


class TorchFiles:
    """Reads and writes tensors; what `span_sparse.store.exchange` is given as `TensorFiles`."""

    def read(self, path: Path) -> NDArray[Any]:
        """The tensor of a `.pt` file.

        Raises:
            ExchangeError: it cannot be read, holds something else, or claims more than the file has.
        """
        size = path.stat().st_size
        advice = "only one tensor per file is read, nothing that would run code"
        try:
            if zipfile.is_zipfile(path):
                _check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
        except ExchangeError:
            raise
        except Exception as error:  # its reader raises whatever the damage leads to
            reason = " ".join(str(error).split())[:200]
            raise ExchangeError(f"{path} cannot be read as a tensor ({reason}); {advice}") from error
        if not isinstance(content, torch.Tensor):
            raise ExchangeError(f"{path} holds a {type(content).__name__}; {advice}")
        if content.layout != torch.strided or content.numel() * content.element_size() > size:
            raise ExchangeError(f"{path} claims {list(content.shape)}, but the file has {size} bytes; refused")
        if content.dtype == torch.bfloat16:
            raise ExchangeError(
                f"{path} is bfloat16, expected float16 or float32; it is never cast silently: convert the file with "
                "`tensor.float()`"
            )
        return np.ascontiguousarray(content.detach().numpy())

    def write(self, path: Path, array: NDArray[Any]) -> None:
        """Write a tensor in one step."""
        with replacing(path) as stream:
            torch.save(torch.from_numpy(np.array(array)), stream)


def _check_archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ExchangeError(f"{path} is a compressed archive, which torch does not write; refused")
