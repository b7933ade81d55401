from __future__ import annotations

import torch
import torch.distributed

from span_sparse.training.outcomes import OutcomeCollector, Outcomes, by_case


def outcomes(*rows: tuple[int, float]) -> Outcomes:
    """Rows of (index, score)."""
    indices, scores = zip(*rows, strict=True)
    return Outcomes(torch.tensor(indices), {"score": torch.tensor(scores), "pair": torch.tensor([scores, scores]).T})


def test_gathered_rows_are_in_order_each_slide_once() -> None:
    collector = OutcomeCollector()
    collector.add(outcomes((3, 0.75), (1, 0.25)))
    collector.add(outcomes((0, 0.0), (3, 0.75), (2, 0.5)))
    rows = collector.gather()
    assert rows.indices.tolist() == [0, 1, 2, 3]
    assert rows["score"].tolist() == [0.0, 0.25, 0.5, 0.75]
    assert rows["pair"].tolist() == [[0.0, 0.0], [0.25, 0.25], [0.5, 0.5], [0.75, 0.75]]
    collector.add(outcomes((7, 0.5)))
    assert collector.gather().indices.tolist() == [7]


def test_rows_of_all_processes_are_gathered(monkeypatch) -> None:
    """The other process repeats slide 1, as a padded or idle process does."""
    other = [outcomes((1, 0.25), (3, 0.75))]

    def all_gather(shares, mine) -> None:
        shares[:] = [mine, other]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather)
    collector = OutcomeCollector()
    collector.add(outcomes((2, 0.5), (1, 0.25)))
    rows = collector.gather()
    assert rows.indices.tolist() == [1, 2, 3]
    assert rows["score"].tolist() == [0.25, 0.5, 0.75]


def test_a_case_is_the_mean_of_its_slides() -> None:
    values = torch.tensor([[1.0, 8.0], [5.0, 2.0], [3.0, 4.0], [8.0, 0.0]])
    assert by_case(values, ["b", "a", "b", "b"]).tolist() == [[4.0, 4.0], [5.0, 2.0]]
    assert by_case(values[:, 0], ["x", "y", "z", "x"]).tolist() == [4.5, 5.0, 3.0]
