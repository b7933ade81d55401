"""What `probe` measures, and that it notices convolutions that are wrong in the ways GPUs are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from span_sparse.sparse import SparseSites, StridedConvolution
from span_sparse.sparse import convolution as convolution_module
from span_sparse.sparse.backend import probe
from span_sparse.sparse.exactness import CHAINS

LIMIT = 1e-5
QUANTITIES = {"forward", "input gradient", "weight gradient"}


def ten_bits(values: Tensor) -> Tensor:
    """Rounded to 10 bits of mantissa, as a tensor core reads its float32 operands with TF32."""
    bits = values.detach().view(torch.int32)
    rounded = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    return values + (rounded - values).detach()


class ScaledGradient(torch.autograd.Function):
    """The values themselves, one entry of their gradient wrong by 5e-3."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        wrong = gradients[0].clone()
        wrong.view(-1)[wrong.abs().argmax()] *= 1.005
        return wrong


class Tf32(StridedConvolution):
    def forward(self, features: Tensor, sites: SparseSites) -> Tensor:
        return super().forward(ten_bits(features), sites)


class WrongInputGradient(StridedConvolution):
    def forward(self, features: Tensor, sites: SparseSites) -> Tensor:
        wide = features.shape[1] == 256
        return super().forward(ScaledGradient.apply(features) if wide else features, sites)  # pyright: ignore


class WrongWeightGradient(StridedConvolution):
    def __init__(self, *args: int, **kwargs: int) -> None:
        super().__init__(*args, **kwargs)
        self.weight.register_hook(lambda gradient: 1.001 * gradient)


class NotFinite(StridedConvolution):
    def forward(self, features: Tensor, sites: SparseSites) -> Tensor:
        return super().forward(features, sites) * math.nan


def wrong(monkeypatch: pytest.MonkeyPatch, layer: type[StridedConvolution]) -> set[tuple[str, str]]:
    """Widths and quantities above the limit."""
    monkeypatch.setattr(convolution_module, "StridedConvolution", layer)
    errors = probe()["errors"]
    return {(w, q) for w, quantities in errors.items() for q, error in quantities.items() if not error <= LIMIT}


def test_float32_is_float32_here() -> None:
    state = torch.get_rng_state()
    result = probe()
    assert torch.equal(torch.get_rng_state(), state)
    assert list(result["errors"]) == ["→".join(map(str, widths)) for widths in CHAINS]
    assert "256→512" in result["errors"]
    for quantities in result["errors"].values():
        assert set(quantities) == QUANTITIES
        assert all(0 < error < 2e-6 for error in quantities.values())  # rounding, and more than nothing: float32
    assert result["max_error"] == max(max(quantities.values()) for quantities in result["errors"].values())
    assert all(error < LIMIT for error in result["dense_errors"].values())
    assert result["tf32"]["spconv"] is False
    assert (result["device"], result["algorithm"], result["version"][:7]) == ("cpu", "Native", "spconv-")


def test_tf32_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    every = {"→".join(map(str, widths)) for widths in CHAINS}
    assert {(widths, "forward") for widths in every} <= wrong(monkeypatch, Tf32)


def test_a_wrong_gradient_is_noticed_and_told_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wrong(monkeypatch, WrongInputGradient) == {("256→512", "input gradient")}
    every = {"→".join(map(str, widths)) for widths in CHAINS}
    assert wrong(monkeypatch, WrongWeightGradient) == {(widths, "weight gradient") for widths in every}


def test_what_is_no_number_is_infinitely_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(wrong(monkeypatch, NotFinite)) == len(CHAINS) * len(QUANTITIES)
    assert math.isinf(probe()["max_error"])
