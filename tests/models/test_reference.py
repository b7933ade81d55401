"""The published model’s own numbers: outputs, every stage and gradients of the authors’ code (see their README)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from span_sparse.models import SpanMil, SpanMilConfig, convert_state_dict
from span_sparse.models.convert import our_name

REFERENCE = Path(__file__).parents[2] / ".." / "shared" / "reference"
CASES = ["mil_default_blob", "mil_default_islands", "mil_default_mult", "mil_default_single", "mil_default_tiny5"]
CASES += ["mil_two_heads_small"]

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(
        not REFERENCE.is_dir(), reason="the reference outputs lie beside the project only where it is built"
    ),
]


def relative_error(ours: torch.Tensor, theirs: np.ndarray) -> float:
    return float(np.abs(ours.detach().double().numpy() - theirs).max() / np.abs(theirs).max())


def digest(gradient: torch.Tensor) -> np.ndarray:
    flat = gradient.flatten().double()
    return np.array([flat.norm().item(), (flat * torch.arange(len(flat)).double().cos()).sum().item()])


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)], ids=["float32", "float64"]
)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_authors_code(case: str, dtype: torch.dtype, tolerance: float) -> None:
    data = np.load(REFERENCE / f"{case}.npz")
    config = json.loads((REFERENCE / f"{case}.json").read_text())["config"]
    official = {name[3:]: torch.from_numpy(np.asarray(data[name])) for name in data.files if name.startswith("sd/")}
    settings = SpanMilConfig(stages=config["model"]["slide_configs"], embed_dim_div=config["model"]["embed_dim_div"])
    model = SpanMil(settings, num_features=data["feats"].shape[1], num_classes=data["out/logits"].shape[1])
    model.load_state_dict(convert_state_dict(official))
    model = model.to(dtype).eval()
    model.encoder.stages[-1].locals_needed = True  # compute what only the comparison reads
    features = torch.tensor(data["feats"], dtype=dtype, requires_grad=True)
    coords = torch.cat([torch.zeros(len(features), 1), torch.from_numpy(data["coords"].astype(np.int32))], dim=1).int()
    output = model.run(features, coords, 1)

    assert relative_error(output.logits, data["out/logits"]) < tolerance
    for stage, (tokens, level) in enumerate(zip(output.stages, output.pyramid.levels, strict=True)):
        assert (level.sites.coords[:, 1:].numpy() == data[f"enc{stage}/coords"]).all()
        assert relative_error(tokens.local_tokens, data[f"enc{stage}/feats"]) < tolerance
        assert relative_error(tokens.global_tokens[0], data[f"enc{stage}/global"]) < tolerance

    logits = output.logits.flatten()
    (logits * torch.arange(len(logits)).to(dtype).cos()).sum().backward()
    assert features.grad is not None
    assert relative_error(features.grad.norm(dim=1), data["grad_feats_rownorm"]) < tolerance
    digests = {name[3:]: data[name] for name in data.files if name.startswith("gd/")}
    largest = max(np.nanmax(np.abs(value)) for value in digests.values())
    parameters = dict(model.named_parameters())
    for name, expected in digests.items():
        ours, _ = our_name(name)
        gradient = parameters[ours].grad
        if gradient is None:  # the coarsest level's window attention, which the default head does not read
            assert math.isnan(expected[0]) or expected[0] == 0, name
            continue
        if ours.endswith("operation.weight"):
            gradient = gradient.T
        # some gradients are zero up to rounding: a softmax sees neither its keys’ bias nor a single key
        scale = max(expected[0], 1e-3 * largest)
        assert np.abs(digest(gradient) - expected).max() < tolerance * scale, name
