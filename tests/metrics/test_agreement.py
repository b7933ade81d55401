from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, cohen_kappa_score, f1_score, recall_score

from span_sparse.metrics import agreement


@pytest.mark.parametrize("num_classes", [2, 5])
def test_figures_of_drawings_are_those_of_scikit_learn(num_classes: int) -> None:
    random = np.random.default_rng(num_classes)
    true = np.r_[np.arange(num_classes), random.integers(num_classes, size=55)]
    predicted = np.where(random.random(len(true)) < 0.5, true, random.integers(num_classes, size=len(true)))
    weights = random.multinomial(60, np.full(len(true), 1 / len(true)), size=12).astype(float)
    weights[:, :num_classes] += 1  # every class is in every drawing
    confusion = agreement.confusion_counts(true, predicted, num_classes, weights)
    for number, row in enumerate(weights):
        rows = np.repeat(np.arange(len(true)), row.astype(int))
        pair = true[rows], predicted[rows]
        assert agreement.accuracy(confusion)[number] == pytest.approx(accuracy_score(*pair))
        assert agreement.balanced_accuracy(confusion)[number] == pytest.approx(balanced_accuracy_score(*pair))
        assert agreement.macro_f1(confusion)[number] == pytest.approx(f1_score(*pair, average="macro"))
        assert agreement.kappa(confusion)[number] == pytest.approx(cohen_kappa_score(*pair))
        quadratic = cohen_kappa_score(*pair, weights="quadratic")
        assert agreement.kappa(confusion, "quadratic")[number] == pytest.approx(quadratic)
        if num_classes == 2:
            sensitivity, specificity = agreement.sensitivity_specificity(confusion)
            assert sensitivity[number] == pytest.approx(recall_score(*pair))
            assert specificity[number] == pytest.approx(recall_score(*pair, pos_label=0))


def test_kappa_by_hand() -> None:
    """20 agree on yes, 15 on no, 5 and 10 disagree: p_o = 0.7, p_e = 0.5·0.6 + 0.5·0.4 = 0.5, kappa 0.4."""
    assert agreement.kappa(np.array([[[20.0, 5.0], [10.0, 15.0]]])).tolist() == [pytest.approx(0.4)]
    assert np.isnan(agreement.kappa(np.array([[[7.0, 0.0], [0.0, 0.0]]]))).all()
