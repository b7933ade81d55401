"""How does a command say that an optional library is missing?

Encoders need timm, safetensors or huggingface-hub, which the rest of the package does without: they are
the extra `encoders`. Imported at the top of a module, a missing one would be a stack trace before the first line of
help.
"""

from __future__ import annotations

import importlib
from typing import Any

from span_sparse.errors import ConfigError


def library(name: str) -> Any:
    """Import a module of the extra `encoders`.

    Args:
        name: of the module, for example `timm` or `safetensors.torch`.

    Raises:
        ConfigError: it is not installed, or cannot be imported; one line with the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # torchvision built for another torch raises RuntimeError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"this encoder needs {name} ({reason}): pip install 'span-sparse[encoders]'") from error
