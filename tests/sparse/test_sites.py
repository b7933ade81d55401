"""Which batches are accepted, and in which order their rows end up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from span_sparse.errors import BatchError
from span_sparse.sparse import make_sites, window_maps

rows_of_batches = st.sets(st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30)


@settings(max_examples=50, deadline=None)
@given(rows_of_batches, st.integers(1, 8), st.randoms(use_true_random=False))
def test_sites_are_sorted_counted_and_padded(rows, multiple_of: int, random) -> None:
    shuffled = [*rows, *((slide, 0, 0) for slide in range(3) if (slide, 0, 0) not in rows)]
    random.shuffle(shuffled)
    sites, order = make_sites(torch.tensor(shuffled, dtype=torch.int32), 3, multiple_of)
    assert sites.coords.tolist() == [list(row) for row in sorted(shuffled)]
    assert [shuffled[row] for row in order.tolist()] == sorted(shuffled)
    assert sites.counts == tuple(sum(row[0] == slide for row in shuffled) for slide in range(3))
    for extent, largest in zip(sites.extents, (max(row[axis] for row in shuffled) for axis in (1, 2)), strict=True):
        assert extent % multiple_of == 0
        assert largest < extent <= largest + multiple_of


@settings(max_examples=30, deadline=None)
@given(rows_of_batches, st.data())
def test_a_repeated_cell_is_refused_and_named(rows, data: st.DataObject) -> None:
    slide, row, col = data.draw(st.sampled_from(sorted(rows)))
    repeated = torch.tensor([*rows, (slide, row, col)], dtype=torch.int32)
    with pytest.raises(BatchError, match=rf"cell \(row {row}, col {col}\) of slide {slide} .* more than once"):
        make_sites(repeated, 3)


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        (torch.zeros(0, 3, dtype=torch.int32), "no patches"),
        (torch.zeros(1, 3, dtype=torch.int16), r"must be an int32 .* found torch\.int16"),
        (torch.tensor([[0, 2**40, 0]]), "exceed spconv's"),
        (torch.tensor([[0, 0, 2**31 - 2]]), "exceed spconv's"),
        (torch.tensor([[0, 46341, 46341]]), "exceed spconv's"),
    ],
)
def test_what_is_no_batch_is_refused(coords: torch.Tensor, message: str) -> None:
    with pytest.raises(BatchError, match=message):
        make_sites(coords, 1)


@pytest.mark.parametrize("far", [(46339, 46339), (0, 2**30 - 1), (2**30 - 1, 0)])
def test_the_largest_lattice_still_has_all_its_windows(far: tuple[int, int]) -> None:
    """Extents are rounded up further for the windows: spconv's int32 keys must hold that too."""
    sites, _ = make_sites(torch.tensor([[0, 0, 0], [0, *far]], dtype=torch.int32), 1)
    for windows in (window_maps(sites, 3).regular, window_maps(sites, 3).shifted):
        assert sorted(windows.table[windows.table >= 0].tolist()) == [0, 1]
        assert windows.num_outputs == 2
