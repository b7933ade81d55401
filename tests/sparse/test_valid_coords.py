"""Coordinates that are validated once, beside `make_sites`, which validates them in every forward pass."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from span_sparse.errors import BatchError
from span_sparse.sparse import make_sites, validated

slides_of_cells = st.lists(
    st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20), min_size=1, max_size=4
)


@settings(max_examples=50, deadline=None)
@given(slides_of_cells, st.randoms(use_true_random=False), st.sampled_from([torch.int32, torch.int64]))
def test_it_says_what_make_sites_says(slides, random, dtype) -> None:
    rows = [(slide, *cell) for slide, cells in enumerate(slides) for cell in random.sample(sorted(cells), len(cells))]
    coords = torch.tensor(rows, dtype=dtype)
    valid, order = validated(coords, [len(cells) for cells in slides])
    sites, sites_order = make_sites(coords, len(slides))
    assert torch.equal(valid.coords, sites.coords)
    assert valid.coords.dtype == torch.int32
    assert (valid.extents, valid.counts) == (sites.extents, sites.counts)
    assert valid.offsets.tolist() == [sum(sites.counts[:slide]) for slide in range(len(slides) + 1)]
    assert torch.equal(torch.arange(len(rows)) if order is None else order, sites_order)
    again, unmoved = validated(valid.coords, valid.counts)
    assert unmoved is None
    assert again.coords is valid.coords


@pytest.mark.parametrize(
    ("coords", "counts", "message"),
    [
        (torch.zeros(0, 3, dtype=torch.int32), [], "holds no patches"),
        (torch.tensor([[0, 0, 0]]), [1, 0], "slide 1 of the batch has no patches"),
        (torch.tensor([[0, 0, 0]]), [2], "has 1 rows, its slides have 2 together"),
        (torch.tensor([[0, 0, 0], [1, 0, 0], [0, 0, 1]]), [2, 1], "row 1 of the batch is of slide 1, expected slide 0"),
        (torch.tensor([[0, -5, 0]]), [1], r"row, col >= 0; found \(slide, row, col\) from \[0, -5, 0\]"),
        (torch.tensor([[0, 2**30, 0]]), [1], "1 slides of 1073741825 × 1 lattice cells exceed spconv's"),
        (torch.tensor([[0, 1, 2], [0, 0, 0], [0, 1, 2]]), [3], r"cell \(row 1, col 2\) of slide 0 .* more than once"),
    ],
)
def test_what_is_wrong_is_named(coords, counts, message: str) -> None:
    with pytest.raises(BatchError, match=message):
        validated(coords, counts)


def test_a_worker_that_collates_does_not_import_spconv() -> None:
    code = (
        "import sys, torch; from span_sparse.datasets import SlideSample, collate;"
        "collate([SlideSample(0, torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.int32), 0)]);"
        "sys.exit(any(name.partition('.')[0] in ('spconv', 'cumm') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
