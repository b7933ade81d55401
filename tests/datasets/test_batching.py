from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from span_sparse.datasets import SlideDataset, SlideSample
from span_sparse.datasets.batch import subsample
from span_sparse.datasets.batching import OrderedBatches, TokenBudgetSampler
from span_sparse.datasets.datamodule import SlideDataModule
from span_sparse.datasets.slide_dataset import EpochIndex, SlideItem
from span_sparse.errors import ConfigError
from span_sparse.store import FeatureStore


def counts(num_slides: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).lognormal(6, 1, num_slides).clip(10, 20_000).astype(int).tolist()


def all_ranks(num_tokens, max_tokens: int, world_size: int, epoch: int = 0, seed: int = 0) -> list[list[list[int]]]:
    """`[rank][step][slide]`, as each process sees it."""
    shares = []
    for rank in range(world_size):
        sampler = TokenBudgetSampler(num_tokens, max_tokens=max_tokens, seed=seed, rank=rank, world_size=world_size)
        sampler.set_epoch(epoch)
        shares.append([[request.slide for request in batch] for batch in sampler])
        assert len(shares[-1]) == len(sampler)
    return shares


@pytest.mark.parametrize("num_slides", [1, 2, 7, 60])
@pytest.mark.parametrize("max_tokens", [1, 700, 4_000, 10**6])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_every_slide_is_there_within_the_budget_in_as_many_steps_for_all(num_slides, max_tokens, world_size) -> None:
    num_tokens = counts(num_slides)
    for epoch in range(5):
        shares = all_ranks(num_tokens, max_tokens, world_size, epoch)
        assert len({len(share) for share in shares}) == 1
        batches = [batch for share in shares for batch in share]
        assert all(batches)
        for batch in batches:
            assert sum(num_tokens[slide] for slide in batch) <= max_tokens or len(batch) == 1
            assert len(set(batch)) == len(batch)
        seen = Counter(slide for batch in batches for slide in batch)
        assert set(seen) == set(range(num_slides))
        if num_slides >= world_size * len(shares[0]):
            assert set(seen.values()) == {1}  # only too few slides are repeated


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_number_of_steps_does_not_depend_on_epoch_and_rank(world_size: int) -> None:
    """One order in five needs a batch more than the reference orders here, and is drawn again."""
    num_tokens = counts(100)
    shares = [all_ranks(num_tokens, 1_500, world_size, epoch) for epoch in range(30)]
    assert len({len(share) for ranks in shares for share in ranks}) == 1


def test_processes_of_a_step_have_as_much_to_do_and_batches_are_full() -> None:
    num_tokens = [min(count, 4_000) for count in counts(400)]
    shares = all_ranks(num_tokens, 5_000, 4)
    loads = np.array([[sum(num_tokens[slide] for slide in batch) for batch in share] for share in shares])
    assert loads.sum() / (4 * loads.max(axis=0).sum()) > 0.95  # share of the time in which nobody waits
    assert loads.mean() > 0.9 * 5_000
    shuffled = np.random.default_rng(0).permutation(num_tokens).reshape(4, -1)
    assert shuffled.sum() / (4 * shuffled.max(axis=0).sum()) < 0.7  # what slides one by one would give


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    num_tokens = counts(50)
    first = all_ranks(num_tokens, 3_000, 2)
    assert all_ranks(num_tokens, 3_000, 2) == first
    assert all_ranks(num_tokens, 3_000, 2, epoch=1) != first
    assert all_ranks(num_tokens, 3_000, 2, seed=1) != first
    mates = [
        {frozenset(batch) for share in all_ranks(num_tokens, 3_000, 2, epoch) for batch in share} for epoch in (0, 1)
    ]
    assert len(mates[0] & mates[1]) < len(mates[0]) / 2  # slides meet others in the next epoch


def test_subsampling_is_a_new_choice_in_every_epoch_of_training_and_none_in_evaluation(tiny_cohort) -> None:
    store = FeatureStore(tiny_cohort.store)
    items = [SlideItem(slide, slide, 0) for slide in store.slide_ids]
    whole, limited = SlideDataset(store, items), SlideDataset(store, items, max_tokens=20)
    assert limited.num_tokens() == [min(20, count) for count in whole.num_tokens()]
    assert [len(limited[index].grid) for index in range(len(items))] == whole.num_tokens()
    full = whole[9]
    cells = [[tuple(cell) for cell in limited[EpochIndex(9, epoch)].grid.tolist()] for epoch in (0, 0, 1)]
    assert cells[0] == cells[1] != cells[2]
    assert len(cells[0]) == len(set(cells[0])) == 20
    rows = {tuple(cell): row for cell, row in zip(full.grid.tolist(), full.features, strict=True)}
    sample = limited[EpochIndex(9, 0)]
    assert all(torch.equal(row, rows[cell]) for cell, row in zip(cells[0], sample.features, strict=True))
    small = limited[EpochIndex(0, 0)]
    assert len(small.grid) == 12  # fewer than the limit


def test_subsampling_takes_the_labels_of_patches_along() -> None:
    number = torch.arange(11)
    sample = SlideSample(
        0,
        features=number[:, None].float(),
        grid=torch.stack([number, number], 1).int(),
        label=0,
        patch_ratios=number[:, None].float(),
        patch_labels=number,
    )
    few = subsample(sample, 5, torch.Generator().manual_seed(0))
    assert few.patch_labels is not None
    assert few.patch_ratios is not None
    kept = few.patch_labels.tolist()
    assert kept == sorted(kept)
    assert kept != list(range(5))
    assert few.features[:, 0].tolist() == few.grid[:, 1].tolist() == few.patch_ratios[:, 0].tolist() == kept


def module(cohort, **settings) -> SlideDataModule:
    data = SlideDataModule(str(cohort.store), str(cohort.csv), augment=False, **settings)
    data.setup()
    return data


def test_the_data_module_makes_batches_by_tokens(tiny_cohort, caplog) -> None:
    """Training slides have 12, 15, ..., 27 patches, together 117."""
    data = module(tiny_cohort, max_tokens=60)
    with caplog.at_level("INFO"):
        batches = list(data.train_dataloader())
    assert not caplog.records
    assert sorted(index for batch in batches for index in batch.indices.tolist()) == list(range(6))
    assert max(len(batch.coords) for batch in batches) <= 60
    assert len(batches) < 6
    assert [batch.num_slides for batch in data.val_dataloader()] == [1] * 4
    data = module(tiny_cohort, max_tokens=20, num_workers=1)
    with caplog.at_level("INFO"):
        batches = list(data.train_dataloader())
    assert "3 of 6 training slides have more than max_tokens 20 patches, up to 27" in caplog.text
    assert sorted(len(batch.coords) for batch in batches) == [12, 15, 18, 21, 24, 27]
    data = module(tiny_cohort, max_tokens=20, max_tokens_per_slide=10)
    assert sorted(len(batch.coords) for batch in data.train_dataloader()) == [20, 20, 20]
    assert len(next(iter(data.val_dataloader())).coords) == 12 + 3 * 6


def test_budgets_that_cannot_work(tiny_cohort) -> None:
    for setting in ("max_tokens", "max_tokens_per_slide"):
        with pytest.raises(ConfigError, match=f"{setting} is 0, expected at least 1, or null"):
            module(tiny_cohort, **{setting: 0})
    with pytest.raises(ConfigError, match="max_tokens is 0"):
        TokenBudgetSampler([1], max_tokens=0, seed=0)


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 120), st.randoms(use_true_random=False))
def test_ordered_batches_keep_the_order_and_are_as_full_as_it_allows(num_tokens, max_tokens: int, random) -> None:
    share = sorted(random.sample(range(len(num_tokens)), len(num_tokens) // 2))
    for slides in (None, share):
        batches = list(OrderedBatches(num_tokens, max_tokens=max_tokens, slides=slides))
        expected = list(range(len(num_tokens))) if slides is None else slides
        assert [slide for batch in batches for slide in batch] == expected
        sizes = [sum(num_tokens[slide] for slide in batch) for batch in batches]
        assert all(size <= max_tokens or len(batch) == 1 for size, batch in zip(sizes, batches, strict=True))
        assert all(size + num_tokens[after[0]] > max_tokens for size, after in zip(sizes, batches[1:], strict=False))


def test_an_ordered_budget_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_tokens is 0"):
        OrderedBatches([1], max_tokens=0)
