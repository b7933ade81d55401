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
    """Measures what float32 means on a device: strided convolutions and their gradients against dense float64 ones.

    Returns:
        `device`, `algorithm`, `version` of spconv; `errors` by channel widths and quantity, relative, and `max_error`,
        the largest of them (`span_sparse.sparse.exactness`); `dense_errors` of torch's own product and convolution;
        `tf32`, the switches of matmul, cuDNN and spconv.
    """
    import importlib.metadata

    from span_sparse.float32 import switches
    from span_sparse.sparse.exactness import convolution_errors, dense_errors, spconv_tf32

    target = torch.device(device)
    errors = convolution_errors(target)
    versions = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return {
        "device": str(target),
        "algorithm": native_algorithm().name,
        "version": next(
            (f"{name} {v}" for name, v in sorted(versions.items()) if name.startswith("spconv")), "unknown"
        ),
        "max_error": max(error for quantities in errors.values() for error in quantities.values()),
        "errors": errors,
        "dense_errors": dense_errors(target),
        "tf32": {**switches(), "spconv": spconv_tf32()},
    }
