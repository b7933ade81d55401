"""Batches of single slides for whoever asks for one slide after the other (heatmaps).

On a GPU the slide that will be asked for next is read and made ready while the one before is explained and drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from span_sparse.datasets import SegmentationTask, SlideBatch, SlideDataset, collate
from span_sparse.datasets.loaders import SlideLoader
from span_sparse.datasets.prefetch import Placement
from span_sparse.datasets.slide_dataset import SlideItem
from span_sparse.store import FeatureStore


class SlidesInTurn:
    """Slides of a store, each as a batch on the model's device.

    Args:
        store: where the features are.
        device: of the model.
        placement: how batches get there ahead (`placement_for`); None: when they are asked for.
        segmentation: gives every patch the ratios and the label of this task.
    """

    def __init__(
        self,
        store: FeatureStore,
        device: torch.device,
        placement: Placement | None,
        segmentation: SegmentationTask | None = None,
    ) -> None:
        self.store, self.device, self.placement, self.segmentation = store, device, placement, segmentation
        self._expected: list[SlideItem] = []
        self._batches: Iterator[SlideBatch] = iter(())
        self._coming: list[SlideItem] = []

    def expect(self, items: Sequence[SlideItem]) -> None:
        """Says which slides will be asked for, in which order; nothing is read yet."""
        self._expected, self._coming, self._batches = list(items), [], iter(())

    def batch(self, item: SlideItem) -> SlideBatch:
        """The batch of a slide, expected or not.

        Raises:
            StoreError: the slide is missing, truncated or corrupt; the others can be asked for all the same.
        """
        if self.placement is None:
            return collate([self._dataset([item])[0]]).to(self.device)
        if not self._coming or self._coming[0].slide_id != item.slide_id:
            ids = [one.slide_id for one in self._expected]
            self._coming = [item, *(self._expected[ids.index(item.slide_id) + 1 :] if item.slide_id in ids else [])]
            self._batches = iter(SlideLoader(self._dataset(self._coming), 0, placement=self.placement, batch_size=1))
        self._coming.pop(0)
        try:
            return next(self._batches)
        except BaseException:
            self._coming = []  # what comes after a failure has to be asked for anew
            raise

    def _dataset(self, items: Sequence[SlideItem]) -> SlideDataset:
        return SlideDataset(self.store, items, segmentation=self.segmentation)
