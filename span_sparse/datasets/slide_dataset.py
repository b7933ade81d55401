"""How does a slide of the store become a sample?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from span_sparse.datasets.augment import AugmentationSettings, augment, square_symmetry, training_progress
from span_sparse.datasets.batch import NO_LABEL, SlideSample, subsample
from span_sparse.datasets.task import SegmentationTask
from span_sparse.errors import StoreError
from span_sparse.store import FeatureStore, SlideRecord


class SlideItem(NamedTuple):
    """A slide of a data set: who it is and what it is.

    Attributes:
        slide_id: the store's name of the slide.
        case_id: the patient.
        label: class index or `NO_LABEL`.
        targets: what its task reads from the label table besides, NaN where unknown.
    """

    slide_id: str
    case_id: str
    label: int = NO_LABEL
    targets: tuple[float, ...] = ()


class EpochIndex(NamedTuple):
    """A request for a slide in one epoch; the epoch seeds its augmentation."""

    slide: int
    epoch: int


class SlideDataset(Dataset[SlideSample]):
    """Slides of a store.

    Asked with a plain index, gives the slide as stored; asked with an `EpochIndex`, one for training, that depends on
    seed, epoch, index and settings alone, so that neither the number of workers nor of processes changes what is seen.

    Args:
        store: where the features are.
        items: the slides.
        augment_seed: None switches augmentation off.
        augmentation: what happens to a slide; None means one of the eight symmetries of the square.
        num_epochs: length of the training, for the annealing of `augmentation`; None means no annealing. May be
            assigned later, but before workers are started.
        cache_mib: slides are kept in memory until this many MiB are used; the rest is read each time.
        max_tokens: in training, a slide of more patches is a new random choice of so many in every epoch.
        subsample_seed: of that choice.
        segmentation: gives every patch the ratios and the label of this task; a slide without annotation has NaN and
            `NO_LABEL`.

    Raises:
        ConfigError: an augmentation that cannot be meant.
    """

    def __init__(
        self,
        store: FeatureStore,
        items: Sequence[SlideItem],
        *,
        augment_seed: int | None = None,
        augmentation: AugmentationSettings | None = None,
        num_epochs: int | None = None,
        cache_mib: float = 0.0,
        max_tokens: int | None = None,
        subsample_seed: int = 0,
        segmentation: SegmentationTask | None = None,
    ) -> None:
        if augmentation is not None:
            augmentation.check()
        self.store = store
        self.items = tuple(items)
        self.augment_seed = augment_seed
        self.augmentation, self.num_epochs = augmentation, num_epochs
        self.max_tokens, self.subsample_seed = max_tokens, subsample_seed
        self.segmentation = segmentation
        self._cache: dict[int, SlideSample] = {}
        self._cache_bytes_left = cache_mib * 2**20

    def __len__(self) -> int:
        return len(self.items)

    def num_tokens(self, *, whole: bool = False) -> list[int]:
        """Patches of every slide as trained on, from the store's metadata; no features are read.

        Args:
            whole: those of the store, as in validation.

        Raises:
            StoreError: a slide is not in the store.
        """
        counts = [self.store.metadata(item.slide_id).num_patches for item in self.items]
        return counts if whole or self.max_tokens is None else [min(count, self.max_tokens) for count in counts]

    def __getitem__(self, request: int | EpochIndex) -> SlideSample:
        index, epoch = (request.slide, request.epoch) if isinstance(request, EpochIndex) else (request, None)
        sample = self._cache.get(index) or self._read(index)
        if epoch is not None and self.max_tokens is not None:
            seed = hash((self.subsample_seed, epoch, index, 1)) % 2**63
            sample = subsample(sample, self.max_tokens, torch.Generator().manual_seed(seed))
        if epoch is None or self.augment_seed is None:
            return sample
        generator = torch.Generator().manual_seed(hash((self.augment_seed, epoch, index)) % 2**63)
        if self.augmentation is None:
            symmetry = int(torch.randint(8, (), generator=generator))
            return replace(sample, grid=square_symmetry(sample.grid, symmetry))
        progress = training_progress(epoch, self.num_epochs)
        changed = augment(sample.grid, sample.features, self.augmentation, progress, generator)
        return replace(
            sample,
            grid=changed.grid,
            features=changed.features,
            patch_ratios=_rows(sample.patch_ratios, changed.kept),
            patch_labels=_rows(sample.patch_labels, changed.kept),
        )

    def _read(self, index: int) -> SlideSample:
        item = self.items[index]
        record = self.store.read(item.slide_id)
        ratios = None if self.segmentation is None else _ratios(record, self.segmentation.classes)
        sample = SlideSample(
            index,
            torch.from_numpy(record.features),
            torch.from_numpy(record.grid),
            item.label,
            targets=torch.tensor(item.targets) if item.targets else None,
            patch_ratios=ratios,
            patch_labels=None
            if self.segmentation is None or ratios is None
            else self.segmentation.patch_labels(ratios),
        )
        tensors = (sample.features, sample.grid, sample.patch_ratios, sample.patch_labels)
        num_bytes = sum(tensor.nbytes for tensor in tensors if tensor is not None)
        if num_bytes <= self._cache_bytes_left:
            self._cache[index] = sample
            self._cache_bytes_left -= num_bytes
        return sample


def _ratios(record: SlideRecord, classes: Sequence[str]) -> Tensor:
    """Ratios of these classes, float32 `[patches, classes]`; NaN when the slide has no annotation.

    Raises:
        StoreError: the slide was annotated with other classes.
    """
    if record.ratios is None:
        return torch.full((len(record.grid), len(classes)), torch.nan)
    if unknown := [name for name in classes if name not in record.ratio_classes]:
        raise StoreError(
            f"slide {record.slide_id!r} is annotated with the classes {list(record.ratio_classes)}, without {unknown}; "
            "run `span annotate` with --classes again, or correct the task's classes"
        )
    return torch.from_numpy(record.ratios[:, [record.ratio_classes.index(name) for name in classes]])


def _rows(values: Tensor | None, kept: Tensor | None) -> Tensor | None:
    return values if values is None or kept is None else values[kept]
