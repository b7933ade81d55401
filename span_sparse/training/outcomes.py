"""What did the model say of each slide of a cohort, when several processes looked at different slides?

Every process keeps one row a slide; at the end of the epoch the rows of all processes are gathered, repeated slides
dropped by their index, and every figure is computed once on the whole cohort. Averaging each process's figures instead
is wrong for uneven shares and for anything that is not a mean, such as the AUC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed
from jaxtyping import Int64
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Rows of a cohort, ordered by index.

    Attributes:
        indices: position of each slide in its data set.
        columns: tensors by name, each with one row a slide; which ones, the task's module says.
    """

    indices: Int64[Tensor, " slides"]
    columns: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.columns[name]


@dataclass(slots=True)
class OutcomeCollector:
    """Collects rows during an evaluation epoch of this process."""

    _parts: list[Outcomes] = field(default_factory=list)

    def add(self, part: Outcomes) -> None:
        """Keeps the rows of one batch, on the CPU."""
        columns = {name: column.detach().cpu() for name, column in part.columns.items()}
        self._parts.append(Outcomes(part.indices.cpu(), columns))

    def gather(self) -> Outcomes:
        """The rows of all processes, each slide once, ordered by index; empties this collector."""
        parts, self._parts = self._parts, []
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            shares: list[list[Outcomes]] = [[] for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(shares, parts)
            parts = [part for share in shares for part in share]
        indices = torch.cat([part.indices for part in parts])
        order = indices.argsort(stable=True)
        first = torch.ones(len(order), dtype=torch.bool)
        first[1:] = indices[order][1:] != indices[order][:-1]
        keep = order[first]
        names = parts[0].columns
        return Outcomes(indices[keep], {name: torch.cat([part[name] for part in parts])[keep] for name in names})


def by_case(values: Tensor, case_ids: Sequence[str]) -> Tensor:
    """Mean of the rows of each case, in order of first appearance.

    Args:
        values: one row a slide.
        case_ids: of every row.
    """
    position = {case_id: number for number, case_id in enumerate(dict.fromkeys(case_ids))}
    index = torch.tensor([position[case_id] for case_id in case_ids], dtype=torch.long)
    sums = values.new_zeros(len(position), *values.shape[1:]).index_add_(0, index, values)
    counts = torch.bincount(index, minlength=len(position)).to(values.dtype)
    return sums / counts.view(-1, *[1] * (values.ndim - 1))
