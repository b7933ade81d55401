"""How does one slide of a store become a complete folder of heatmaps? Shared by `span heatmap` and `span predict`.

1. Scores: from the model, or from the folder when the same model made them of the same slide.
2. Pictures and outlines from the scores; skipped when those that are there were made of the same scores, colours and
   slide file.
3. `meta.json`, last.

The two steps are apart because one colour scale for a cohort needs the scores of all slides before the first picture.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from span_sparse.datasets import SegmentationTask
from span_sparse.datasets.prefetch import placement_for
from span_sparse.datasets.slide_dataset import SlideItem
from span_sparse.errors import HeatmapError, SpanError
from span_sparse.heatmaps import (
    DONE,
    META_FILE,
    SCORES_FILE,
    ColourScale,
    IndexRow,
    SlideHeatmap,
    folder_name,
    is_complete,
    read_meta,
    read_scores,
    render,
    write_meta,
    write_scores,
)
from span_sparse.training.explain import PatchScores, default_score, patch_scores, patches_of_classes
from span_sparse.training.patch_segmenter import PatchSegmenter
from span_sparse.training.slides_in_turn import SlidesInTurn
from span_sparse.wsi import open_slide

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from span_sparse.cohort import CohortTable
    from span_sparse.datasets import SlideBatch
    from span_sparse.store import FeatureStore
    from span_sparse.training import TaskModule

FORMAT: Final = 1
"""Raised whenever the same scores give other files."""

_KNOWN_BEFORE: Final = ("y_true", "true_", "time", "event", "hits_", "false_alarms_", "misses_", "dice_")
"""Columns of the prediction table that are no prediction."""


@dataclass(slots=True)
class HeatmapJob:
    """Heatmaps of slides of one store by one model.

    Attributes:
        model: in evaluation mode, on its device.
        checkpoint: its file.
        store: the features.
        output: folder of the heatmaps.
        cohort: the slides' table.
        slides_dir: folder of the slide files; None: pictures on white.
        score: the one to show; None: the model's default.
        overwrite: compute and draw again what is there.
    """

    model: TaskModule
    checkpoint: Path
    store: FeatureStore
    output: Path
    cohort: CohortTable
    slides_dir: Path | None = None
    score: str | None = None
    overwrite: bool = False
    _checkpoint_hash: str = field(init=False)
    _slides: SlidesInTurn = field(init=False)
    _predicted_now: dict[str, dict[str, Any]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._checkpoint_hash = hashlib.sha256(self.checkpoint.read_bytes()).hexdigest()
        device, task = self.model.device, self.model.task
        placement = placement_for(device, self.model.network)
        segmentation = task if isinstance(task, SegmentationTask) else None
        self._slides = SlidesInTurn(self.store, device, placement, segmentation)

    def expect(self, items: Sequence[SlideItem]) -> None:
        """Says whose scores will be asked for, in which order, so that a GPU need not wait for a slide to be read."""
        if self._slides.placement is not None:
            self._slides.expect([item for item in items if self._needs_the_model(item)])

    def _needs_the_model(self, item: SlideItem) -> bool:
        try:
            return self._predicted_before(item) is None
        except SpanError:  # told when it is this slide's turn
            return False

    def folder(self, item: SlideItem) -> Path:
        """Where the slide's files lie."""
        return self.output / folder_name(item.slide_id)

    def scores(self, item: SlideItem) -> SlideHeatmap:
        """The slide's scores; written to its folder unless they are there.

        Raises:
            SpanError: the slide is not in the store, or its scores cannot be used.
            OSError: the folder cannot be written.
        """
        slide_path = None if self.slides_dir is None else self.cohort.slide_path(item.slide_id, self.slides_dir)
        metadata = self.store.metadata(item.slide_id)
        self.model.task.check_features(metadata.encoder, metadata.lattice.spec, where=str(self.store.path))
        about = {
            "slide_id": item.slide_id,
            "case_id": item.case_id,
            "checkpoint": str(self.checkpoint),
            "lattice": metadata.lattice,
            "dimensions_px0": (metadata.width_px0, metadata.height_px0),
            "slide_path": slide_path,
        }
        predicted = self._predicted_before(item)
        if predicted is None:
            predicted = self._compute(item, about)
        # also of scores that are new: a later run reads the rounded ones, and must come to the same colours
        return self._heatmap(*read_scores(self.folder(item)), predicted, about)

    def _compute(self, item: SlideItem, about: dict[str, Any]) -> dict[str, Any]:
        """Run the model and write the scores; gives what it says of the slide."""
        batch = self._slides.batch(item)
        found = patch_scores(self.model, batch)[0]
        predicted = self._predicted(batch, found)
        heatmap = self._heatmap(found.names, found.grid.numpy(), found.values.numpy(), predicted, about)
        write_scores(self.folder(item), heatmap)
        self._predicted_now[item.slide_id] = predicted
        return predicted

    def _predicted_before(self, item: SlideItem) -> dict[str, Any] | None:
        """What the model said of the slide when it made the scores that are in its folder; None if it has to run."""
        if item.slide_id in self._predicted_now:
            return self._predicted_now[item.slide_id]
        folder = self.folder(item)
        meta = None if self.overwrite else read_meta(folder)
        if meta is None or not isinstance(meta.get("predicted"), dict) or not (folder / SCORES_FILE).is_file():
            return None
        same = str(meta.get("fingerprint")).startswith(f"{self._scores_hash(item)}-")
        return meta["predicted"] if same else None

    def is_done(self, item: SlideItem, scale: ColourScale) -> bool:
        """Whether the slide's folder holds what this job would write with these colours."""
        return not self.overwrite and is_complete(self.folder(item), self._fingerprint(item, scale))

    def draw(self, item: SlideItem, heatmap: SlideHeatmap, scale: ColourScale) -> None:
        """Write pictures, outlines and `meta.json`.

        Raises:
            SpanError: the slide cannot be opened or read.
            OSError: the folder cannot be written.
        """
        folder = self.folder(item)
        (folder / META_FILE).unlink(missing_ok=True)
        regions = self.regions(heatmap)
        if heatmap.slide_path is None:
            files = render(folder, heatmap, scale, regions=regions)
        else:
            with open_slide(heatmap.slide_path) as reader:
                files = render(folder, heatmap, scale, reader=reader, regions=regions)
        write_meta(folder, heatmap, files, self._fingerprint(item, scale))

    def complete_slides(self) -> list[IndexRow]:
        """Rows of the index for all complete folders of the output."""
        rows: list[IndexRow] = []
        for folder in sorted(entry for entry in self.output.iterdir() if entry.is_dir()):
            meta = read_meta(folder)
            if meta is not None and folder_name(str(meta.get("slide_id"))) == folder.name:
                rows.append(IndexRow(str(meta["slide_id"]), str(meta.get("case_id")), folder.name, DONE))
        return rows

    def regions(self, heatmap: SlideHeatmap) -> dict[str, NDArray[np.bool_]] | None:
        """Of a segmenter, which patches belong to each class; else None."""
        if not isinstance(self.model, PatchSegmenter):
            return None
        scores = PatchScores(heatmap.names, torch.from_numpy(heatmap.values), torch.from_numpy(heatmap.grid))
        return {name: patches.numpy() for name, patches in patches_of_classes(self.model, scores).items()}

    def _heatmap(
        self,
        names: tuple[str, ...],
        grid: NDArray[np.int32],
        values: NDArray[np.float32],
        predicted: Mapping[str, Any],
        about: dict[str, Any],
    ) -> SlideHeatmap:
        shown = default_score(self.model, names) if self.score is None else self.score
        if shown not in names:
            raise HeatmapError(f"--score {shown}: the model has no such score; it has {', '.join(names)}")
        return SlideHeatmap(names=names, grid=grid, values=values, predicted=predicted, default_score=shown, **about)

    @torch.no_grad()
    def _predicted(self, batch: SlideBatch, scores: PatchScores) -> dict[str, Any]:
        """What the model says of the slide; of a segmenter, the share of the patches in each class."""
        if isinstance(self.model, PatchSegmenter):
            patches_of = patches_of_classes(self.model, scores)
            return {f"share_{name}": float(patches.float().mean()) for name, patches in patches_of.items()}
        columns = self.model.prediction_columns(self.model.predict_step(batch))
        values = {name: column[0] for name, column in columns.items() if not name.startswith(_KNOWN_BEFORE)}
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }

    def _scores_hash(self, item: SlideItem) -> str:
        slide = self.store.metadata(item.slide_id).as_attributes(), self.store.content_checksum(item.slide_id)
        return _hash([FORMAT, self._checkpoint_hash, item.case_id, slide])

    def _fingerprint(self, item: SlideItem, scale: ColourScale) -> str:
        slides = None if self.slides_dir is None else str(self.slides_dir.absolute())
        return f"{self._scores_hash(item)}-{_hash([scale.as_dict(), slides])}"


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
