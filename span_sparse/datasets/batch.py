"""What travels from a DataLoader worker to the model? Plain tensors, never a sparse tensor.

spconv's tensors can neither be collated nor moved between devices, and workers should not import spconv at all.

Class indices are `labels`, everything else a slide is trained for `targets`; `patch_ratios` and `patch_labels` have one
row per patch in the order of `features`, through augmentation and collation. What a task does not use is None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

NO_LABEL = -1
"""Label of a slide or patch whose class is unknown."""


@dataclass(frozen=True, slots=True)
class SlideSample:
    """One slide.

    Attributes:
        index: position in the data set; identifies a slide when predictions of several processes are gathered.
        features: patch features.
        grid: `(row, col)` of every patch.
        label: class index or `NO_LABEL`.
        targets: what the slide's task reads from the label table (`Task.target_names`), NaN where unknown.
        patch_ratios: share of each patch's area that each class covers, NaN on slides without annotation.
        patch_labels: class index of every patch or `NO_LABEL`.
    """

    index: int
    features: Float[Tensor, "patches channels"]
    grid: Int32[Tensor, "patches 2"]
    label: int
    targets: Float[Tensor, " targets"] | None = None
    patch_ratios: Float[Tensor, "patches ratio_classes"] | None = None
    patch_labels: Int64[Tensor, " patches"] | None = None


@dataclass(frozen=True, slots=True)
class SlideBatch:
    """Several slides, rows of all patches one after the other.

    Attributes:
        coords: `(slide, row, col)` of every patch; `slide` counts from 0 within the batch.
        features: patch features.
        labels: class index of every slide, `NO_LABEL` where unknown.
        indices: position of every slide in the data set.
        targets: what the task reads from the label table (`Task.target_names`), NaN where unknown.
        patch_ratios: share of each patch's area that each class covers, NaN on slides without annotation.
        patch_labels: class index of every patch, `NO_LABEL` where unknown.
    """

    coords: Int32[Tensor, "tokens 3"]
    features: Float[Tensor, "tokens channels"]
    labels: Int64[Tensor, " slides"]
    indices: Int64[Tensor, " slides"]
    targets: Float[Tensor, "slides targets"] | None = None
    patch_ratios: Float[Tensor, "tokens ratio_classes"] | None = None
    patch_labels: Int64[Tensor, " tokens"] | None = None

    @property
    def num_slides(self) -> int:
        """Slides in the batch."""
        return len(self.labels)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SlideBatch:
        """A copy on `device`; Lightning calls this."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> SlideBatch:
        """A copy in page-locked memory; the DataLoader calls this."""
        return self._with_each(Tensor.pin_memory)

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> SlideBatch:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items() if tensor is not None})


def subsample(sample: SlideSample, max_tokens: int, generator: torch.Generator) -> SlideSample:
    """A random choice of a slide's patches, in their order; the sample itself if it has no more than `max_tokens`."""
    if len(sample.grid) <= max_tokens:
        return sample
    kept = torch.randperm(len(sample.grid), generator=generator)[:max_tokens].sort().values
    per_patch = {name: getattr(sample, name) for name in ("features", "grid", "patch_ratios", "patch_labels")}
    return replace(sample, **{name: rows[kept] for name, rows in per_patch.items() if rows is not None})


def collate(samples: Sequence[SlideSample]) -> SlideBatch:
    """Joins slides of one data set into a batch; features become float32."""
    slides = torch.arange(len(samples), dtype=torch.int32)
    counts = torch.tensor([len(sample.grid) for sample in samples])
    targets = [sample.targets for sample in samples if sample.targets is not None]
    ratios = [sample.patch_ratios for sample in samples if sample.patch_ratios is not None]
    patch_labels = [sample.patch_labels for sample in samples if sample.patch_labels is not None]
    features = torch.empty(int(counts.sum()), samples[0].features.shape[1])
    for rows, sample in zip(features.split(counts.tolist()), samples, strict=True):
        rows.copy_(sample.features)  # joining first and converting then reads and writes everything twice
    return SlideBatch(
        coords=torch.cat(
            [slides.repeat_interleave(counts).unsqueeze(1), torch.cat([sample.grid for sample in samples])], dim=1
        ),
        features=features,
        labels=torch.tensor([sample.label for sample in samples]),
        indices=torch.tensor([sample.index for sample in samples]),
        targets=torch.stack(targets) if targets else None,
        patch_ratios=torch.cat(ratios) if ratios else None,
        patch_labels=torch.cat(patch_labels) if patch_labels else None,
    )
