"""Indice maps of sparse operations: which inputs each output reads, as one plain table.

spconv describes a sparse convolution in two ways: pairs compacted per tap (algorithm Native), and a table per tap
(implicit GEMM, on CUDA only; taken where it is the quicker one). `KernelMap` is what both mean: for every output and
every tap of the kernel the input row, or -1. Convolution, depthwise convolution, up-sampling, window attention and the
projection of scores back to patches all read this one type.

Output rows are in the order (slide, row, col). spconv's own order differs: Native sorts by that key on CUDA, and
follows the inputs on a CPU; under implicit GEMM it changes from run to run, so that no strided map is taken from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int, Int32, Int64
from torch import Tensor

from span_sparse.sparse.backend import implicit_gemm_algorithm, load_spconv, native_algorithm
from span_sparse.sparse.device_tables import pair_table
from span_sparse.sparse.sites import SparseSites, site_keys


@dataclass(frozen=True)
class KernelMap:
    """The inputs of every output of a sparse operation.

    Attributes:
        table: input row that tap `k` of output `o` reads, or -1; taps are row-major over the kernel.
        num_inputs: rows of the input.
    """

    table: Int32[Tensor, "outputs taps"]
    num_inputs: int

    @property
    def num_outputs(self) -> int:
        """Rows of the output."""
        return self.table.shape[0]

    @property
    def num_taps(self) -> int:
        """Positions of the kernel."""
        return self.table.shape[1]

    @cached_property
    def active_counts(self) -> Int64[Tensor, " outputs"]:
        """Number of inputs each output reads, at least 1 for strided maps."""
        return (self.table >= 0).sum(dim=1)

    @cached_property
    def transposed(self) -> KernelMap:
        """The same pairs seen from the inputs: which output each tap of each input leads to, or -1."""
        table = self.table.new_full((self.num_inputs + 1, self.num_taps), -1)
        outputs = torch.arange(self.num_outputs, dtype=table.dtype, device=table.device).unsqueeze(1)
        rows = torch.where(self.table >= 0, self.table, self.num_inputs).long()  # absent inputs write to a spare row
        table.scatter_(0, rows, outputs.expand(-1, self.num_taps))
        return KernelMap(table[:-1], self.num_outputs)

    @cached_property
    def slots_of_inputs(self) -> Int64[Tensor, " inputs"]:
        """Position `output · taps + tap` of each input, for a map that reads every input exactly once."""
        up = self.transposed.table
        output, tap = up.max(dim=1)
        return output.long() * self.num_taps + tap

    def tensors(self) -> Iterator[Tensor]:
        """Everything that lies on the device."""
        yield self.table


def pairs_to_table(indice_pairs: Int[Tensor, "2 taps pairs"], num_outputs: int) -> Int32[Tensor, "taps outputs"]:
    """Native's compacted pairs as a table per tap.

    Pairs are taken by `>= 0`, never by spconv's counts, which cover only half of the taps of a submanifold map.
    """
    inputs, outputs = indice_pairs.unbind(0)
    table = inputs.new_full((inputs.shape[0], num_outputs + 1), -1, dtype=torch.int32)
    columns = torch.where(outputs >= 0, outputs, num_outputs).long()  # what is no pair writes -1 to a spare column
    return table.scatter_(1, columns, inputs.int())[:, :-1].contiguous()


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
    coords = sites.coords
    if offset:
        coords = (coords + coords.new_tensor([0, offset, offset])).contiguous()
    padded = padded_extents(sites, kernel_size, stride, dilation, offset)
    out_coords, pairs = _strided_pairs(coords, sites.num_slides, padded, kernel_size, stride, dilation)
    reach = dilation * (kernel_size - 1) + 1
    rows, cols = ((extent - reach) // stride + 1 for extent in padded)
    table, offsets = pair_table(out_coords, pairs, sites.num_slides)
    return SparseSites(out_coords, sites.num_slides, (rows, cols), offsets), KernelMap(table, len(sites))


def _strided_pairs(
    coords: Int32[Tensor, "tokens 3"], num_slides: int, extents: list[int], kernel_size: int, stride: int, dilation: int
) -> tuple[Int32[Tensor, "outputs 3"], Int32[Tensor, "2 taps tokens"]]:
    """Outputs of a strided convolution without padding, by (slide, row, col), and Native's pairs of rows."""
    load_spconv()
    from spconv.pytorch import ops

    shape = [kernel_size, kernel_size], [stride, stride], [0, 0], [dilation, dilation], [0, 0]
    outputs, pairs, _ = ops.get_indice_pairs(coords, num_slides, extents, native_algorithm(), *shape)
    if outputs.is_cuda:  # Native sorts the keys of the outputs there, and numbers them in that order
        return outputs, pairs
    order = site_keys(outputs, (extents[0], extents[1])).argsort()
    inputs, targets = pairs.unbind(0)
    rank = torch.empty_like(order, dtype=torch.int32).scatter_(0, order, torch.arange(len(order), dtype=torch.int32))
    return outputs[order], torch.stack([inputs, torch.where(targets >= 0, rank[targets.long()], -1)])


def padded_extents(sites: SparseSites, kernel_size: int, stride: int, dilation: int = 1, offset: int = 0) -> list[int]:
    """Extents rounded up so that a strided kernel without padding covers the last row and column."""
    reach = dilation * (kernel_size - 1) + 1
    return [-(-(extent + offset) // stride) * stride + max(0, reach - stride) for extent in sites.extents]


def neighbour_map(sites: SparseSites) -> Int32[Tensor, "taps tokens"]:
    """The map of a submanifold 3 × 3 convolution: the active neighbours of every site, itself at tap 4; a row a tap."""
    load_spconv()
    from spconv.pytorch import ops

    shape = [3, 3], [1, 1], [1, 1], [1, 1], [0, 0]
    coords, extents = sites.coords, list(sites.extents)
    if coords.is_cuda:
        _, _, table, *_ = ops.get_indice_pairs_implicit_gemm(
            coords, sites.num_slides, extents, implicit_gemm_algorithm(), *shape, True, is_train=False, do_sort=False
        )
        return table
    _, pairs, _ = ops.get_indice_pairs(coords, sites.num_slides, extents, native_algorithm(), *shape, True)
    return pairs_to_table(pairs, len(sites))
