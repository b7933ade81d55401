from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from span_sparse.datasets import SlideDataset, collate
from span_sparse.datasets.prefetch import Placement
from span_sparse.datasets.slide_dataset import SlideItem
from span_sparse.errors import StoreError
from span_sparse.store import FeatureStore
from span_sparse.training.slides_in_turn import SlidesInTurn

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
from fake_lane import FakeLane

CPU = torch.device("cpu")
AHEAD = Placement(CPU, lane=FakeLane)


def items(*numbers: int) -> list[SlideItem]:
    return [SlideItem(f"s{number:02d}", "p", number % 3) for number in numbers]


@pytest.mark.parametrize("placement", [None, AHEAD])
def test_slides_come_as_they_are_asked_for(tiny_cohort, placement) -> None:
    """Expected or not, with gaps and repetitions."""
    store = FeatureStore(tiny_cohort.store)
    slides = SlidesInTurn(store, CPU, placement)
    slides.expect(items(0, 1, 2, 5))
    for item in items(0, 2, 5, 5, 7, 1, 2):
        batch = slides.batch(item)
        expected = collate([SlideDataset(store, [item])[0]])
        assert torch.equal(batch.features, expected.features)
        assert torch.equal(batch.coords, expected.coords)
        assert batch.labels.tolist() == [item.label]


def test_the_next_slide_is_read_meanwhile(tiny_cohort, monkeypatch) -> None:
    store, read = FeatureStore(tiny_cohort.store), []
    one = store.read
    monkeypatch.setattr(store, "read", lambda slide: (read.append(slide), one(slide))[1])
    slides = SlidesInTurn(store, CPU, AHEAD)
    slides.expect(items(0, 1, 2))
    slides.batch(items(0)[0])
    slides.batch(items(1)[0])
    slides.batch(items(2)[0])
    assert read == ["s00", "s01", "s02"]  # none twice


@pytest.mark.parametrize("placement", [None, AHEAD])
def test_a_slide_that_fails_is_its_own_failure(tiny_cohort, placement) -> None:
    (shard,) = (tiny_cohort.store / "s01" / "features").rglob("0/0")
    os.truncate(shard, 10)
    slides = SlidesInTurn(FeatureStore(tiny_cohort.store), CPU, placement)
    slides.expect(items(0, 1, 2, 3))
    assert slides.batch(items(0)[0]).num_slides == 1
    with pytest.raises(StoreError, match="s01"):
        slides.batch(items(1)[0])
    for item in items(2, 3):
        assert slides.batch(item).labels.tolist() == [item.label]
