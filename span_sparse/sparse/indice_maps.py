"""Which inputs does each output of a sparse operation read? spconv's indice data as one plain table.

spconv describes a sparse convolution in two ways: `IndiceData` (algorithm Native; pairs compacted per tap) and
`ImplicitGemmIndiceData` (CUDA's default; a table per tap). `KernelMap` is what both mean: for every output and every
tap of the kernel the input row, or -1. Convolution, depthwise convolution, up-sampling, window attention and the
projection of scores back to patches all read this one type.

Output rows are brought into the order (slide, row, col): spconv's own order differs between CPU, CUDA and algorithms,
and under implicit GEMM from run to run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int, Int64
from torch import Tensor

from span_sparse.sparse.backend import load_spconv, native_algorithm
from span_sparse.sparse.sites import SparseSites, ordered_sites


@dataclass(frozen=True, slots=True)
class KernelMap:
    """The inputs of every output of a sparse operation.

    Attributes:
        table: input row that tap `k` of output `o` reads, or -1; taps are row-major over the kernel.
        num_inputs: rows of the input.
    """

    table: Int64[Tensor, "outputs taps"]
    num_inputs: int

    @property
    def num_outputs(self) -> int:
        """Rows of the output."""
        return self.table.shape[0]

    @property
    def num_taps(self) -> int:
        """Positions of the kernel."""
        return self.table.shape[1]

    def active_counts(self) -> Int64[Tensor, " outputs"]:
        """Number of inputs each output reads, at least 1 for strided maps."""
        return (self.table >= 0).sum(dim=1)

    def transposed(self) -> KernelMap:
        """The same pairs seen from the inputs: which output each tap of each input leads to, or -1."""
        output, tap = (self.table >= 0).nonzero(as_tuple=True)
        table = self.table.new_full((self.num_inputs, self.num_taps), -1)
        table[self.table[output, tap], tap] = output
        return KernelMap(table, self.num_outputs)

    def slots_of_inputs(self) -> Int64[Tensor, " inputs"]:
        """Position `output · taps + tap` of each input, for a map that reads every input exactly once."""
        flat = self.table.flatten()
        active = (flat >= 0).nonzero().squeeze(1)
        slots = torch.empty(self.num_inputs, dtype=torch.long, device=flat.device)
        slots[flat[active]] = active
        return slots


def kernel_map(indice_data: Any, num_inputs: int, order: Int[Tensor, " outputs"]) -> KernelMap:
    """Normalises spconv's indice data of either class.

    Args:
        indice_data: `IndiceData` or `ImplicitGemmIndiceData` as found in a sparse tensor's `indice_dict`.
        num_inputs: rows of the input.
        order: permutation that brings spconv's output rows into (slide, row, col) order.
    """
    if hasattr(indice_data, "pair_fwd"):
        table = indice_data.pair_fwd.long().T
    else:
        table = pairs_to_table(indice_data.indice_pairs, len(order))
    return KernelMap(table[order].contiguous(), num_inputs)


def pairs_to_table(indice_pairs: Int[Tensor, "2 taps pairs"], num_outputs: int) -> Int64[Tensor, "outputs taps"]:
    """Native's compacted pairs as a table.

    Pairs are taken by `>= 0`, never by spconv's counts, which cover only half of the taps of a submanifold map.
    """
    inputs, outputs = indice_pairs.long()
    table = torch.full((num_outputs, inputs.shape[0]), -1, dtype=torch.long, device=inputs.device)
    tap, pair = (inputs >= 0).nonzero(as_tuple=True)
    table[outputs[tap, pair], tap] = inputs[tap, pair]
    return table


def strided_map(
    sites: SparseSites, kernel_size: int, stride: int, dilation: int = 1, offset: int = 0
) -> tuple[SparseSites, KernelMap]:
    """The map of a strided sparse convolution without padding: output `o` reads `stride · o + dilation · k`.

    Extents are rounded up first, so that every active site is covered by an output.

    Args:
        sites: active input sites.
        kernel_size: taps per axis.
        stride: step of the outputs.
        dilation: step of the taps.
        offset: added to row and column before the map is built; shifts where the outputs are anchored.

    Returns:
        The active outputs and the map from the inputs.
    """
    load_spconv()
    from spconv.pytorch import ops

    coords = sites.coords
    if offset:
        coords = (coords + coords.new_tensor([0, offset, offset])).contiguous()
    padded = padded_extents(sites, kernel_size, stride, dilation, offset)
    out_coords, pairs, _ = ops.get_indice_pairs(
        coords,
        sites.num_slides,
        padded,
        native_algorithm(),
        [kernel_size, kernel_size],
        [stride, stride],
        [0, 0],
        [dilation, dilation],
        [0, 0],
        False,
        False,
    )
    reach = dilation * (kernel_size - 1) + 1
    extents = [(extent - reach) // stride + 1 for extent in padded]
    outputs, order = ordered_sites(out_coords, sites.num_slides, (extents[0], extents[1]))
    return outputs, KernelMap(pairs_to_table(pairs, len(out_coords))[order].contiguous(), len(sites))


def padded_extents(sites: SparseSites, kernel_size: int, stride: int, dilation: int = 1, offset: int = 0) -> list[int]:
    """Extents rounded up so that a strided kernel without padding covers the last row and column."""
    reach = dilation * (kernel_size - 1) + 1
    return [-(-(extent + offset) // stride) * stride + max(0, reach - stride) for extent in sites.extents]


def neighbour_map(sites: SparseSites) -> KernelMap:
    """The map of a submanifold 3 × 3 convolution: the active neighbours of every site, itself at tap 4."""
    load_spconv()
    from spconv.pytorch import ops

    out_coords, pairs, _ = ops.get_indice_pairs(
        sites.coords,
        sites.num_slides,
        list(sites.extents),
        native_algorithm(),
        [3, 3],
        [1, 1],
        [1, 1],
        [1, 1],
        [0, 0],
        True,
        False,
    )
    return KernelMap(pairs_to_table(pairs, len(out_coords)), len(sites))
