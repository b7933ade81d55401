from __future__ import annotations

import torch

from span_sparse.datasets import SlideDataset
from span_sparse.datasets.augment import square_symmetry
from span_sparse.datasets.slide_dataset import EpochIndex, SlideItem
from span_sparse.store import FeatureStore


def dataset(cohort, **settings) -> SlideDataset:
    items = [SlideItem("s03", "p03", 1), SlideItem("s00", "p00")]
    return SlideDataset(FeatureStore(cohort.store), items, **settings)


def test_a_plain_index_gives_the_slide_as_stored(tiny_cohort) -> None:
    record = FeatureStore(tiny_cohort.store).read("s03")
    sample = dataset(tiny_cohort, augment_seed=0)[0]
    assert (sample.index, sample.label) == (0, 1)
    assert sample.features.numpy().tobytes() == record.features.tobytes()
    assert sample.grid.numpy().tobytes() == record.grid.tobytes()
    assert dataset(tiny_cohort)[1].label == -1


def test_the_symmetry_depends_on_seed_epoch_and_slide_alone(tiny_cohort) -> None:
    plain = dataset(tiny_cohort)[0].grid
    allowed = {tuple(square_symmetry(plain, symmetry).flatten().tolist()): symmetry for symmetry in range(8)}

    def symmetries(seed: int) -> list[int]:
        data = dataset(tiny_cohort, augment_seed=seed)
        return [allowed[tuple(data[EpochIndex(0, epoch)].grid.flatten().tolist())] for epoch in range(40)]

    first = symmetries(0)
    assert set(first) == set(range(8))
    assert symmetries(0) == first
    assert symmetries(1) != first
    without = dataset(tiny_cohort)
    assert all(torch.equal(without[EpochIndex(0, epoch)].grid, plain) for epoch in range(10))


def test_a_cached_slide_is_not_read_again_and_the_budget_holds(tiny_cohort) -> None:
    reads: list[str] = []

    class CountingStore(FeatureStore):
        def read(self, slide_id: str):
            reads.append(slide_id)
            return super().read(slide_id)

    items = [SlideItem("s03", "p03", 1), SlideItem("s00", "p00")]
    store = CountingStore(tiny_cohort.store)
    size = sum(store.read(name).features.nbytes + store.read(name).grid.nbytes for name in ("s00", "s03"))
    for mib, expected in ((size / 2**20, 2), ((size - 1) / 2**20, 3), (0.0, 4)):
        reads.clear()
        data = SlideDataset(store, items, cache_mib=mib)
        assert [data[index].index for index in (0, 1, 0, 1)] == [0, 1, 0, 1]
        assert len(reads) == expected
