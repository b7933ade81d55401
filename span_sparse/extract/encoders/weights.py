"""Are these the right weights, and can they be read without running code?

1. Name: the SHA-256 of the file goes into the identity, so that other weights are another encoder.
2. Read: safetensors, or pickled tensors in torch's restricted mode (`weights_only=True`).
3. Fit: every tensor of the network from the file, none left over; nothing beside them that says otherwise.

Fit is checked before a run as well, on a network without numbers: a thousand slides that fail for one reason help
nobody.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

import torch
from torch import Tensor, nn

from span_sparse.errors import ConfigError
from span_sparse.extract.encoders.catalogue import SPECS, EncoderSpec
from span_sparse.extract.encoders.libraries import library

PICKLED: Final = (".bin", ".pt", ".pth")
_MAX_CONFIG_BYTES: Final = 2**20
_WRAPPERS: Final = ("model", "state_dict")


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A file of weights, as it was when the encoder was made.

    Attributes:
        path: the file.
        sha256: of its bytes, hexadecimal.
        stamp: size in bytes and time of the last change in nanoseconds.
    """

    path: Path
    sha256: str
    stamp: tuple[int, int]

    @classmethod
    def of(cls, path: Path) -> WeightsFile:
        """Hash a file; a few seconds for the largest.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            with path.open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            return cls(path, sha256, _stamp(path))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error

    def check_unchanged(self) -> None:
        """Refuse a file that was replaced since its hash was taken.

        Raises:
            ConfigError: it was, or it is gone.
        """
        if not self.path.is_file() or _stamp(self.path) != self.stamp:
            raise ConfigError(f"{self.path}: the weights changed while they were in use; run the command again")


@dataclass(frozen=True, slots=True)
class NetworkOf:
    """How a worker process loads the network of a row of the table; picklable.

    Attributes:
        name: of the row.
        weights: the file.
        precision: of the arithmetic on each device type, where autocast makes it another than float32.
    """

    name: str
    weights: WeightsFile
    precision: Mapping[str, torch.dtype] = field(default_factory=dict)

    def __call__(self, device: torch.device) -> Any:
        """The function from inputs to vectors, on a device.

        Raises:
            ConfigError: a library is missing, or the weights do not fit.
        """
        spec = SPECS[self.name]
        self.weights.check_unchanged()
        network = cast_once(load_network(spec, self.weights.path), self.precision.get(device.type)).to(device)
        return lambda inputs: spec.read(network, inputs)


def cast_once(network: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The network with the weights that autocast would cast at every call cast for good; the same vectors.

    Autocast keeps casts only of weights that are trained. Without this every chunk reads all weights in float32 and
    writes them in half precision, 1.8 GB for a ViT-L.
    """
    if dtype is not None:
        for module in network.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.to(dtype)
    return network


def load_network(spec: EncoderSpec, path: Path) -> nn.Module:
    """Build a network and fill it.

    Args:
        spec: the encoder.
        path: its weights.

    Returns:
        The network in evaluation mode, float32, on the CPU.

    Raises:
        ConfigError: a library is missing, the file cannot be read, or its tensors are not the network's.
    """
    network, state = _empty_network_and_state(spec, path)
    network.load_state_dict(state, assign=True)
    if any(tensor.is_meta for tensor in chain(network.parameters(), network.buffers())):
        network = spec.build()  # tables that are computed, not saved
        network.load_state_dict(state)
    return network.float().eval().requires_grad_(False)


def check_weights(spec: EncoderSpec, path: Path) -> None:
    """Refuse weights that do not fit, before any slide is read and without filling a network.

    Raises:
        ConfigError: as `load_network`, or a configuration beside them contradicts the table.
    """
    check_against_config(spec, path.parent)
    _empty_network_and_state(spec, path)


def _empty_network_and_state(spec: EncoderSpec, path: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    with torch.device("meta"):  # without initialising a billion numbers that are replaced at once
        network = spec.build()
    try:
        state = spec.convert(read_tensors(path))
    except KeyError as error:
        raise ConfigError(f"{path}: not the weights of {spec.name} ({spec.source}): no {error.args[0]}") from error
    _check_fit(spec, path, network, state)
    return network, state


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Named tensors of a weights file, without running code from it.

    Args:
        path: `*.safetensors`, or pickled `*.bin`, `*.pt`, `*.pth`.

    Raises:
        ConfigError: it cannot be read, or holds anything but tensors.
    """
    try:
        is_pickled = path.suffix in PICKLED
        content: Any = _unpickle(path) if is_pickled else library("safetensors.torch").load_file(path)
    except UnpicklingError as error:
        raise ConfigError(
            f"{path}: it is damaged or holds more than tensors, which would run code; expected weights saved with "
            "torch.save(network.state_dict()) or safetensors"
        ) from error
    except ConfigError:
        raise
    except Exception as error:  # safetensors, zip and torch raise whatever they like on a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{path}: cannot be read as weights ({reason}); download it again") from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"{path}: expected named tensors, found other content; it is not a weights file")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def _unpickle(path: Path) -> Any:
    with path.open("rb") as stream:
        mapped = stream.read(2) == b"PK"  # files of torch 1.5 and older cannot be mapped
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _check_fit(spec: EncoderSpec, path: Path, network: nn.Module, state: dict[str, Tensor]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    problems = [
        *(f"no {name}" for name in expected if name not in found),
        *(f"{name} is not of this network" for name in found if name not in expected),
        *(
            f"{name} is {list(found[name])}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ),
    ]
    if problems:
        raise ConfigError(
            f"{path}: not the weights of {spec.name} ({spec.source}): {problems[0]}"
            + (f", and {len(problems) - 1} more differences" if len(problems) > 1 else "")
        )


def check_against_config(spec: EncoderSpec, folder: Path) -> None:
    """Refuse weights whose own configuration prepares patches otherwise than the table does.

    Read are timm's `config.json` and transformers' `preprocessor_config.json`, where they lie beside the weights; only
    the constants of the normalisation, and the resize of the latter, decide the vector without showing in the weights.

    Raises:
        ConfigError: they contradict the table.
    """
    timm = _read_json(folder / "config.json").get("pretrained_cfg")
    processor = _read_json(folder / "preprocessor_config.json")
    stated: dict[str, Any] = {}
    if isinstance(timm, dict):
        stated |= {"mean": timm.get("mean"), "std": timm.get("std")}
    for key, theirs in (("mean", "image_mean"), ("std", "image_std")):
        stated[key] = processor.get(theirs, stated.get(key))
    size = processor.get("size")
    if isinstance(size, dict):
        stated["resize_px"] = size.get("shortest_edge")
    for key, theirs in stated.items():
        ours = getattr(spec.transform, key)
        if theirs is not None and (tuple(theirs) if isinstance(theirs, list) else theirs) != ours:
            raise ConfigError(
                f"{folder}: its configuration says {key} {theirs}, the encoder {spec.name} uses {ours}; these are "
                "other weights, or the published ones changed: use a plug-in or a program for them"
            )


def _read_json(path: Path) -> dict[str, Any]:
    """An object, or nothing: the file is optional, and only contradictions are of interest."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_CONFIG_BYTES:
            return {}
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
