"""What does a checkpoint hold besides Lightning's own state? The bundle: weights, settings, and what they are for.

`hyper_parameters` are plain values (`network` with its `kind`, `task` with classes, encoder and lattice), `state_dict`
the weights under `network.`; nothing in it needs unpickling, so a bundle from anywhere can be opened safely.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from span_sparse.errors import CheckpointError, SpanError
from span_sparse.files import replacing
from span_sparse.models.config import NetworkConfig, SpanUnetConfig
from span_sparse.models.networks import build_network, network_as_dict, network_from_dict

_PREFIX = "network."


def write_bundle(
    path: Path,
    config: NetworkConfig | SpanUnetConfig,
    weights: Mapping[str, Tensor],
    task: Mapping[str, Any],
    *,
    lightning_version: str,
) -> None:
    """Writes a bundle that training and evaluation open like a checkpoint of their own.

    Args:
        path: the file, replaced atomically.
        config: settings of the network.
        weights: its state dict.
        task: classes, encoder and lattice as plain values.
        lightning_version: which Lightning's layout the file follows.
    """
    bundle = {
        "pytorch-lightning_version": lightning_version,
        "epoch": 0,
        "global_step": 0,
        "state_dict": {f"{_PREFIX}{name}": tensor.detach().cpu() for name, tensor in weights.items()},
        "hyper_parameters": {"network": network_as_dict(config), "task": dict(task)},
    }
    with replacing(path) as stream:
        torch.save(bundle, stream)


def load_network(path: Path) -> nn.Module:
    """The network of a checkpoint or bundle, alone, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: missing, damaged, not a bundle, or holding anything but tensors and plain values.
    """
    bundle = load_plain(path)
    try:
        config = network_from_dict(bundle["hyper_parameters"]["network"])
        task = bundle["hyper_parameters"]["task"]
        network = build_network(
            config, num_features=int(task["encoder"]["dimension"]), num_classes=len(task["class_names"])
        )
        saved = bundle["state_dict"].items()  # a task's module may have tensors of its own besides
        weights = {name.removeprefix(_PREFIX): tensor for name, tensor in saved if name.startswith(_PREFIX)}
        network.load_state_dict(weights)
    except SpanError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of this package ({type(error).__name__}: {error})") from error
    return network.eval()


def load_plain(path: Path) -> dict[str, Any]:
    """A file of `torch.save` that holds tensors and plain values only.

    Raises:
        CheckpointError: missing, damaged, holding other objects, or no dictionary.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: refused, it is damaged or holds objects other than tensors and plain values ({reason}); save a "
            "plain state dict with `torch.save(model.state_dict(), FILE)`"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dictionary of tensors, found {type(content).__name__}")
    return content
