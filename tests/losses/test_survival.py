"""Discrete-time likelihood against products of hazards, Cox against a loop over risk sets."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from span_sparse.losses import cox_partial_likelihood, discrete_survival, discrete_time_nll

FLOOR = 1e-7
"""Probabilities below this count as this, as in the authors' code."""


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def nll_by_products(logits: list[float], last: int, censored: bool, alpha: float) -> float:
    before = 1.0
    for logit in logits[:last]:
        before *= 1 - sigmoid(logit)
    if censored:
        return -(1 - alpha) * math.log(max(FLOOR, before * sigmoid(-logits[last])))
    return -math.log(max(FLOOR, before)) - math.log(max(FLOOR, sigmoid(logits[last])))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=6),
    st.data(),
    st.booleans(),
    st.sampled_from([0.0, 0.15, 0.5, 1.0]),
)
def test_likelihood_equals_explicit_products(logits: list[float], data, censored: bool, alpha: float) -> None:
    last = data.draw(st.integers(0, len(logits) - 1))
    rows = torch.tensor([logits], dtype=torch.float64)
    ours = discrete_time_nll(rows, torch.tensor([last]), torch.tensor([censored]), alpha=alpha)
    assert ours.item() == pytest.approx(nll_by_products(logits, last, censored, alpha), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("scale", [8.0, 20.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_extreme_logits_stay_finite(scale: float, dtype: torch.dtype) -> None:
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4).to(dtype)
    for last in range(4):
        for censored in (False, True):
            logits = (signs * scale).requires_grad_()
            bins, mask = torch.full((16,), last), torch.full((16,), censored)
            ours = discrete_time_nll(logits, bins, mask)
            expected = [nll_by_products(row, last, censored, 0.0) for row in (signs * scale).tolist()]
            assert ours.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
            ours.sum().backward()
            assert logits.grad is not None
            assert logits.grad.isfinite().all()


def test_likelihood_gradcheck_and_batch_mates() -> None:
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    bins, censored = torch.tensor([0, 3, 2, 0, 3]), torch.tensor([False, False, True, True, True])
    assert torch.autograd.gradcheck(lambda rows: discrete_time_nll(rows, bins, censored, alpha=0.3), (logits,))
    together = discrete_time_nll(logits, bins, censored)
    alone = [discrete_time_nll(logits[[i]], bins[[i]], censored[[i]])[0] for i in range(5)]
    torch.testing.assert_close(together, torch.stack(alone))


def test_hazards_survival_and_risk_are_products() -> None:
    logits = torch.randn(3, 4).double()
    result = discrete_survival(logits)
    for row in range(3):
        hazards = [sigmoid(logit) for logit in logits[row].tolist()]
        survival = [math.prod(1 - hazard for hazard in hazards[: bin + 1]) for bin in range(4)]
        assert result.hazards[row].tolist() == pytest.approx(hazards, rel=1e-12)
        assert result.survival[row].tolist() == pytest.approx(survival, rel=1e-12)
        assert result.risk[row].item() == pytest.approx(-sum(survival), rel=1e-12)
    certain = discrete_survival(torch.tensor([[-1e4, 1e4], [1e4, 1e4]]))
    assert certain.survival.tolist() == [[1, 0], [0, 0]]
    assert certain.risk.tolist() == [-1, 0]


def cox_by_loops(risk: list[float], time: list[float], event: list[bool]) -> float:
    """Breslow: every event against everybody whose time is at least its own."""
    terms = [
        math.log(sum(math.exp(risk[j]) for j in range(len(risk)) if time[j] >= time[i])) - risk[i]
        for i in range(len(risk))
        if event[i]
    ]
    return sum(terms) / len(terms)


patients = st.lists(st.tuples(st.floats(-3, 3), st.integers(0, 4), st.booleans()), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(patients)
def test_cox_equals_the_loop_over_risk_sets(rows: list[tuple[float, int, bool]]) -> None:
    risk = torch.tensor([row[0] for row in rows], dtype=torch.float64, requires_grad=True)
    time, event = torch.tensor([float(row[1]) for row in rows]), torch.tensor([row[2] for row in rows])
    loss = cox_partial_likelihood(risk, time.double(), event)
    expected = cox_by_loops(risk.tolist(), time.tolist(), event.tolist()) if event.any() else 0.0
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    loss.backward()
    assert risk.grad is not None
    assert risk.grad.sum().item() == pytest.approx(0, abs=1e-9)  # a common factor of all hazards changes nothing


def test_cox_hand_numbers_with_a_tie() -> None:
    risk, time = torch.tensor([0.0, math.log(2.0), math.log(3.0)]), torch.tensor([5.0, 5.0, 9.0])
    loss = cox_partial_likelihood(risk, time, torch.tensor([True, True, False]))
    assert loss.item() == pytest.approx((math.log(6) + math.log(6) - math.log(2)) / 2, rel=1e-6)


def test_cox_without_events_is_zero_and_teaches_nothing() -> None:
    risk = torch.randn(4, requires_grad=True)
    loss = cox_partial_likelihood(risk, torch.rand(4), torch.zeros(4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert risk.grad is not None
    assert risk.grad.tolist() == [0, 0, 0, 0]


def test_cox_gradcheck_and_extremes() -> None:
    time = torch.tensor([1.0, 2.0, 2.0, 3.0, 1.0], dtype=torch.float64)
    event = torch.tensor([True, False, True, True, False])
    risk = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: cox_partial_likelihood(rows, time, event), (risk,))
    large: Tensor = (torch.randn(5, dtype=torch.float64) * 1e4).requires_grad_()
    loss = cox_partial_likelihood(large, time, event)
    loss.backward()
    assert loss.isfinite()
    assert large.grad is not None
    assert large.grad.isfinite().all()
