"""Slides to test with: distinct cells, in random order, and what hypothesis draws them from."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from span_sparse.sparse import SparseSites, make_sites

cell_sets = st.sets(st.tuples(st.integers(0, 12), st.integers(0, 10)), min_size=1, max_size=40)
"""Cells `(row, col)` of one slide: none but one, rows, islands, whatever hypothesis finds."""


def random_slide(num_patches: int, side: int, seed: int) -> Tensor:
    """Distinct cells `(row, col)`, int32, in random order."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(side * side, generator=generator)[:num_patches]
    return torch.stack([cells // side, cells % side], dim=1).int()


def batch_of(*slides: Tensor) -> Tensor:
    """Coordinates `(slide, row, col)` of a batch."""
    rows = [torch.cat([torch.full((len(slide), 1), number), slide], dim=1) for number, slide in enumerate(slides)]
    return torch.cat(rows).int()


def sites_of(counts: tuple[int, ...]) -> SparseSites:
    """Sites of slides with so many patches each, in one row of cells."""
    slides = [torch.stack([torch.zeros(count), torch.arange(count)], dim=1).int() for count in counts]
    return make_sites(batch_of(*slides), len(counts))[0]


def grid_of(cells: set[tuple[int, int]]) -> Tensor:
    """Cells drawn by hypothesis as int32 `[patches, 2]`, in an order of no meaning."""
    return torch.tensor(sorted(cells, key=hash), dtype=torch.int32)


def shake(module: torch.nn.Module, scale: float = 0.3) -> torch.nn.Module:
    """Moves every parameter away from its initial value, so that no zero hides a mistake."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return module
