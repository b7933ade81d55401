"""Which slides does `span evaluate` predict, what is known of them, and which of them are this job's?

The cohort table names them, or the store does, or a folder of slides. Labels and splits come from the table; what it
does not say is unknown and not refused, because predicting new slides is half of what evaluation is for.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

if TYPE_CHECKING:
    from span_sparse.cohort import CohortTable
    from span_sparse.datasets import AnyTask
    from span_sparse.datasets.slide_dataset import SlideItem
    from span_sparse.datasets.targets import SlideTarget
    from span_sparse.store import FeatureStore


@dataclass(frozen=True, slots=True)
class EvaluatedSlides:
    """The slides of an evaluation, those of all shards.

    Attributes:
        items: with their labels where known.
        splits: of each.
        groups: values of the columns of subgroups, by column, each with one value per slide.
    """

    items: list[SlideItem]
    splits: list[str]
    groups: dict[str, list[str]]


def slides_of_cohort(args: Namespace, cohort: CohortTable, task: AnyTask) -> EvaluatedSlides:
    """The slides of a table, of one split or all.

    Raises:
        CohortError: no slide of that split, or a column is missing or holds what the model does not know.
        PredictionTableError: a column of subgroups has a name that predictions need.
    """
    from span_sparse.cohort import CASE_ID
    from span_sparse.datasets.slide_dataset import SlideItem
    from span_sparse.errors import CohortError
    from span_sparse.evaluation.subgroups import check_column

    columns = cohort.frame.columns
    split_of = cohort.splits(args.split_column) if args.split_column in columns else {}
    slides = [slide for slide in cohort.slide_ids if args.split is None or split_of.get(slide) == args.split]
    if not slides:
        raise CohortError(
            f"{args.cohort}: no slide has {args.split!r} in column {args.split_column!r}, "
            f"found {sorted(set(split_of.values())) or 'no such column'}"
        )
    targets = _targets(args, cohort, slides, task)
    for column in args.by:
        check_column(column, str(args.cohort))
    values = {column: cohort.labels(column) for column in args.by}
    cases = cohort.labels(CASE_ID)
    return EvaluatedSlides(
        [SlideItem(slide, str(cases[slide]), *targets[slide]) for slide in slides],
        [split_of.get(slide, "all") for slide in slides],
        {column: [found[slide] or "" for slide in slides] for column, found in values.items()},
    )


def slides_of_store(store: FeatureStore, task: AnyTask) -> EvaluatedSlides:
    """All slides of a store, nothing known of them."""
    from span_sparse.datasets.slide_dataset import SlideItem

    metadata = [store.metadata(slide) for slide in store.slide_ids]
    unknown = (math.nan,) * len(task.target_names)
    items = [SlideItem(one.slide_id, one.case_id or one.slide_id, targets=unknown) for one in metadata]
    return EvaluatedSlides(items, ["all"] * len(items), {})


def table_of_folder(slides_dir: Path, path: Path) -> Path:
    """Writes a cohort table of all slides of a folder, each its own case.

    Args:
        slides_dir: the folder; not those below it.
        path: the table.

    Raises:
        SlideError: there is no such folder, or no slide in it.
        CohortError: two slides have the same stem.
    """
    from span_sparse.cohort import SLIDE_SUFFIXES
    from span_sparse.errors import CohortError, SlideError
    from span_sparse.files import write_atomically

    if not slides_dir.is_dir():
        raise SlideError(f"{slides_dir}: no such folder of slides")
    files = sorted(entry for entry in slides_dir.iterdir() if entry.suffix.lower() in SLIDE_SUFFIXES)
    if not files:
        raise SlideError(f"{slides_dir}: no slide in it ({', '.join(SLIDE_SUFFIXES)}); name the folder, or a --cohort")
    stems = [file.stem for file in files]
    if doubled := next((stem for stem in stems if stems.count(stem) > 1), None):
        raise CohortError(f"{slides_dir}: several slides are called {doubled!r}; say which is which in a --cohort")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide_id", "path"])
    writer.writerows((file.stem, file.name) for file in files)
    write_atomically(path, text.getvalue().encode())
    return path


def part_key(store: FeatureStore, item: SlideItem) -> str:
    """Changes when what the models see of a slide, or what is known of it, does."""
    known = f"{store.content_checksum(item.slide_id)} {item.label} {[value.hex() for value in item.targets]}"
    return hashlib.sha256(known.encode()).hexdigest()[:32]


def _targets(args: Namespace, cohort: CohortTable, slides: list[str], task: AnyTask) -> dict[str, SlideTarget]:
    """What is known of each slide; nothing where the table lacks the task's columns."""
    from span_sparse.datasets import ClassificationTask
    from span_sparse.datasets.batch import NO_LABEL
    from span_sparse.datasets.targets import SlideTarget, read_targets
    from span_sparse.errors import CohortError

    if not isinstance(task, ClassificationTask):
        if not set(task.target_names) <= set(cohort.frame.columns):
            return dict.fromkeys(slides, SlideTarget(NO_LABEL, (math.nan,) * len(task.target_names)))
        return read_targets(task, cohort, dict.fromkeys(slides, "test"), args.split_column)[1]
    label_of = cohort.labels(args.label) if args.label in cohort.frame.columns else {}
    unknown = sorted({label for slide in slides if (label := label_of.get(slide)) is not None} - set(task.class_names))
    if unknown:
        raise CohortError(
            f"{args.cohort}: column {args.label!r} holds {unknown}, the checkpoint knows {list(task.class_names)}; "
            "name the right column with --label"
        )
    indices = {name: index for index, name in enumerate(task.class_names)} | {None: NO_LABEL}
    return {slide: SlideTarget(indices[label_of.get(slide)]) for slide in slides}
