from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from span_sparse.metrics import calibration
from span_sparse.metrics.ranking import weighted_mean


def predictions(num_classes: int, number: int = 80) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(num_classes)
    probabilities = random.dirichlet(np.ones(num_classes), size=number)
    return probabilities, random.integers(num_classes, size=number)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_brier_is_that_of_scikit_learn(num_classes: int) -> None:
    probabilities, true = predictions(num_classes)
    found = weighted_mean(calibration.brier_terms(probabilities, true), np.ones((1, len(true))))[0]
    if num_classes == 2:
        assert found == pytest.approx(brier_score_loss(true, probabilities[:, 1]))
    else:
        assert found == pytest.approx(brier_score_loss(true, probabilities, labels=np.arange(num_classes)))


@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_calibration_error_is_that_of_torchmetrics(num_classes: int) -> None:
    probabilities, true = predictions(num_classes)
    confidence, outcome = calibration.confidence_and_outcome(probabilities, true)
    found = calibration.calibration_error(confidence, outcome, np.ones((1, len(true))))[0]
    scores, labels = torch.from_numpy(probabilities), torch.from_numpy(true)
    if num_classes == 2:
        expected = binary_calibration_error(scores[:, 1].contiguous(), labels, n_bins=10)
    else:
        expected = multiclass_calibration_error(scores, labels, num_classes, n_bins=10)
    assert found == pytest.approx(float(expected), abs=1e-6)


def test_a_drawing_is_the_sample_with_rows_repeated() -> None:
    probabilities, true = predictions(2, 30)
    weights = np.random.default_rng(1).multinomial(30, np.full(30, 1 / 30), size=5).astype(float)
    found = calibration.calibration_error(*calibration.confidence_and_outcome(probabilities, true), weights)
    for number, row in enumerate(weights):
        rows = np.repeat(np.arange(30), row.astype(int))
        alone = calibration.confidence_and_outcome(probabilities[rows], true[rows])
        assert found[number] == pytest.approx(calibration.calibration_error(*alone, np.ones((1, 30)))[0])


def test_edges_belong_to_the_bin_below() -> None:
    confidence = np.array([0.0, 0.1, 0.1000001, 0.5, 0.95, 1.0])
    assert calibration.bin_of(confidence).tolist() == [0, 0, 1, 4, 9, 9]
