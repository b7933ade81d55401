from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from span_sparse.datasets import SlideBatch, SlideSample, collate
from span_sparse.errors import BatchError


def test_collate_numbers_the_slides_and_orders_every_row() -> None:
    first = SlideSample(11, torch.arange(6.0).view(3, 2), torch.tensor([[0, 1], [5, 0], [2, 2]], dtype=torch.int32), 1)
    second = SlideSample(4, torch.full((1, 2), 9.0).half(), torch.tensor([[0, 1]], dtype=torch.int32), -1)
    batch = collate([first, second])
    assert batch.coords.tolist() == [[0, 0, 1], [0, 2, 2], [0, 5, 0], [1, 0, 1]]
    assert batch.coords.dtype == torch.int32
    assert batch.features.tolist() == [[0, 1], [4, 5], [2, 3], [9, 9]]
    assert batch.features.dtype == torch.float32
    assert batch.labels.tolist() == [1, -1]
    assert batch.indices.tolist() == [11, 4]
    assert batch.num_slides == 2
    assert batch.offsets is not None
    assert (batch.offsets.tolist(), batch.extents, batch.counts) == ([0, 3, 4], (6, 3), (3, 1))


cells_of_slides = st.lists(
    st.sets(st.tuples(st.integers(0, 12), st.integers(0, 7)), min_size=1, max_size=15), min_size=1, max_size=4
)


@settings(max_examples=40, deadline=None)
@given(cells_of_slides, st.randoms(use_true_random=False), st.booleans())
def test_rows_are_ordered_with_everything_that_belongs_to_them(slides, shuffle: random.Random, as_stored: bool) -> None:
    """Each row says itself where it comes from, so that the expected batch is written down without any sorting."""
    samples = []
    for index, cells in enumerate(slides):
        rows = shuffle.sample(sorted(cells), len(cells))
        grid = torch.tensor(rows, dtype=torch.int32)
        told = torch.tensor([[index, row, col] for row, col in rows]).half()
        ratios = (told[:, 1:] / 16).float()
        samples.append(SlideSample(index, told, grid, 0, patch_ratios=ratios, patch_labels=grid[:, 0].long() * 8))
    batch = collate(samples, as_stored=as_stored)
    expected = [[slide, *cell] for slide, cells in enumerate(slides) for cell in sorted(cells)]
    assert batch.coords.tolist() == batch.features.tolist() == expected
    assert batch.features.dtype == (torch.float16 if as_stored else torch.float32)
    assert batch.to("cpu").features.dtype == torch.float32
    assert batch.patch_ratios is not None
    assert batch.patch_labels is not None
    assert batch.patch_ratios.tolist() == [[row / 16, col / 16] for _, row, col in expected]
    assert batch.patch_labels.tolist() == [row * 8 for _, row, _ in expected]
    assert batch.counts == tuple(map(len, slides))
    assert batch.extents == tuple(max(row[axis] for row in expected) + 1 for axis in (1, 2))


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([(0, 1), (2, 2), (0, 1)], r"cell \(row 0, col 1\) of slide 1 .* more than once \(1 repeated"),
        ([(0, 1), (-1, 2)], r"row, col >= 0; found .* from \[0, -1, 0\] to \[1, 2, 2\]"),
        ([], "slide 1 of the batch has no patches"),
        ([(40000, 0), (0, 40000)], "2 slides of 40001 × 40001 lattice cells exceed"),
    ],
)
def test_a_batch_that_no_network_may_see_is_refused_where_it_is_made(cells, message: str) -> None:
    good = SlideSample(0, torch.ones(1, 2), torch.tensor([[2, 0]], dtype=torch.int32), 0)
    grid = torch.tensor(cells, dtype=torch.int32).reshape(-1, 2)
    with pytest.raises(BatchError, match=message):
        collate([good, SlideSample(1, torch.ones(len(cells), 2), grid, 0)])


def test_features_of_two_types_become_float32_even_where_they_could_stay() -> None:
    grid = torch.tensor([[0, 0]], dtype=torch.int32)
    halves, floats = SlideSample(0, torch.ones(1, 2).half(), grid, 0), SlideSample(1, torch.ones(1, 2) / 3, grid, 0)
    assert collate([halves, halves], as_stored=True).features.dtype == torch.float16
    assert torch.equal(collate([halves, floats], as_stored=True).features[1], torch.ones(2) / 3)


def test_the_place_is_the_cheapest_form_there_is() -> None:
    sample = SlideSample(0, torch.ones(2, 3), torch.tensor([[0, 1], [1, 0]], dtype=torch.int32), 0)
    batch = collate([sample])
    by_hand = SlideBatch(batch.coords, batch.features, batch.labels, batch.indices)
    assert by_hand.valid is None
    assert by_hand.place is batch.coords
    assert batch.place.coords is batch.coords
    assert (batch.place.extents, batch.place.counts, batch.place.num_slides) == ((2, 2), (2,), 1)
    built = dataclasses.replace(batch, geometry="pyramid")
    assert built.place == "pyramid"
    assert built.to("cpu").place == "pyramid"
    assert built.to("meta").geometry is None


def test_a_moved_batch_is_the_same_batch() -> None:
    sample = SlideSample(0, torch.ones(2, 3), torch.tensor([[0, 1], [1, 0]], dtype=torch.int32), 0)
    moved = collate([sample, sample]).to("meta")
    assert {tensor.device.type for tensor in (moved.coords, moved.features, moved.labels, moved.indices)} == {"meta"}
    assert moved.coords.shape == (4, 3)
    assert moved.num_slides == 2


def test_targets_and_patch_labels_travel_with_their_slides() -> None:
    def sample(index: int, num_patches: int) -> SlideSample:
        rows = torch.arange(num_patches)
        return SlideSample(
            index, torch.zeros(num_patches, 2), torch.stack([rows, rows], dim=1).int(), -1,
            targets=torch.tensor([index + 0.5, torch.nan, 1.0]),
            patch_ratios=torch.stack([rows / 10 + index, rows / 100], dim=1), patch_labels=rows + 10 * index,
        )  # fmt: skip

    batch = collate([sample(7, 3), sample(2, 1)])
    assert batch.targets is not None
    assert batch.patch_ratios is not None
    assert batch.patch_labels is not None
    assert batch.targets.nan_to_num(-9).tolist() == [[7.5, -9, 1], [2.5, -9, 1]]
    assert batch.patch_labels.tolist() == [70, 71, 72, 20]
    assert torch.allclose(batch.patch_ratios, torch.tensor([[7, 0], [7.1, 0.01], [7.2, 0.02], [2, 0]]))
    moved = batch.to("meta")
    assert {moved.targets.device.type, moved.patch_ratios.device.type, moved.patch_labels.device.type} == {"meta"}
    plain = collate([SlideSample(0, torch.ones(2, 3), torch.tensor([[0, 1], [1, 0]], dtype=torch.int32), 0)])
    assert (plain.targets, plain.patch_ratios, plain.patch_labels) == (None, None, None)
    assert plain.to("cpu").patch_labels is None
