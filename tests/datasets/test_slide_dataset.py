from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
import torch

from span_sparse.datasets import SegmentationTask, SlideDataset
from span_sparse.datasets.augment import AugmentationSettings, square_symmetry
from span_sparse.datasets.slide_dataset import EpochIndex, SlideItem
from span_sparse.errors import StoreError
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


@pytest.fixture
def annotated(tiny_cohort, monkeypatch):
    """Slide s03 has ratios that are worked out from its first feature; s00 has none."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    store = FeatureStore(tiny_cohort.store)
    record = store.read("s03")
    tumor = 1 / (1 + np.exp(-3 * record.features[:, 0]))
    ratios = np.stack([np.zeros_like(tumor), tumor], axis=1).astype(np.float32)
    store.write(dataclasses.replace(record, ratios=ratios, ratio_classes=("stroma", "tumor")), overwrite=True)
    return tiny_cohort


TASK = SegmentationTask(("tumor",), 0.5)


def test_ratios_and_labels_of_the_classes_asked_for(annotated) -> None:
    record = FeatureStore(annotated.store).read("s03")
    sample = dataset(annotated, segmentation=TASK)[0]
    assert sample.patch_ratios.numpy().tolist() == record.ratios[:, [1]].tolist()
    assert sample.patch_labels.tolist() == (record.features[:, 0] >= 0).astype(int).tolist()
    both = dataset(annotated, segmentation=SegmentationTask(("tumor", "stroma")))[0]
    assert both.patch_ratios.numpy().tolist() == record.ratios[:, ::-1].tolist()
    without = dataset(annotated, segmentation=TASK)[1]
    assert without.patch_ratios.isnan().all()
    assert set(without.patch_labels.tolist()) == {-1}
    assert without.patch_ratios.shape == (len(without.grid), 1)
    assert dataset(annotated)[0].patch_labels is None
    with pytest.raises(
        StoreError, match=r"'s03' is annotated with the classes \['stroma', 'tumor'\], without \['fat'\]"
    ):
        dataset(annotated, segmentation=SegmentationTask(("tumor", "fat")))[0]


@pytest.mark.parametrize("drop", [0.0, 0.4])
def test_augmentation_keeps_labels_with_their_patches(annotated, drop) -> None:
    settings = AugmentationSettings(probability=1.0, token_drop=drop)
    data = dataset(annotated, segmentation=TASK, augment_seed=3, augmentation=settings, cache_mib=1.0)
    for epoch in range(5):
        sample = data[EpochIndex(0, epoch)]
        assert sample.patch_labels.tolist() == (sample.features[:, 0] >= 0).long().tolist()
        expected = 1 / (1 + torch.exp(-3 * sample.features[:, 0]))
        assert torch.allclose(sample.patch_ratios[:, 0], expected, atol=1e-6)
        assert len(sample.grid) == len(sample.patch_labels)
        assert drop or len(sample.grid) == 21
    assert not drop or len(sample.grid) < 21
