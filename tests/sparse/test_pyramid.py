"""The pyramid's levels against sets of cells: what goes down comes up again on the very same rows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from span_sparse.errors import BatchError
from span_sparse.sparse import InverseConvolution, build_pyramid

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
import random_slides

two_slides = st.tuples(random_slides.cell_sets, random_slides.cell_sets)


@settings(max_examples=40, deadline=None)
@given(two_slides, st.integers(2, 6), st.randoms(use_true_random=False))
def test_levels_halve_and_lead_back(slides, num_levels: int, random) -> None:
    rows = [(number, *cell) for number, cells in enumerate(slides) for cell in cells]
    random.shuffle(rows)
    coords = torch.tensor(rows, dtype=torch.int32)
    pyramid = build_pyramid(coords, 2, num_levels=num_levels, window_size=2)
    assert torch.equal(coords[pyramid.order], pyramid.levels[0].sites.coords)
    for depth, level in enumerate(pyramid.levels):
        expected = sorted({(slide, row >> depth, col >> depth) for slide, row, col in rows})
        assert level.sites.coords.tolist() == [list(site) for site in expected]
    fine = pyramid.levels[0].sites.coords.long()
    parents = torch.arange(len(fine))
    for depth, level in enumerate(pyramid.levels[1:], start=1):
        assert level.children is not None
        up = level.children.transposed.table
        assert torch.equal((up >= 0).sum(dim=1), torch.ones(len(up), dtype=torch.long))  # exactly one parent each
        parents = up.amax(dim=1)[parents]
        ancestors = torch.cat([fine[:, :1], fine[:, 1:] >> depth], dim=1)
        assert torch.equal(level.sites.coords[parents].long(), ancestors)


@settings(max_examples=25, deadline=None)
@given(two_slides, st.integers(1, 5))
def test_up_of_down_lands_on_the_slide_itself(slides, steps: int) -> None:
    """Coordinates as features: after `steps` levels down and up again every row holds its own ancestor's cell."""
    coords = random_slides.batch_of(*(random_slides.grid_of(cells) for cells in slides))
    pyramid = build_pyramid(coords, 2, num_levels=steps + 1, window_size=1)
    rows = pyramid.levels[-1].sites.coords.double()
    copy = InverseConvolution(3, 3, kernel_size=2).double()
    with torch.no_grad():
        copy.weight.copy_(torch.eye(3)[:, None, None, :].expand(3, 2, 2, 3))
    for level in reversed(pyramid.levels[1:]):
        assert level.children is not None
        rows = copy(rows, level.children)
    fine = pyramid.levels[0].sites.coords.long()
    assert rows.long().tolist() == torch.cat([fine[:, :1], fine[:, 1:] >> steps], dim=1).tolist()


def test_a_slide_that_no_dilated_kernel_reads_is_refused() -> None:
    coords = torch.tensor([[0, 0, 0], [1, 1, 1], [1, 3, 5]], dtype=torch.int32)
    with pytest.raises(BatchError, match=r"slide 1 of the batch has no cell at pyramid level 1: .* dilation 2"):
        build_pyramid(coords, 2, num_levels=2, window_size=2, dilation=2)
    assert len(build_pyramid(coords, 2, num_levels=2, window_size=2).levels[1].sites) == 3
