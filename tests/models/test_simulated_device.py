"""Whole networks along the path of a GPU, on CPU tensors, against the path of a CPU.

`plain` takes the operators' implementations in torch: joint rows, permutations and operators over slides are tested,
Triton's kernels are not. `interpreted` runs the kernels, slowly.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from span_sparse.errors import ConfigError
from span_sparse.models import SpanMil, SpanMilConfig, SpanUnet, SpanUnetConfig
from span_sparse.nn.execution import Execution, current_execution, execution
from span_sparse.sparse import operators, validated
from span_sparse.sparse.operators import has_kernels, simulated_device

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
import random_slides

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a real device is tested in test_cuda.py")

NUM_FEATURES = 16
MIL: dict[str, dict[str, Any]] = {
    "rpb": {},
    "alibi": {"positions": "alibi", "tokens": ["lrn1", "max"]},
    "rope": {"positions": "rope", "tokens": ["lrn1", "mean"]},
    "swin_global": {"attention": "swin_global", "positions": "none", "down": "patchmerge", "edge_mode": "partial"},
    "tradswin": {"attention": "tradswin", "head": "addition"},
    "pooling": {"head": "pyramid_pooling", "share_qkv": True, "tokens": ["std", "fix1"]},
    "multiattn": {"head": "multiattn", "attention": "long_noshift", "stages": "12", "activation": "gelu"},
    "kernel": {"kernel_size": 3, "head": "concat", "token_strategy": "kernel", "norm": "post", "down": "patchconv"},
}
UNET: dict[str, dict[str, Any]] = {
    "shuffled": {},
    "depthwise": {"down": "dwpatchconv", "up": "dwpatchinvs", "channel_factor": 1, "connection": "add"},
    "inverse": {"up": "patchinvs", "channel_factor": 1, "skip_order": "before_attention", "kernel_size": 3},
}


def network_of(name: str) -> SpanMil | SpanUnet:
    common: dict[str, Any] = {"head_channels": 8, "window_size": 2}
    if name in MIL:
        config = SpanMilConfig(**{"stages": "11", **common, **MIL[name]})
        return random_slides.shake(SpanMil(config, num_features=NUM_FEATURES, num_classes=2), 0.1).eval()  # pyright: ignore[reportReturnType]
    config = SpanUnetConfig(**{"stages": "11-1", **common, **UNET[name]})
    return random_slides.shake(SpanUnet(config, num_features=NUM_FEATURES, num_classes=2), 0.1).eval()  # pyright: ignore[reportReturnType]


def slides(*counts: int, side: int = 9) -> tuple[Tensor, Tensor]:
    """Features and coordinates, the rows of every slide in random order."""
    parts = [random_slides.random_slide(count, side, seed) for seed, count in enumerate(counts)]
    coords = random_slides.batch_of(*parts)
    return torch.randn(len(coords), NUM_FEATURES), coords


def results(network: torch.nn.Module, features: Tensor, place: Any, num_slides: int) -> dict[str, Tensor]:
    """Outputs and all gradients."""
    rows = features.clone().requires_grad_()
    network.zero_grad()
    output = network(rows, place, num_slides)
    weights = torch.linspace(-1, 2, output.numel()).view(output.shape)
    (output * weights).sum().backward()
    named = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert rows.grad is not None
    return {"output": output.detach(), "features": rows.grad} | {name: grad.clone() for name, grad in named.items()}


def assert_close(ours: dict[str, Tensor], expected: dict[str, Tensor], limit: float = 1e-4) -> None:
    """The same tensors, within `limit` of the largest entry of each."""
    assert ours.keys() == expected.keys()
    largest = max(float(value.abs().max()) for name, value in expected.items() if name != "output")
    for name, value in ours.items():
        scale = max(float(expected[name].abs().max()), 1e-2 * largest)
        error = float((value - expected[name]).abs().max())
        assert error <= limit * scale, f"{name} is off by {error:.1e} of {scale:.1e}"


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "_interpreted", lambda: False)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("name", [*MIL, *UNET])
def test_outputs_and_gradients_are_those_of_the_cpu(name: str) -> None:
    network, (features, coords) = network_of(name), slides(40, 1, 23)
    expected = results(network, features, coords, 3)
    with simulated_device():
        assert not has_kernels(features)
        assert_close(results(network, features, coords, 3), expected)
        with torch.no_grad():
            found = network(features, coords, 3)
    torch.testing.assert_close(found, expected["output"], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rpb", "pooling", "depthwise"])
def test_kernels_give_what_the_cpu_gives(name: str) -> None:
    network, (features, coords) = network_of(name), slides(6, 1, side=4)
    expected = results(network, features, coords, 2)
    with simulated_device():
        assert has_kernels(features)
        assert_close(results(network, features, coords, 2), expected)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("name", ["rpb", "pooling", "shuffled"])
def test_the_order_of_the_rows_does_not_matter(name: str) -> None:
    network, (features, coords) = network_of(name), slides(30)
    order = torch.randperm(30)
    with simulated_device():
        first = results(network, features, coords, 1)
        other = results(network, features[order], coords[order], 1)
    if name == "shuffled":
        torch.testing.assert_close(other["output"], first["output"][order], rtol=1e-4, atol=1e-5)
        return
    torch.testing.assert_close(other["output"], first["output"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other["features"], first["features"][order], rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("name", ["rpb", "alibi", "pooling", "depthwise"])
def test_batch_mates_do_not_matter(name: str) -> None:
    network, (features, coords) = network_of(name), slides(20, 1, 33)
    with simulated_device(), torch.no_grad():
        together = network(features, coords, 3)
        alone = []
        for slide in range(3):
            rows = coords[:, 0] == slide
            alone.append(network(features[rows], coords[rows] * torch.tensor([0, 1, 1]), 1))
    torch.testing.assert_close(together, torch.cat(alone).to(together.dtype), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("plain")
def test_a_validated_batch_is_the_same_batch() -> None:
    network, (features, coords) = network_of("rpb"), slides(20, 5)
    valid, order = validated(coords, [20, 5])
    assert order is not None
    with simulated_device(), torch.no_grad():
        torch.testing.assert_close(network(features[order], valid, 2), network(features, coords, 2))


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    "settings",
    [{"attention": "merged"}, {"attention": "gathered"}, {"rows_at_once": 7}, {"operators": False}, {"recompute": True},
     {"score_elements": 1, "attention": "merged"}, {"head_groups": 1, "gradient_rows": 3}, {"keep_attention": False}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", ["pooling", "shuffled"])
def test_settings_change_rounding_at_most(name: str, settings: dict[str, Any]) -> None:
    network, (features, coords) = network_of(name), slides(30, 4)
    with simulated_device():
        expected = results(network, features, coords, 2)
        with execution(**settings):
            assert_close(results(network, features, coords, 2), expected)
            with torch.no_grad():
                found = network(features, coords, 2)
    torch.testing.assert_close(found, expected["output"], rtol=1e-4, atol=1e-4)


def test_settings_are_overridden_inside_their_block_only() -> None:
    cpu = torch.device("cpu")
    before = current_execution(cpu)
    with execution(rows_at_once=7):
        with execution(attention="merged"):
            assert (current_execution(cpu).rows_at_once, current_execution(cpu).attention) == (7, "merged")
        assert current_execution(cpu).attention is None
    assert current_execution(cpu) == before
    with pytest.raises(ConfigError, match=r"unknown setting 'rows'; expected one of attention, "), execution(rows=7):
        pass
    with simulated_device():
        assert current_execution(cpu) == Execution()


@pytest.mark.usefixtures("plain")
def test_settings_are_no_part_of_a_checkpoint() -> None:
    """Neither of the weights' names nor of the network's settings, which are what checkpoints hold and compare."""
    network = network_of("rpb")
    with execution(attention="gathered", rows_at_once=5), simulated_device():
        twin = network_of("rpb")
    assert twin.state_dict().keys() == network.state_dict().keys()
    assert twin.config == network.config
    names = set(Execution.__dataclass_fields__) - {"attention"}  # a network's `attention` says which, not how
    assert not names & set(network.config.as_dict())
    assert not any(name in key.split(".") for key in network.state_dict() for name in names)
    assert network.config.as_dict()["attention"] == "long"


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["rpb", "pooling", "depthwise"])
def test_autocast_stays_close(name: str, dtype: torch.dtype) -> None:
    network, (features, coords) = network_of(name), slides(30, 4)
    expected = results(network, features, coords, 2)
    with simulated_device(), torch.autocast("cpu", dtype):
        ours = results(network, features, coords, 2)
    assert all(torch.isfinite(value).all() for value in ours.values())
    assert (ours["output"].float() - expected["output"]).abs().max() < 0.1 * expected["output"].abs().max()
    for parameter, grad in ((name, value) for name, value in ours.items() if name != "output"):
        assert grad.dtype == torch.float32, parameter  # of the parameters and the features, not of the products


@pytest.mark.usefixtures("plain")
def test_recomputation_asks_the_operators_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    module = sys.modules["span_sparse.nn.window_attention"]
    attention: Callable[..., Tensor] = module.fused_attention
    monkeypatch.setattr(module, "fused_attention", lambda *rest: calls.append("fused") or attention(*rest))
    network, (features, coords) = network_of("tradswin"), slides(12)
    with simulated_device():
        expected = results(network, features, coords, 1)
        num_calls = len(calls)
        with execution(recompute=True):
            assert_close(results(network, features, coords, 1), expected)
    assert num_calls > 0
    assert len(calls) > 2 * num_calls
