"""How does an encoder that is somebody's own Python code get a name?

A distribution declares an entry point in the group `span_sparse.encoders`:

    [project.entry-points."span_sparse.encoders"]
    my-encoder = "my_package.encoders:make"

`make(*, weights, device, precision, input_size_px, mpp)` returns an object that satisfies `PatchEncoder`; arguments the
user did not give are None (the device is `cpu`). Whatever goes wrong in it is one line that names the distribution: a
stack trace through somebody else's code reads as if this program had failed.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Final

from span_sparse.errors import ConfigError, SpanError
from span_sparse.extract.encoder import PatchEncoder
from span_sparse.types import EncoderIdentity

GROUP: Final = "span_sparse.encoders"


def plugins() -> dict[str, EntryPoint]:
    """The entry points of installed distributions, by name; nothing is imported."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def distribution_of(entry: EntryPoint) -> str:
    """Name and version of the distribution that declares it."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value


def load_plugin(
    entry: EntryPoint,
    *,
    weights: Path | None,
    device: str,
    precision: str | None,
    input_size_px: int | None,
    mpp: float | None,
) -> PatchEncoder:
    """Call the function behind an entry point.

    Args:
        entry: of the group `span_sparse.encoders`.
        weights: as the user gave it, like the other arguments; None: not given.
        device: where to compute.
        precision: wanted.
        input_size_px: edge of the patches.
        mpp: their µm per pixel.

    Raises:
        ConfigError: it fails, or returns something else than an encoder; the message names the distribution.
    """
    who = f"encoder {entry.name} of the distribution {distribution_of(entry)}"
    try:
        encoder = entry.load()(
            weights=weights, device=device, precision=precision, input_size_px=input_size_px, mpp=mpp
        )
        identity = encoder.identity if isinstance(encoder, PatchEncoder) else None
    except SpanError as error:
        raise ConfigError(f"{who}: {error}") from error
    except Exception as error:  # somebody else's code
        lines = str(error).strip().splitlines()
        raise ConfigError(f"{who}: {type(error).__name__}{': ' + lines[0] if lines else ''}") from error
    if not isinstance(identity, EncoderIdentity):
        raise ConfigError(f"{who}: expected a PatchEncoder with an EncoderIdentity, found {type(encoder).__name__}")
    if identity.precision not in ("float16", "float32"):
        raise ConfigError(f"{who}: its precision is {identity.precision!r}; a store holds float16 or float32")
    return encoder
