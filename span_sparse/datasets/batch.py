"""What travels from a DataLoader worker to the model? Plain tensors, never a sparse tensor.

spconv's tensors can neither be collated nor moved between devices, and workers should not import spconv at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

NO_LABEL = -1
"""Label of a slide whose class is unknown."""


@dataclass(frozen=True, slots=True)
class SlideSample:
    """One slide.

    Attributes:
        index: position in the data set; identifies a slide when predictions of several processes are gathered.
        features: patch features.
        grid: `(row, col)` of every patch.
        label: class index or `NO_LABEL`.
    """

    index: int
    features: Float[Tensor, "patches channels"]
    grid: Int32[Tensor, "patches 2"]
    label: int


@dataclass(frozen=True, slots=True)
class SlideBatch:
    """Several slides, rows of all patches one after the other.

    Attributes:
        coords: `(slide, row, col)` of every patch; `slide` counts from 0 within the batch.
        features: patch features.
        labels: class index of every slide, `NO_LABEL` where unknown.
        indices: position of every slide in the data set.
    """

    coords: Int32[Tensor, "tokens 3"]
    features: Float[Tensor, "tokens channels"]
    labels: Int64[Tensor, " slides"]
    indices: Int64[Tensor, " slides"]

    @property
    def num_slides(self) -> int:
        """Slides in the batch."""
        return len(self.labels)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SlideBatch:
        """A copy on `device`; Lightning calls this."""
        return replace(
            self,
            coords=self.coords.to(device, non_blocking=non_blocking),
            features=self.features.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            indices=self.indices.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> SlideBatch:
        """A copy in page-locked memory; the DataLoader calls this."""
        return replace(self, coords=self.coords.pin_memory(), features=self.features.pin_memory())


def collate(samples: Sequence[SlideSample]) -> SlideBatch:
    """Joins slides into a batch; features become float32."""
    slides = torch.arange(len(samples), dtype=torch.int32)
    counts = torch.tensor([len(sample.grid) for sample in samples])
    return SlideBatch(
        coords=torch.cat(
            [slides.repeat_interleave(counts).unsqueeze(1), torch.cat([sample.grid for sample in samples])], dim=1
        ),
        features=torch.cat([sample.features for sample in samples]).float(),
        labels=torch.tensor([sample.label for sample in samples]),
        indices=torch.tensor([sample.index for sample in samples]),
    )
