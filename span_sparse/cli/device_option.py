"""Which device does `--device` mean?"""

from __future__ import annotations


def device_of(name: str) -> str:
    """The torch device of `auto`, `cpu`, `cuda` or `cuda:N`; a CUDA one becomes the current device.

    Raises:
        ConfigError: no such device here.
    """
    import torch

    from span_sparse.errors import ConfigError

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name!r}: expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("--device cuda: no CUDA device is available here; use --device cpu")
        torch.cuda.set_device(device)  # spconv launches on the current device
    return name
