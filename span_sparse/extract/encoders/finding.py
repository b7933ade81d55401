"""Where are an encoder's weights, and how does somebody without them get them?

The file or folder the user gave, else the Hugging Face cache of this machine. Nothing is downloaded unless that was
asked for: a cluster node without a connection gets an answer at once instead of a time-out. When weights are not there
the answer is three lines: where to ask, how to fetch them elsewhere, how to pass them here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from span_sparse.errors import ConfigError
from span_sparse.extract.encoders.catalogue import EncoderSpec
from span_sparse.extract.encoders.libraries import library
from span_sparse.extract.encoders.weights import PICKLED

SUFFIXES: Final = (".safetensors", *PICKLED)


def find_weights(spec: EncoderSpec, weights: Path | None, *, allow_download: bool = False) -> Path:
    """The weights file of an encoder.

    Args:
        spec: the encoder.
        weights: file or folder the user gave; None: the Hugging Face cache.
        allow_download: fetch what is not in the cache.

    Raises:
        ConfigError: none is there; three lines say how to get it.
    """
    if weights is not None:
        return _given(spec, weights)
    if spec.repository:
        hub = library("huggingface_hub")
        for name in spec.files:
            cached = hub.try_to_load_from_cache(spec.repository, name)
            if isinstance(cached, str):
                return Path(cached)
        if allow_download:
            return _download(spec, hub)
    raise ConfigError(how_to_get(spec, "no weights here"))


def how_to_get(spec: EncoderSpec, what: str) -> str:
    """Three lines that lead to the weights.

    Args:
        spec: the encoder.
        what: is wrong, the start of the first line.
    """
    if not spec.repository:
        fetch = f"2. download {spec.files[0]} from there, on any machine, into a folder"
    else:
        login = "hf auth login && " if spec.gated else ""
        fetch = (
            f"2. on a machine with a connection: {login}hf download {spec.repository} {spec.files[0]} "
            f"--local-dir {spec.name}"
        )
    verb = "ask for access" if spec.gated else "read the terms"
    return "\n".join(
        (
            f"{spec.name}: {what}. 1. {verb} at {spec.source} ({spec.licence})",
            fetch,
            f"3. here: --encoder {spec.name} --encoder-weights FOLDER (the folder that was downloaded)",
        )
    )


def _given(spec: EncoderSpec, weights: Path) -> Path:
    if weights.is_file():
        if weights.suffix not in SUFFIXES:
            raise ConfigError(f"{weights}: expected a weights file, one of *{', *'.join(SUFFIXES)}")
        return weights
    if not weights.is_dir():
        raise ConfigError(how_to_get(spec, f"no file or folder {weights}"))
    for name in spec.files:
        if (weights / name).is_file():
            return weights / name
    found = sorted(path for path in weights.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(how_to_get(spec, f"no weights in {weights} (expected {' or '.join(spec.files)})"))
    raise ConfigError(
        f"{weights}: {len(found)} weights files ({', '.join(path.name for path in found[:3])}, ...), expected "
        f"{' or '.join(spec.files)}; name the file"
    )


def _download(spec: EncoderSpec, hub: Any) -> Path:
    errors = library("huggingface_hub.errors")
    for name in spec.files:
        try:
            return Path(hub.hf_hub_download(spec.repository, name))
        except (errors.EntryNotFoundError, errors.HfHubHTTPError, OSError, ValueError) as error:
            # without a connection the library also says "entry not found", but of its cache
            absent = isinstance(error, errors.EntryNotFoundError)
            if absent and not isinstance(error, errors.LocalEntryNotFoundError):
                continue
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ConfigError(how_to_get(spec, f"the download failed ({reason.rstrip('.')})")) from error
    raise ConfigError(how_to_get(spec, f"{spec.repository} holds none of {', '.join(spec.files)}"))
