from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from span_sparse.metrics import delong_test


def cohort(seed: int, number: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    positive = np.arange(number) % 3 == 0
    shared = random.standard_normal(number) + positive
    return positive, np.round(shared + random.standard_normal(number), 1), shared + random.standard_normal(number)


@pytest.mark.parametrize("seed", range(3))
def test_the_covariance_is_that_of_all_pairs(seed: int) -> None:
    positive, *scores = cohort(seed)
    found = delong_test(positive, *scores)
    assert found.aucs == pytest.approx([roc_auc_score(positive, score) for score in scores])
    kernels = []
    for score in scores:
        above, below = score[positive][:, None], score[~positive][None]
        kernels.append((above > below) + 0.5 * (above == below))
    tens = np.cov([kernel.mean(axis=1) for kernel in kernels])
    ones = np.cov([kernel.mean(axis=0) for kernel in kernels])
    covariance = tens / positive.sum() + ones / (~positive).sum()
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert found.standard_error == pytest.approx(error)
    assert found.z == pytest.approx((found.aucs[1] - found.aucs[0]) / error)


def test_p_is_uniform_when_the_models_are_alike() -> None:
    small = sum(delong_test(*cohort(seed, 90)).p < 0.1 for seed in range(300))
    assert 15 <= small <= 48  # 30 expected, standard deviation 5


def test_the_same_scores_and_a_perfect_difference() -> None:
    positive, first, _ = cohort(0)
    same = delong_test(positive, first, first * 2)
    assert (same.difference, same.p) == (0.0, 1.0)
    apart = delong_test(positive, positive.astype(float), -positive.astype(float))
    assert (apart.difference, apart.p) == (-1.0, 0.0)
    with pytest.raises(ValueError, match="two positives and two negatives"):
        delong_test(np.arange(5) == 0, np.arange(5.0), np.arange(5.0))
