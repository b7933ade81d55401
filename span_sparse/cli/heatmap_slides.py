"""Of which slides does `span heatmap` draw heatmaps, and in which order?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jsonargparse import Namespace
from numpy.typing import NDArray
from rich.progress import Progress

from span_sparse.cli.device_option import reading_processes, tokens_per_step
from span_sparse.cli.evaluate_cohort import slides_of_cohort
from span_sparse.cohort import CASE_ID, MPP, SLIDE_ID, CohortTable, read_cohort
from span_sparse.datasets import SegmentationTask, SlideDataset
from span_sparse.datasets.slide_dataset import SlideItem
from span_sparse.errors import CohortError, ConfigError
from span_sparse.training.ensemble import Ensemble
from span_sparse.training.outcomes import OutcomeCollector
from span_sparse.training.prediction import stream_outcomes

if TYPE_CHECKING:
    from span_sparse.store import FeatureStore
    from span_sparse.training import TaskModule


def chosen_slides(args: Namespace, store: FeatureStore, model: TaskModule) -> tuple[CohortTable, list[SlideItem]]:
    """The cohort's table and the slides of `--cohort`, `--split`, `--limit`, and `--top`.

    Raises:
        SpanError: there are none, or no slide's loss is known.
    """
    if args.cohort is None:
        if args.split is not None:
            raise ConfigError(f"--split {args.split}: the splits are in a cohort table; give --cohort")
        cohort = store_as_cohort(store)
    else:
        cohort = read_cohort(args.cohort)
    if args.top is not None:
        return cohort, _worst(args, store, model, cohort)[: args.limit]
    slides = list(cohort.slide_ids)
    if args.split is not None:
        side_of = cohort.splits(args.split_column)
        slides = [slide for slide in slides if side_of.get(slide) == args.split]
    if not slides:
        raise CohortError(f"{cohort.path}: there is no slide of split {args.split!r}")
    unknown = (math.nan,) * len(model.task.target_names)
    return cohort, [SlideItem(slide, cohort.case_of(slide), targets=unknown) for slide in slides[: args.limit]]


def store_as_cohort(store: FeatureStore) -> CohortTable:
    """A table of all slides of a store."""
    metadata = [store.metadata(slide) for slide in store.slide_ids]
    if not metadata:
        raise CohortError(f"{store.path} holds no slides; run `span extract` first")
    frame = pd.DataFrame({SLIDE_ID: pd.Series([one.slide_id for one in metadata], dtype=object)})
    frame[CASE_ID] = pd.Series([one.case_id or one.slide_id for one in metadata], dtype=object)
    frame[MPP] = math.nan
    return CohortTable(store.path, frame)


def _losses(model: TaskModule, dataset: SlideDataset) -> NDArray[np.float32]:
    """The loss of every slide, in order."""
    device, collector = str(model.device), OutcomeCollector()
    steps = {"max_tokens": tokens_per_step(device), "num_workers": reading_processes(device)}
    with Progress() as progress:
        bar = progress.add_task("predicting", total=len(dataset))
        for (part,) in stream_outcomes(Ensemble([model]), dataset, **steps):
            collector.add(part)
            progress.advance(bar, len(part.indices))
    return collector.gather()["loss"].numpy()


def _worst(args: Namespace, store: FeatureStore, model: TaskModule, cohort: CohortTable) -> list[SlideItem]:
    """The slides with the largest loss, worst first."""
    known = slides_of_cohort(Namespace(**args.as_dict(), by=[]), cohort, model.task).items
    items = [item for item in known if store.has(item.slide_id)]
    model.task.check_features(*store.common_identity([item.slide_id for item in items]), where=str(store.path))
    segmentation = model.task if isinstance(model.task, SegmentationTask) else None
    dataset = SlideDataset(store, items, segmentation=segmentation)
    losses = _losses(model, dataset)
    has_loss = np.flatnonzero(~np.isnan(losses))
    if not len(has_loss):
        raise CohortError(
            f"{cohort.path}: --top {args.top}: no slide's loss is known, so none is the worst; it takes labels "
            "(--cohort with the task's columns; of segmenters, `span annotate`)"
        )
    order = has_loss[np.argsort(-losses[has_loss], kind="stable")]
    return [items[index] for index in order[: args.top]]
