"""C-index and Dice against loops over pairs, lifelines and torchmetrics."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lifelines.utils import concordance_index as lifelines_c
from torchmetrics.functional.classification import binary_f1_score, binary_jaccard_index

from span_sparse.metrics import concordance_index, dice, intersection_over_union

PATIENTS = st.lists(st.tuples(st.integers(1, 6), st.booleans(), st.integers(0, 4)), min_size=1, max_size=12)


@given(PATIENTS)
def test_every_ordered_pair_counts_once(patients) -> None:
    concordant = ordered = 0.0
    for first, second in itertools.permutations(patients, 2):
        (time, event, risk), (other_time, other_event, other_risk) = first, second
        if event and (time < other_time or (time == other_time and not other_event)):
            ordered += 1
            concordant += 1.0 if risk > other_risk else 0.5 if risk == other_risk else 0.0
    time, event, risk = (np.array(column) for column in zip(*patients, strict=True))
    found = concordance_index(time.astype(float), event.astype(bool), risk.astype(float))
    assert found == pytest.approx(concordant / ordered) if ordered else np.isnan(found)


@pytest.mark.parametrize("seed", range(5))
def test_lifelines_says_the_same_without_tied_times(seed: int) -> None:
    random = np.random.default_rng(seed)
    time, event = random.permutation(60) + 1.0, random.random(60) < 0.6
    risk = np.round(random.standard_normal(60) - 0.05 * time, 1)
    assert concordance_index(time, event, risk) == pytest.approx(lifelines_c(time, -risk, event))


def test_agreement_of_patches_is_torchmetrics() -> None:
    random = np.random.default_rng(0)
    truth, predicted = random.random((7, 30)) < 0.3, random.random((7, 30)) < 0.4
    counts = (truth & predicted).sum(1), (~truth & predicted).sum(1), (truth & ~predicted).sum(1)
    pairs = [(torch.from_numpy(ours), torch.from_numpy(true)) for ours, true in zip(predicted, truth, strict=True)]
    np.testing.assert_allclose(dice(*counts), [binary_f1_score(ours, true) for ours, true in pairs], rtol=1e-6)
    np.testing.assert_allclose(
        intersection_over_union(*counts), [binary_jaccard_index(ours, true.long()) for ours, true in pairs], rtol=1e-6
    )
    assert np.isnan(dice(np.array([0]), np.array([0]), np.array([0]))).all()
