"""Batches of slides as plain tensors, from the DataLoader's workers to the model.

spconv's tensors can neither be collated nor moved between devices, and workers should not import spconv at all.

A batch is validated and ordered once, where it is collated: rows by (slide, row, col), every cell once, no slide empty.
What a network needs of it on the host (extents, rows of each slide) travels as plain numbers.

Class indices are `labels`, everything else a slide is trained for `targets`; `patch_ratios` and `patch_labels` have one
row per patch in the order of `features`, through augmentation and collation. What a task does not use is None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from span_sparse.sparse import ValidCoords, validated

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
        offsets: first row of every slide, and the number of rows; None, as the next two, unless `collate` made the
            batch: then it is validated and ordered by (slide, row, col).
        extents: the largest row and the largest column of the batch, plus one.
        counts: patches of every slide.
        geometry: what a network's `prepare` made of the coordinates, on the device of the batch; None: not made yet.
    """

    coords: Int32[Tensor, "tokens 3"]
    features: Float[Tensor, "tokens channels"]
    labels: Int64[Tensor, " slides"]
    indices: Int64[Tensor, " slides"]
    targets: Float[Tensor, "slides targets"] | None = None
    patch_ratios: Float[Tensor, "tokens ratio_classes"] | None = None
    patch_labels: Int64[Tensor, " tokens"] | None = None
    offsets: Int32[Tensor, " slides+1"] | None = None
    extents: tuple[int, int] | None = None
    counts: tuple[int, ...] | None = None
    geometry: Any = None

    @property
    def num_slides(self) -> int:
        """Slides in the batch."""
        return len(self.labels)

    @property
    def valid(self) -> ValidCoords | None:
        """The validated coordinates; None of a batch that was put together by hand."""
        if self.offsets is None or self.extents is None or self.counts is None:
            return None
        return ValidCoords(self.coords, self.offsets, self.extents, self.counts)

    @property
    def place(self) -> Any:
        """Where the patches lie, in the form that costs a network least: geometry, else valid coordinates, else any."""
        if self.geometry is not None:
            return self.geometry
        valid = self.valid
        return self.coords if valid is None else valid

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SlideBatch:
        """A copy on `device`, with float32 features; Lightning calls this.

        Features cross in the type they have (float16, in most stores: half the bytes) and are converted there. The
        geometry stays where it was made: a batch that goes elsewhere has none.
        """
        moved = self._with_each(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        stayed = moved.coords.device == self.coords.device
        return replace(moved, features=moved.features.float(), geometry=self.geometry if stayed else None)

    def pin_memory(self) -> SlideBatch:
        """A copy in page-locked memory; the DataLoader calls this."""
        return self._with_each(Tensor.pin_memory)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, without those of the geometry."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> SlideBatch:
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **changed)


def subsample(sample: SlideSample, max_tokens: int, generator: torch.Generator) -> SlideSample:
    """A random choice of a slide's patches, in their order; the sample itself if it has no more than `max_tokens`."""
    if len(sample.grid) <= max_tokens:
        return sample
    kept = torch.randperm(len(sample.grid), generator=generator)[:max_tokens].sort().values
    per_patch = {name: getattr(sample, name) for name in ("features", "grid", "patch_ratios", "patch_labels")}
    return replace(sample, **{name: rows[kept] for name, rows in per_patch.items() if rows is not None})


def collate(samples: Sequence[SlideSample], *, as_stored: bool = False, pinned: bool = False) -> SlideBatch:
    """Joins slides of one data set into a validated batch, rows ordered by (slide, row, col).

    Args:
        samples: the slides; rows of each in any order.
        as_stored: features keep the type of the store instead of becoming float32, for a batch that `to` takes to a
            device.
        pinned: features are written into page-locked memory, from which a copy to a GPU does not block.

    Raises:
        BatchError: a slide without patches, a negative or too large coordinate, two patches in one cell.
    """
    counts = [len(sample.grid) for sample in samples]
    coords = torch.empty(sum(counts), 3, dtype=torch.int32)
    for slide, (rows, sample) in enumerate(zip(coords.split(counts), samples, strict=True)):
        rows[:, 0] = slide
        rows[:, 1:] = sample.grid
    valid, order = validated(coords, counts)
    targets = [sample.targets for sample in samples if sample.targets is not None]
    return SlideBatch(
        coords=valid.coords,
        features=_joined_features(samples, counts, order, as_stored=as_stored, pinned=pinned),
        labels=torch.tensor([sample.label for sample in samples]),
        indices=torch.tensor([sample.index for sample in samples]),
        targets=torch.stack(targets) if targets else None,
        patch_ratios=_joined([sample.patch_ratios for sample in samples], order),
        patch_labels=_joined([sample.patch_labels for sample in samples], order),
        offsets=valid.offsets,
        extents=valid.extents,
        counts=valid.counts,
    )


def _joined_features(
    samples: Sequence[SlideSample], counts: list[int], order: Tensor | None, *, as_stored: bool, pinned: bool
) -> Tensor:
    """Features of all slides; each is written once, to where it belongs and in the type it shall have."""
    dtype = torch.float32
    if as_stored and all(sample.features.dtype == samples[0].features.dtype for sample in samples):
        dtype = samples[0].features.dtype
    joined = torch.empty(sum(counts), samples[0].features.shape[1], dtype=dtype, pin_memory=pinned)
    first = 0
    for rows, sample in zip(joined.split(counts), samples, strict=True):
        if order is None:
            rows.copy_(sample.features)  # joining first and converting then reads and writes everything twice
        else:
            rows.copy_(sample.features[order[first : first + len(rows)] - first])
        first += len(rows)
    return joined


def _joined(parts: Sequence[Tensor | None], order: Tensor | None) -> Tensor | None:
    present = [part for part in parts if part is not None]
    if not present:
        return None
    joined = torch.cat(present)
    return joined if order is None else joined[order]
