"""Does a converted model compute what the authors' code computed? Reference files, run in float64 and float32.

A reference file `NAME.npz` holds inputs, the authors' weights, outputs, tokens after every stage and two numbers of
every parameter's gradient; `NAME.json` the configuration. Errors are relative to the largest entry of what is compared,
those of gradients to the gradient's norm or a thousandth of the largest one: some gradients are zero up to rounding,
because a softmax sees neither a bias common to all keys nor a single key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from span_sparse.errors import CheckpointError, ConfigError
from span_sparse.losses import discrete_survival, discrete_time_nll
from span_sparse.models.config import SpanMilConfig, SpanUnetConfig
from span_sparse.models.convert import config_from_official, convert_state_dict, our_name
from span_sparse.models.mil import SpanMil, SpanMilOutput
from span_sparse.models.unet import SpanUnet, SpanUnetOutput

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest relative error of a faithful conversion."""

_GRADIENT_FLOOR = 1e-3


@dataclass(frozen=True, slots=True)
class Comparison:
    """One quantity of a reference file.

    Attributes:
        quantity: what was compared, as the file names it.
        dtype: in which it was computed.
        error: largest relative error.
    """

    quantity: str
    dtype: torch.dtype
    error: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance of its dtype; NaN is not."""
        return self.error <= TOLERANCE[self.dtype]


def dtypes_on(device: torch.device) -> tuple[torch.dtype, ...]:
    """What a reference file can be verified in: float64 and float32, on CUDA float32 alone (spconv has no float64)."""
    return (torch.float32,) if device.type == "cuda" else (torch.float64, torch.float32)


def verify_reference(path: Path, dtype: torch.dtype, device: torch.device | str = "cpu") -> list[Comparison]:
    """Runs one reference file through the converted model.

    Args:
        path: the `.npz` file; the `.json` of the same name lies beside it.
        dtype: one of `dtypes_on(device)`.
        device: where the converted model runs.

    Raises:
        CheckpointError: a file is missing or not of this layout.
        ConfigError: the authors' configuration has no counterpart, or spconv has no such dtype on the device.
    """
    device = torch.device(device)
    if dtype not in dtypes_on(device):
        raise ConfigError(f"{dtype} does not run on {device.type} (spconv), expected one of {dtypes_on(device)}")
    data, config = _read(path)
    model = _model(data, config).to(device, dtype)
    features = torch.tensor(data["feats"], dtype=dtype, device=device, requires_grad=True)
    places = torch.from_numpy(data["coords"].astype(np.int32)).to(device)
    coords = torch.cat([places.new_zeros(len(places), 1), places], dim=1)
    output = model.run(features, coords, 1)
    logits = output.logits.flatten()
    (logits * torch.arange(len(logits), dtype=dtype, device=device).cos()).sum().backward()
    assert features.grad is not None
    pairs = [*_outputs(output, data), ("grad_feats_rownorm", features.grad.norm(dim=1), data["grad_feats_rownorm"])]
    compared = [Comparison(name, dtype, _relative_error(ours, theirs)) for name, ours, theirs in pairs]
    return compared + [Comparison(name, dtype, error) for name, error in _gradients(model, data, config)]


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], SpanMilConfig | SpanUnetConfig]:
    description = path.with_suffix(".json")
    try:
        with np.load(path, allow_pickle=False) as archive:
            data = {name: archive[name] for name in archive.files}
        config = config_from_official(json.loads(description.read_text(encoding="utf-8"))["config"])
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: not a reference file with its description {description.name} beside it ({error})"
        ) from error
    missing = {"coords", "feats", "out/logits", "grad_feats_rownorm"} - set(data)
    if missing:
        raise CheckpointError(f"{path}: lacks {', '.join(sorted(missing))}; not a reference file of this layout")
    return data, config


def _model(data: Mapping[str, NDArray[Any]], config: SpanMilConfig | SpanUnetConfig) -> SpanMil | SpanUnet:
    sizes = {"num_features": data["feats"].shape[1], "num_classes": data["out/logits"].shape[1]}
    model = SpanUnet(config, **sizes) if isinstance(config, SpanUnetConfig) else SpanMil(config, **sizes)
    official = {name[3:]: torch.from_numpy(value) for name, value in data.items() if name.startswith("sd/")}
    model.load_state_dict(convert_state_dict(official, config))
    model.requires_grad_(True)
    model.encoder.keep_all_locals()
    return model.eval()


def _outputs(
    output: SpanMilOutput | SpanUnetOutput, data: Mapping[str, NDArray[Any]]
) -> Iterator[tuple[str, Tensor, NDArray[Any]]]:
    """Every output and every stage, ours and theirs."""
    yield "out/logits", output.logits, data["out/logits"]
    encoded = output.stages if isinstance(output, SpanMilOutput) else output.encoded
    for index, stage in enumerate(encoded):
        cells = output.pyramid.levels[index].sites.coords[:, 1:]
        yield f"enc{index}/coords", cells, data[f"enc{index}/coords"]
        yield f"enc{index}/feats", stage.local_tokens, data[f"enc{index}/feats"]
        yield f"enc{index}/global", stage.global_tokens[0], data[f"enc{index}/global"]
    if isinstance(output, SpanUnetOutput):
        for index, stage in enumerate(output.decoded):
            theirs = data[f"dec{index}/feats"]  # before a concatenation, whose first channels are the decoder's own
            yield f"dec{index}/feats", stage.local_tokens[:, : theirs.shape[1]], theirs
    if "out/hazards" in data:
        hazards, survival, risk = discrete_survival(output.logits)
        yield "out/hazards", hazards, data["out/hazards"]
        yield "out/S", survival, data["out/S"]
        yield "out/risk", risk, data["out/risk"].reshape(-1)
        for name in data:
            if name.startswith("out/nll_"):
                yield name, _nll(output.logits, name), data[name].reshape(-1)


def _nll(logits: Tensor, name: str) -> Tensor:
    """The loss a name such as `out/nll_y2_c0_a0.4` stands for: bin 2, not censored, α = 0.4."""
    bins, censored, alpha = (part[1:] for part in name.removeprefix("out/nll_").split("_"))
    target, is_censored = (torch.tensor([value], device=logits.device) for value in (int(bins), censored == "1"))
    return discrete_time_nll(logits, target, is_censored, alpha=float(alpha))


def _gradients(
    model: SpanMil | SpanUnet, data: Mapping[str, NDArray[Any]], config: SpanMilConfig | SpanUnetConfig
) -> Iterator[tuple[str, float]]:
    """Every gradient digest `[norm, Σ_i g_i cos(i)]` over the entries in the authors' order."""
    digests = {name: value for name, value in data.items() if name.startswith("gd/")}
    finite = [abs(value).max() for value in digests.values() if not np.isnan(value).any()]
    floor = _GRADIENT_FLOOR * max(finite, default=1.0)
    parameters = dict(model.named_parameters())
    for name, theirs in digests.items():
        ours, layout = our_name(name[3:], config)
        raw = None if ours is None else parameters[ours].grad
        gradient = torch.zeros(1) if raw is None else layout.theirs(raw).flatten().cpu().double()
        expected = np.nan_to_num(theirs)  # NaN: their graph gives no gradient, so it is zero
        digest = [gradient.norm().item(), (gradient * torch.arange(len(gradient)).double().cos()).sum().item()]
        yield name, float(np.abs(np.array(digest) - expected).max() / max(expected[0], floor))


def _relative_error(ours: Tensor, theirs: NDArray[Any]) -> float:
    mine = ours.detach().cpu().double().numpy()
    if mine.shape != theirs.shape:
        return float("inf")
    largest = float(np.abs(theirs).max()) if theirs.size else 0.0
    return float(np.abs(mine - theirs).max() / largest) if largest else float(np.abs(mine).max(initial=0.0))
