from __future__ import annotations

import numpy as np
import pytest
from lifelines import KaplanMeierFitter
from lifelines.statistics import logrank_test
from lifelines.utils import median_survival_times

from span_sparse.metrics import kaplan_meier, log_rank
from span_sparse.metrics.censoring import censoring_curve, median_time


def cohort(seed: int, number: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times with ties between events and censorings; a group."""
    random = np.random.default_rng(seed)
    group = random.random(number) < 0.5
    time = np.ceil(random.exponential(np.where(group, 8.0, 14.0)))
    return time, random.random(number) < 0.6, group


@pytest.mark.parametrize("seed", range(4))
def test_the_curve_is_that_of_lifelines(seed: int) -> None:
    time, event, _ = cohort(seed)
    fitter = KaplanMeierFitter().fit(time, event)
    curve = kaplan_meier(time, event)
    np.testing.assert_allclose(curve.time, fitter.survival_function_.index)
    np.testing.assert_allclose(curve.survival, fitter.survival_function_["KM_estimate"], atol=1e-12)
    bounds = fitter.confidence_interval_.to_numpy()
    inside = (curve.survival > 0) & (curve.survival < 1)
    np.testing.assert_allclose(np.stack([curve.low, curve.high], 1)[inside], bounds[inside], atol=1e-9)
    table = fitter.event_table
    assert curve.at_risk[1:].tolist() == table["at_risk"].astype(int).tolist()[1:]
    assert curve.events.tolist() == table["observed"].tolist()
    assert curve.censored.tolist() == table["censored"].tolist()
    assert median_time(curve) == median_survival_times(fitter.survival_function_)


def test_the_curve_by_hand() -> None:
    """The textbook's six: 1, 2+, 3, 3, 4+, 5 → 5/6, 5/6·2/4, then 0."""
    curve = kaplan_meier(np.array([1, 2, 3, 3, 4, 5.0]), np.array([1, 0, 1, 1, 0, 1], bool))
    assert curve.survival.tolist() == pytest.approx([1, 5 / 6, 5 / 6, 5 / 12, 5 / 12, 0])
    assert np.isnan(median_time(kaplan_meier(np.array([1.0, 2.0]), np.array([False, False]))))


@pytest.mark.parametrize("seed", range(4))
def test_log_rank_is_that_of_lifelines(seed: int) -> None:
    time, event, group = cohort(seed)
    expected = logrank_test(time[group], time[~group], event[group], event[~group])
    assert log_rank(time, event, group) == pytest.approx((expected.test_statistic, expected.p_value), rel=1e-9)


def test_nothing_to_compare() -> None:
    time = np.array([1.0, 2.0, 3.0])
    assert np.isnan(log_rank(time, np.ones(3, bool), np.ones(3, bool))).all()
    assert np.isnan(log_rank(time, np.zeros(3, bool), time > 1)).all()


def test_the_chance_not_to_be_censored_by_hand_and_by_lifelines() -> None:
    """Events 2, 4; censored 1, 4, 6: at 4 the event comes first, so one of two is lost there."""
    time, event = np.array([1.0, 2, 4, 4, 6]), np.array([0, 1, 1, 0, 0], bool)
    curve = censoring_curve(time, event, np.ones((1, 5)))
    assert curve.at(np.array([0.5, 1, 2, 4, 6]))[0].tolist() == pytest.approx([1, 4 / 5, 4 / 5, 4 / 10, 0])
    assert curve.before(np.array([1.0, 4, 6]))[0].tolist() == pytest.approx([1, 4 / 5, 4 / 10])
    times, events, _ = cohort(9)
    random = np.random.default_rng(0)
    times = times + random.random(len(times))  # lifelines counts a censoring at the time of an event differently
    weights = random.multinomial(80, np.full(80, 1 / 80), size=4).astype(float)
    found = censoring_curve(times, events, weights).at(np.sort(times))
    for number, row in enumerate(weights):
        rows = np.repeat(np.arange(80), row.astype(int))
        fitter = KaplanMeierFitter().fit(times[rows], ~events[rows])
        np.testing.assert_allclose(found[number], fitter.survival_function_at_times(np.sort(times)), atol=1e-12)
