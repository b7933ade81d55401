"""`span evaluate`: what does a checkpoint say about a cohort it has not seen?

The checkpoint alone says which classes, encoder and lattice it is for; a store of another encoder or lattice is
refused, because a number computed from other features looks like any other. Without a label column the slides are
predicted and no metrics are written.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from span_sparse.cohort import CohortTable
    from span_sparse.datasets import AnyTask
    from span_sparse.datasets.slide_dataset import SlideItem
    from span_sparse.datasets.targets import SlideTarget
    from span_sparse.store import FeatureStore

DESCRIPTION = "Apply a checkpoint to a store: predictions, metrics with intervals, ROC and confusion pictures."


_SHOWN = {
    "auc": "AUC",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "c_index": "C-index",
    "dice": "Dice",
    "pooled_dice": "Dice over all patches",
    "mae": "mean absolute error",
    "pearson": "Pearson's r",
}


def build_parser() -> ArgumentParser:
    """The options of `span evaluate`."""
    parser = ArgumentParser(prog="span evaluate", description=DESCRIPTION)
    parser.add_argument("--config", action="config", help="YAML file with these options")
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint written by `lightning fit`")
    parser.add_argument("--store", type=Path, required=True, help="feature store written by `span extract`")
    parser.add_argument("--cohort", type=Path, help="CSV of the slides, cases and labels; default: the whole store")
    parser.add_argument("--output", type=Path, required=True, help="folder for predictions, metrics and pictures")
    parser.add_argument("--label", type=str, default="label", help="column of the class names (default: label)")
    parser.add_argument("--split-column", type=str, default="split", help="column of the splits (default: split)")
    parser.add_argument(
        "--split", type=str, help="only slides of this split; default: all, each under its own split's name"
    )
    parser.add_argument("--batch-size", type=int, default=1, help="slides a step; does not change predictions")
    parser.add_argument("--num-workers", type=int, default=0, help="reading processes")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--resamples", type=int, default=2000, help="patient-level bootstrap drawings")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--skip-missing", action="store_true", help="leave out slides that are not in the store")
    return parser


def run(args: Namespace) -> int:
    """Evaluates; returns 0.

    Raises:
        SpanError: bad input.
    """
    from rich.progress import track

    from span_sparse.cohort import read_cohort
    from span_sparse.datasets import SegmentationTask, SlideDataset
    from span_sparse.errors import ConfigError
    from span_sparse.evaluation import write_results
    from span_sparse.store import FeatureStore
    from span_sparse.training.checkpoint import load_model
    from span_sparse.training.prediction import predict_slides, prediction_frame

    if args.batch_size < 1 or args.num_workers < 0 or args.resamples < 1:
        raise ConfigError(
            f"--batch-size {args.batch_size} and --resamples {args.resamples} must be at least 1, "
            f"--num-workers {args.num_workers} at least 0"
        )
    if args.split is not None and args.cohort is None:
        raise ConfigError(f"--split {args.split}: the splits are in a cohort table; give --cohort")
    model = load_model(args.checkpoint)
    task = model.task
    store = FeatureStore(args.store)
    cohort = read_cohort(args.cohort) if args.cohort is not None else None
    items, splits = _slides(args, store, cohort, task)
    task.check_features(*store.common_identity([item.slide_id for item in items]), where=str(args.store))
    dataset = SlideDataset(store, items, segmentation=task if isinstance(task, SegmentationTask) else None)
    num_batches = -(-len(items) // args.batch_size)
    outcomes = predict_slides(
        model.to(_device(args.device)),
        dataset,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        progress=track(range(num_batches), description="predicting"),
    )
    frame = prediction_frame(model, outcomes, items, split=splits)
    about = {"run": {"checkpoint": str(args.checkpoint), "store": str(args.store)}}
    files = write_results(args.output, frame, task.kind, resamples=args.resamples, seed=args.seed, about=about)
    for split, metrics in files.metrics.items():
        print(f"{split}: {_summary(metrics)}")
    for note in files.notes:
        print(f"note: {note}")
    print(f"{len(items)} slides; written: {', '.join(path.name for path in files.paths)} in {files.output_dir}")
    return 0


def _slides(
    args: Namespace, store: FeatureStore, cohort: CohortTable | None, task: AnyTask
) -> tuple[list[SlideItem], list[str]]:
    """The slides to predict, with their labels where known, and the split of each."""
    from span_sparse.datasets.slide_dataset import SlideItem
    from span_sparse.errors import CohortError, StoreError

    if cohort is None:
        metadata = [store.metadata(slide) for slide in store.slide_ids]
        unknown = (math.nan,) * len(task.target_names)
        items = [SlideItem(one.slide_id, one.case_id or one.slide_id, targets=unknown) for one in metadata]
        return items, ["all"] * len(metadata)
    columns = cohort.frame.columns
    split_of = cohort.splits(args.split_column) if args.split_column in columns else {}
    slides = [slide for slide in cohort.slide_ids if args.split is None or split_of.get(slide) == args.split]
    if not slides:
        raise CohortError(
            f"{args.cohort}: no slide has {args.split!r} in column {args.split_column!r}, "
            f"found {sorted(set(split_of.values())) or 'no such column'}"
        )
    missing = [slide for slide in slides if not store.has(slide)]
    if missing and (not args.skip_missing or len(missing) == len(slides)):
        raise StoreError(
            f"{args.store}: {len(missing)} of {len(slides)} slides are not in the store, first {missing[0]!r}; run "
            "`span extract` (it resumes), or leave them out with --skip-missing"
        )
    present = [slide for slide in slides if store.has(slide)]
    targets = _targets(args, cohort, present, task)
    items = [SlideItem(slide, cohort.case_of(slide), *targets[slide]) for slide in present]
    return items, [split_of.get(slide, "all") for slide in present]


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


def _device(name: str) -> str:
    import torch

    from span_sparse.errors import ConfigError

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name!r}: expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("--device cuda: no CUDA device is available here; use --device cpu")
        torch.cuda.set_device(device)  # spconv launches on the current device
    return name


def _summary(metrics: dict[str, Any]) -> str:
    parts = []
    for name, words in _SHOWN.items():
        if metrics.get(name) is not None:
            interval = metrics.get(f"{name}_ci")
            parts.append(
                f"{words} {metrics[name]:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
            )
    return f"{', '.join(parts)} ({metrics['num_slides']} slides, {metrics['num_cases']} cases)"
