from __future__ import annotations

import pytest

from span_sparse.datasets.samplers import EvaluationSampler, TrainingSampler


@pytest.mark.parametrize(("num_slides", "world_size"), [(1, 1), (7, 1), (7, 2), (8, 2), (5, 4), (2, 3)])
def test_training_shows_every_slide_and_every_process_as_many(num_slides: int, world_size: int) -> None:
    samplers = [TrainingSampler(num_slides, seed=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    for epoch in (0, 1, 5):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        shares = [list(sampler) for sampler in samplers]
        assert {len(share) for share in shares} == {-(-num_slides // world_size)} == {len(samplers[0])}
        seen = [request.slide for share in shares for request in share]
        assert set(seen) == set(range(num_slides))
        assert len(seen) - num_slides < world_size
        assert {request.epoch for share in shares for request in share} == {epoch}


def test_every_epoch_has_its_own_order_which_the_seed_repeats() -> None:
    def orders(seed: int) -> list[list[int]]:
        sampler = TrainingSampler(30, seed=seed)
        found = []
        for epoch in range(3):
            sampler.set_epoch(epoch)
            found.append([request.slide for request in sampler])
        return found

    first = orders(0)
    assert first[0] != first[1] != first[2] != first[0]
    assert orders(0) == first
    assert orders(1) != first


def test_balanced_classes_come_equally_often_and_no_slide_returns_before_the_others_of_its_class() -> None:
    labels = [0] * 20 + [1] * 3 + [2] * 8
    samplers = [TrainingSampler(31, seed=0, rank=rank, world_size=2, balance=labels) for rank in range(2)]
    seen: set[int] = set()
    for epoch in range(6):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        first, second = ([request.slide for request in sampler] for sampler in samplers)
        assert len(first) == len(second) == 16
        order = [slide for pair in zip(first, second, strict=True) for slide in pair][:31]
        counts = [sum(labels[slide] == label for slide in order) for label in range(3)]
        assert sorted(counts) == [10, 10, 11]
        assert {order.count(slide) for slide in (20, 21, 22)} <= {3, 4}  # ten or eleven draws of three slides
        assert max(order.count(slide) for slide in range(20)) == 1
        seen |= set(order)
    assert seen == set(range(31))  # what one epoch leaves out, another one has
    assert order != sorted(order)


@pytest.mark.parametrize(("num_slides", "world_size"), [(1, 1), (7, 2), (40, 3), (5, 5)])
def test_evaluation_shows_every_slide_once_over_all_processes(num_slides: int, world_size: int) -> None:
    shares = [list(EvaluationSampler(num_slides, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert sorted(index for share in shares for index in share) == list(range(num_slides))
    assert all(share == sorted(share) for share in shares)


def test_a_process_without_a_slide_repeats_one() -> None:
    shares = [list(EvaluationSampler(2, rank=rank, world_size=4)) for rank in range(4)]
    assert shares == [[0], [1], [1], [1]]
