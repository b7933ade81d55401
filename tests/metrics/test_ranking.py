"""Figures of all drawings against scikit-learn called for each drawing with its weights."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from span_sparse.metrics import ranking


@pytest.fixture
def drawings():
    """Scores with many ties, classes, and drawings in which some rows have no weight."""
    random = np.random.default_rng(4)
    positive = random.random(60) < 0.4
    scores = np.round(random.random(60) * 0.7 + 0.3 * positive, 1)
    weights = random.multinomial(60, np.full(60, 1 / 60), size=20).astype(float)
    return scores, positive, weights


def test_auc_and_average_precision_are_those_of_scikit_learn(drawings) -> None:
    scores, positive, weights = drawings
    counts = ranking.rank_counts(scores, positive, weights)
    areas, precisions = ranking.auc(counts), ranking.average_precision(counts)
    for number, row in enumerate(weights):
        assert areas[number] == pytest.approx(roc_auc_score(positive, scores, sample_weight=row), abs=1e-12)
        expected = average_precision_score(positive, scores, sample_weight=row)
        assert precisions[number] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("point", [0.5, 0.9, 0.95, 1.0])
def test_operating_points_are_the_best_of_the_roc_curve(drawings, point: float) -> None:
    scores, positive, weights = drawings
    counts = ranking.rank_counts(scores, positive, weights)
    sensitivity = ranking.sensitivity_at_specificity(counts, point)
    specificity = ranking.specificity_at_sensitivity(counts, point)
    for number, row in enumerate(weights):
        false_rate, true_rate, _ = roc_curve(positive, scores, sample_weight=row, drop_intermediate=False)
        assert sensitivity[number] == pytest.approx(true_rate[1 - false_rate >= point - 1e-9].max())
        assert specificity[number] == pytest.approx((1 - false_rate[true_rate >= point - 1e-9]).max())


def test_operating_points_by_hand() -> None:
    """Positives 0.9, 0.6, 0.3; negatives 0.8, 0.4, 0.2, 0.1."""
    scores = np.array([0.9, 0.6, 0.3, 0.8, 0.4, 0.2, 0.1])
    counts = ranking.rank_counts(scores, np.arange(7) < 3, np.ones((1, 7)))
    assert ranking.sensitivity_at_specificity(counts, 0.75).tolist() == [pytest.approx(2 / 3)]
    assert ranking.sensitivity_at_specificity(counts, 0.95).tolist() == [pytest.approx(1 / 3)]
    assert ranking.specificity_at_sensitivity(counts, 0.95).tolist() == [0.5]


def test_a_side_without_weight_has_no_figure() -> None:
    counts = ranking.rank_counts(np.array([0.1, 0.9]), np.array([False, True]), np.array([[1.0, 0.0], [1.0, 1.0]]))
    assert np.isnan(ranking.auc(counts)).tolist() == [True, False]
    assert np.isnan(ranking.sensitivity_at_specificity(counts, 0.9)).tolist() == [True, False]
    assert np.isnan(ranking.specificity_at_sensitivity(counts, 0.9)).tolist() == [True, False]
