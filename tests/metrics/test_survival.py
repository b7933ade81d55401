"""C-indices, AUC(t) and Brier(t) against loops over pairs that follow the published formulas, and other programs."""

from __future__ import annotations

import numpy as np
import pytest
from lifelines import KaplanMeierFitter
from lifelines.utils import concordance_index as lifelines_c

from span_sparse.metrics.censoring import censoring_curve
from span_sparse.metrics.survival import auc_at, brier_at, concordance, mean_over_time


def cohort(seed: int = 0, number: int = 50) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    risk = np.round(random.standard_normal(number), 1)  # ties
    death = random.exponential(10 * np.exp(-risk))
    end = random.exponential(15, size=number)
    time, event = np.minimum(death, end), death <= end
    survival = np.exp(-time.mean() / 10 * np.exp(risk)).clip(0.01, 0.99)
    return time, event, risk, survival


def chance_not_censored(time: np.ndarray, event: np.ndarray):
    """G(t) of lifelines; times are all different, so before and at an event are the same."""
    fitter = KaplanMeierFitter().fit(time, ~event)
    return lambda moments: fitter.survival_function_at_times(moments).to_numpy()


def repeated(weights: np.ndarray, *columns: np.ndarray) -> list[np.ndarray]:
    rows = np.repeat(np.arange(len(weights)), weights.astype(int))
    return [column[rows] for column in columns]


@pytest.fixture
def weights() -> np.ndarray:
    drawn = np.random.default_rng(7).multinomial(50, np.full(50, 1 / 50), size=5).astype(float)
    return np.concatenate([np.ones((1, 50)), drawn])


def test_harrell_in_drawings_is_that_of_lifelines(weights) -> None:
    time, event, risk, _ = cohort()
    found = concordance(time, event, risk, weights)
    assert found[0] == pytest.approx(lifelines_c(time, -risk, event))
    for number, row in enumerate(weights):
        times, events, risks = repeated(row, time, event, risk)
        later = (times[None] > times[:, None]) & events[:, None]
        right = (risks[None] < risks[:, None]) + 0.5 * (risks[None] == risks[:, None])
        assert found[number] == pytest.approx((later * right).sum() / later.sum())


def test_uno_is_the_sum_over_pairs(weights) -> None:
    time, event, risk, _ = cohort()
    found = concordance(time, event, risk, weights, censoring_curve(time, event, weights))
    for number, row in enumerate(weights):
        times, events, risks = repeated(row, time, event, risk)
        factor = np.where(events, chance_not_censored(times, events)(times).clip(1e-12), np.inf) ** -2.0
        later = (times[None] > times[:, None]) * factor[:, None]
        right = (risks[None] < risks[:, None]) + 0.5 * (risks[None] == risks[:, None])
        assert found[number] == pytest.approx((later * right).sum() / later.sum())


def test_auc_at_a_time_is_the_sum_over_pairs(weights) -> None:
    time, event, risk, _ = cohort()
    moment = float(np.median(time[event]))
    found = auc_at(time, event, risk, moment, weights, censoring_curve(time, event, weights))
    for number, row in enumerate(weights):
        times, events, risks = repeated(row, time, event, risk)
        chance = chance_not_censored(times, events)
        cases, controls = events & (times <= moment), times > moment
        factor = 1 / chance(times[cases])
        right = (risks[controls][None] < risks[cases][:, None]) + 0.5 * (risks[controls][None] == risks[cases][:, None])
        expected = (factor[:, None] * right).sum() / (factor.sum() * controls.sum())
        assert found[number] == pytest.approx(expected)


def test_brier_at_a_time_is_the_published_sum(weights) -> None:
    time, event, _, survival = cohort()
    moment = float(np.median(time))
    found = brier_at(time, event, survival, moment, weights, censoring_curve(time, event, weights))
    for number, row in enumerate(weights):
        times, events, predicted = repeated(row, time, event, survival)
        chance = chance_not_censored(times, events)
        gone, left = events & (times <= moment), times > moment
        total = (predicted[gone] ** 2 / chance(times[gone])).sum()
        total += ((1 - predicted[left]) ** 2).sum() / chance([moment])[0]
        assert found[number] == pytest.approx(total / len(times))


def test_without_censoring_they_are_the_ordinary_figures() -> None:
    """Then G is 1: Uno's C is Harrell's, AUC(t) an AUC, Brier(t) a Brier score."""
    from sklearn.metrics import brier_score_loss, roc_auc_score

    time, _, risk, survival = cohort(3)
    event, ones = np.ones(50, bool), np.ones((1, 50))
    censoring = censoring_curve(time, event, ones)
    assert concordance(time, event, risk, ones, censoring) == pytest.approx(concordance(time, event, risk, ones))
    assert auc_at(time, event, risk, 5.0, ones, censoring)[0] == pytest.approx(roc_auc_score(time <= 5.0, risk))
    expected = brier_score_loss(time > 5.0, survival)
    assert brier_at(time, event, survival, 5.0, ones, censoring)[0] == pytest.approx(expected)


def test_uno_hardly_depends_on_the_censoring_and_harrell_does() -> None:
    """Proportional hazards at first only: late pairs, which censoring removes, are no better than chance."""
    random = np.random.default_rng(2)
    number = 2500
    risk = random.standard_normal(number)
    early = random.exponential(4 * np.exp(-2 * risk))
    death = np.where(early < 4, early, 4 + random.exponential(10, size=number))
    ones = np.ones((1, number))
    inside = death < 12
    whole = concordance(np.minimum(death, 12.0), inside, risk, ones)[0]
    end = np.minimum(random.exponential(6, size=number), 12.0)
    time, event = np.minimum(death, end), death < end
    harrell = concordance(time, event, risk, ones)[0]
    uno = concordance(time, event, risk, ones, censoring_curve(time, event, ones))[0]
    assert abs(uno - whole) < 0.02
    assert abs(harrell - whole) > 0.04


def test_blocks_of_pairs_change_nothing(weights, monkeypatch) -> None:
    time, event, risk, _ = cohort()
    whole = concordance(time, event, risk, weights)
    monkeypatch.setattr("span_sparse.metrics.survival._MAX_PAIRS", 150)
    np.testing.assert_allclose(concordance(time, event, risk, weights), whole, rtol=1e-12)


def test_the_mean_over_time_is_the_trapezoid() -> None:
    assert mean_over_time(np.array([[1.0, 3.0, 5.0]]), np.array([0.0, 1.0, 4.0])).tolist() == [(2 + 12) / 4]


def test_a_time_beyond_the_follow_up_has_no_figure() -> None:
    time, event, risk, survival = cohort()
    ones = np.ones((1, 50))
    censoring = censoring_curve(time, event, ones)
    assert np.isnan(auc_at(time, event, risk, 1e6, ones, censoring)).all()
    assert np.isnan(brier_at(time, event, survival, 1e6, ones, censoring)).all()


REFERENCE = {
    0: (0.7095808383233533, 0.7239981082686336, [0.6055555555555555, 0.7516379122079055, 0.7907124939535007],
        [0.12660646150815277, 0.16493015387476448, 0.19038727893646065], 0.1688780175371102),
    1: (0.7039170506912442, 0.6813761601324344, [0.7342465379703741, 0.795415735069696, 0.6869153986342048],
        [0.12798270083112834, 0.17243609539761906, 0.22362715594214436], 0.17815487043266798),
    2: (0.6469194312796208, 0.6257910837041788, [0.7606250039881653, 0.7668677973001701, 0.6031187449996426],
        [0.1339534052381068, 0.17825657007845344, 0.271073797232681], 0.20426913052844223),
}  # fmt: skip
"""Harrell's C, Uno's C, AUC(t), Brier(t) and integrated Brier by scikit-survival 0.28.0 of the cohorts of the next
test, printed by a program of its own; its wheels need numpy 2, so that it cannot be installed beside this package."""


@pytest.mark.parametrize("seed", REFERENCE)
def test_scikit_survival_says_the_same(seed: int) -> None:
    random = np.random.default_rng(seed)
    risk = np.round(random.standard_normal(60), 1)
    death, end = random.exponential(10 * np.exp(-risk)), random.exponential(15, size=60)
    time, event = np.minimum(death, end), death <= end
    moments = np.quantile(time[event], [0.25, 0.5, 0.75])
    curves = np.exp(-moments[None] / 10 * np.exp(risk)[:, None])
    ones = np.ones((1, 60))
    censoring = censoring_curve(time, event, ones)
    harrell, uno, areas, briers, integrated = REFERENCE[seed]
    assert concordance(time, event, risk, ones)[0] == pytest.approx(harrell, rel=1e-9)
    assert concordance(time, event, risk, ones, censoring)[0] == pytest.approx(uno, rel=1e-9)
    found = [auc_at(time, event, risk, moment, ones, censoring)[0] for moment in moments]
    assert found == pytest.approx(areas, rel=1e-9)
    scores = [
        brier_at(time, event, curve, moment, ones, censoring) for moment, curve in zip(moments, curves.T, strict=True)
    ]
    assert np.concatenate(scores).tolist() == pytest.approx(briers, rel=1e-9)
    assert mean_over_time(np.stack(scores, axis=1), moments)[0] == pytest.approx(integrated, rel=1e-9)
