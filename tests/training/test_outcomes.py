from __future__ import annotations

import math

import pytest
import torch
import torch.distributed

from span_sparse.training.outcomes import OutcomeCollector, Outcomes


def outcomes(*rows: tuple[int, int, float]) -> Outcomes:
    """Rows of (index, label, probability of class 1)."""
    positive = torch.tensor([row[2] for row in rows])
    labels = torch.tensor([row[1] for row in rows])
    losses = -torch.where(labels == 1, positive, 1 - positive).log()
    return Outcomes(
        torch.tensor([row[0] for row in rows]),
        labels,
        torch.stack([1 - positive, positive], dim=1),
        losses.masked_fill(labels < 0, torch.nan),
    )


def test_figures_by_hand() -> None:
    rows = outcomes((0, 0, 0.2), (1, 1, 0.6), (2, 0, 0.7), (3, 1, 0.9), (4, 1, 0.4), (5, -1, 0.99))
    values = rows.metrics()
    # pairs (positive above negative): 0.6 > 0.2, 0.9 > 0.2, 0.4 > 0.2, 0.9 > 0.7
    assert values["auc"] == pytest.approx(4 / 6)
    assert values["balanced_accuracy"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    expected = -(math.log(0.8) + math.log(0.6) + math.log(0.3) + math.log(0.9) + math.log(0.4)) / 5
    assert values["loss"] == pytest.approx(expected)


def test_no_auc_where_a_class_is_missing_and_nothing_without_labels() -> None:
    assert set(outcomes((0, 1, 0.2), (1, 1, 0.6)).metrics()) == {"loss", "balanced_accuracy"}
    assert outcomes((0, -1, 0.2), (1, -1, 0.6)).metrics() == {}


def test_gathered_rows_are_in_order_each_slide_once() -> None:
    collector = OutcomeCollector()
    collector.add(outcomes((3, 1, 0.3), (1, 0, 0.1)))
    collector.add(outcomes((0, 1, 0.0), (3, 1, 0.3), (2, -1, 0.2)))
    rows = collector.gather()
    assert rows.indices.tolist() == [0, 1, 2, 3]
    assert rows.labels.tolist() == [1, 0, -1, 1]
    assert rows.probabilities[:, 1].tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3])
    collector.add(outcomes((7, 1, 0.5)))
    assert collector.gather().indices.tolist() == [7]


def test_rows_of_all_processes_are_gathered(monkeypatch) -> None:
    """The other process repeats slide 1, as a padded or idle process does."""
    other = [outcomes((1, 0, 0.25), (3, 0, 0.75))]

    def all_gather(shares, mine) -> None:
        shares[:] = [mine, other]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather)
    collector = OutcomeCollector()
    collector.add(outcomes((2, 1, 0.5), (1, 0, 0.25)))
    rows = collector.gather()
    assert rows.indices.tolist() == [1, 2, 3]
    assert rows.probabilities[:, 1].tolist() == [0.25, 0.5, 0.75]
