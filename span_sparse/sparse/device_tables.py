"""Tables of the geometry on a GPU, as operators whose kernels fill a table at once.

In plain torch the same tables are a handful of lines each and a dozen launches. Nothing here waits for the device:
sizes are those of the arguments.
"""

from __future__ import annotations

from jaxtyping import Int32
from torch import Tensor

from span_sparse.sparse.operators import has_kernels, operator


def _pairs_fake(coords: Tensor, pairs: Tensor, num_slides: int) -> tuple[Tensor, Tensor]:
    return pairs.new_empty(coords.shape[0], pairs.shape[1]), pairs.new_empty(num_slides + 1)


@operator(
    "pair_table", "(Tensor coords, Tensor pairs, int num_slides) -> (Tensor, Tensor)", fake=_pairs_fake, launches=2
)
def pair_table(
    coords: Int32[Tensor, "outputs 3"], pairs: Int32[Tensor, "2 taps inputs"], num_slides: int
) -> tuple[Int32[Tensor, "outputs taps"], Int32[Tensor, " bounds"]]:
    """Input that every tap of every output reads, or -1, and the first row of every slide.

    Args:
        coords: of the outputs, ordered by (slide, row, col).
        pairs: spconv's, of the algorithm Native: `(input, output)` compacted per tap, -1 filled.
        num_slides: slides in the batch, each with an output.
    """
    if has_kernels(pairs):
        from span_sparse.sparse.device_kernels import launch_pair_table

        return launch_pair_table(coords, pairs, num_slides)
    from span_sparse.sparse.indice_maps import pairs_to_table
    from span_sparse.sparse.sites import slide_offsets

    return pairs_to_table(pairs, len(coords)).T.contiguous(), slide_offsets(coords, num_slides)


def _seen_fake(cells: Tensor, tokens: Tensor, neighbours: Tensor) -> Tensor:
    return tokens.new_empty(tokens.shape[0], 7 * tokens.shape[1])


@operator("seen_tokens", "(Tensor cells, Tensor tokens, Tensor neighbours) -> Tensor", fake=_seen_fake, launches=1)
def seen_tokens(
    cells: Int32[Tensor, "cells 3"], tokens: Int32[Tensor, "cells slots"], neighbours: Int32[Tensor, "taps cells"]
) -> Int32[Tensor, "cells seen"]:
    """`windows.WindowMaps.seen`, see there.

    Args:
        cells: `(slide, row, col)` of the cells.
        tokens: of every cell, -1 where there is none.
        neighbours: of the 3 × 3 submanifold map, one row a tap as spconv returns it.
    """
    if has_kernels(tokens):
        from span_sparse.sparse.device_kernels import launch_seen_tokens

        return launch_seen_tokens(cells, tokens, neighbours)
    from span_sparse.sparse.windows import plain_seen_tokens

    return plain_seen_tokens(cells, tokens, neighbours)
