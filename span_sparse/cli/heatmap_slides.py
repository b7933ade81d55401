"""Of which slides does `span heatmap` draw heatmaps, and in which order?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from span_sparse.cohort import CASE_ID, MPP, SLIDE_ID, CohortTable, read_cohort
from span_sparse.datasets import ClassificationTask, SegmentationTask, SlideDataset
from span_sparse.datasets.batch import NO_LABEL
from span_sparse.datasets.slide_dataset import SlideItem
from span_sparse.datasets.targets import SlideTarget, read_targets
from span_sparse.errors import CohortError, ConfigError
from span_sparse.training.prediction import predict_slides

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from span_sparse.datasets import AnyTask
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
    slides = list(cohort.slide_ids)
    if args.split is not None:
        side_of = cohort.splits(args.split_column)
        slides = [slide for slide in slides if side_of.get(slide) == args.split]
    if not slides:
        raise CohortError(f"{cohort.path}: there is no slide{f' of split {args.split!r}' if args.split else ''}")
    if args.top is None:
        unknown = (math.nan,) * len(model.task.target_names)
        items = [SlideItem(slide, cohort.case_of(slide), targets=unknown) for slide in slides]
        return cohort, items[: args.limit]
    return cohort, _worst(args, store, model, cohort, slides)[: args.limit]


def store_as_cohort(store: FeatureStore) -> CohortTable:
    """A table of all slides of a store."""
    metadata = [store.metadata(slide) for slide in store.slide_ids]
    if not metadata:
        raise CohortError(f"{store.path} holds no slides; run `span extract` first")
    frame = pd.DataFrame({SLIDE_ID: pd.Series([one.slide_id for one in metadata], dtype=object)})
    frame[CASE_ID] = pd.Series([one.case_id or one.slide_id for one in metadata], dtype=object)
    frame[MPP] = math.nan
    return CohortTable(store.path, frame)


def _worst(
    args: Namespace, store: FeatureStore, model: TaskModule, cohort: CohortTable, slides: list[str]
) -> list[SlideItem]:
    """The slides with the largest loss, worst first."""
    from rich.progress import track

    present = [slide for slide in slides if store.has(slide)]
    targets = _targets(args, cohort, present, model.task)
    items = [SlideItem(slide, cohort.case_of(slide), *targets[slide]) for slide in present]
    segmentation = model.task if isinstance(model.task, SegmentationTask) else None
    dataset = SlideDataset(store, items, segmentation=segmentation)
    model.task.check_features(*store.common_identity(present), where=str(store.path))
    losses = predict_slides(model, dataset, progress=track(range(len(items)), description="predicting"))["loss"].numpy()
    known = np.flatnonzero(~np.isnan(losses))
    if not len(known):
        raise CohortError(
            f"{cohort.path}: --top {args.top}: no slide's loss is known, so none is the worst; it takes labels "
            "(--cohort with the task's columns; of segmenters, `span annotate`)"
        )
    order = known[np.argsort(-losses[known], kind="stable")]
    return [items[index] for index in order[: args.top]]


def _targets(args: Namespace, cohort: CohortTable, slides: list[str], task: AnyTask) -> dict[str, SlideTarget]:
    """What is known of each slide; nothing where the table lacks the task's columns."""
    if isinstance(task, ClassificationTask):
        if args.label not in cohort.frame.columns:
            return dict.fromkeys(slides, SlideTarget())
        labels = cohort.labels(args.label)
        index_of = {name: index for index, name in enumerate(task.class_names)}
        return {slide: SlideTarget(index_of.get(labels[slide] or "", NO_LABEL)) for slide in slides}
    if not set(task.target_names) <= set(cohort.frame.columns):
        return dict.fromkeys(slides, SlideTarget(NO_LABEL, (math.nan,) * len(task.target_names)))
    return read_targets(task, cohort, dict.fromkeys(slides, "test"), args.split_column)[1]
