"""How is spconv loaded, and with which algorithm does it run where?

spconv takes four to seven seconds to import, so it is imported at first use. Its import emits two known warnings and
its first sparse tensor logs one line; exactly these are silenced (spconv 2.3.6 and 2.3.8 with torch 2.6 to 2.13).

On CPU only the algorithm `Native` works. On CUDA spconv's own default, implicit GEMM, is used for convolutions.
"""

from __future__ import annotations

import functools
import logging
import warnings
from types import ModuleType
from typing import Any

import torch

from span_sparse.errors import ConfigError


@functools.cache
def load_spconv() -> ModuleType:
    """The module `spconv.pytorch`.

    Raises:
        ConfigError: spconv is not installed, with the command that installs it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.cuda\.amp\.custom_(fwd|bwd)\(args\.\.\.\)` is", FutureWarning)
        warnings.filterwarnings("ignore", r"'locale\.getdefaultlocale' is deprecated", DeprecationWarning)
        try:
            import spconv.pytorch as spconv
        except ImportError as error:
            raise ConfigError(
                f"spconv cannot be imported ({error}); install it with `pip install spconv-cu120 'numpy<2'` on "
                "Python 3.11, `pip install spconv-cu126` on 3.12 and 3.13"
            ) from error
    logging.getLogger("torch.fx._symbolic_trace").addFilter(
        lambda record: "is_fx_tracing will return true" not in record.getMessage()
    )
    return spconv


def native_algorithm() -> Any:
    """The gather-multiply-scatter algorithm: the only one that runs on a CPU, and convolutions use it on CUDA too."""
    load_spconv()
    from spconv.core import ConvAlgo

    return ConvAlgo.Native


def implicit_gemm_algorithm() -> Any:
    """The algorithm whose indice maps are tables per tap; on CUDA only."""
    load_spconv()
    from spconv.core import ConvAlgo

    return ConvAlgo.MaskImplicitGemm


def probe(device: str = "cpu") -> dict[str, Any]:
    """Runs one strided convolution forward and backward and compares it with a dense one.

    Returns:
        `device`, `algorithm`, `version` and `max_error` (relative, against `torch.nn.functional.conv2d`).
    """
    import importlib.metadata

    from span_sparse.sparse.convolution import StridedConvolution
    from span_sparse.sparse.sites import make_sites

    target = torch.device(device)
    rows, cols = torch.meshgrid(torch.arange(6), torch.arange(4), indexing="ij")
    coords = torch.stack([torch.zeros_like(rows), rows, cols], dim=-1).reshape(-1, 3).int().to(target)
    sites, _ = make_sites(coords, num_slides=1, multiple_of=2)
    layer = StridedConvolution(8, 16, kernel_size=2, stride=2).to(target)
    features = torch.randn(len(coords), 8, device=target, requires_grad=True)
    outputs = layer.convolve(features, sites)[2]
    outputs.square().sum().backward()
    dense = features.detach().reshape(1, 6, 4, 8).permute(0, 3, 1, 2).requires_grad_()
    expected = torch.nn.functional.conv2d(dense, layer.weight.detach().permute(0, 3, 1, 2), stride=2)
    expected.square().sum().backward()
    assert features.grad is not None
    assert dense.grad is not None
    pairs = (
        (outputs, expected.permute(0, 2, 3, 1).reshape(-1, 16)),
        (features.grad, dense.grad.permute(0, 2, 3, 1).reshape(-1, 8)),
    )
    errors = [((ours - dense).abs().max() / dense.abs().max()).item() for ours, dense in pairs]
    versions = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return {
        "device": str(target),
        "algorithm": native_algorithm().name,
        "version": next(
            (f"{name} {v}" for name, v in sorted(versions.items()) if name.startswith("spconv")), "unknown"
        ),
        "max_error": max(errors),
    }
