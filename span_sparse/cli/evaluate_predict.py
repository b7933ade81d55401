"""How are slides predicted so that nothing is done twice and nothing is lost?

Each prediction is appended to the parts in the output folder as soon as it is known (`span_sparse.evaluation.parts`).
Before, the slides that have one already, by the same checkpoints from the same features, are left out; afterwards the
table of the whole cohort is put together from the parts of all shards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import Namespace

if TYPE_CHECKING:
    import pandas as pd

    from span_sparse.cli.evaluate_cohort import EvaluatedSlides
    from span_sparse.datasets.slide_dataset import SlideItem
    from span_sparse.evaluation.parts import Part
    from span_sparse.extract.sharding import Shard
    from span_sparse.store import FeatureStore
    from span_sparse.training.ensemble import Ensemble


def slides_of_shard(
    args: Namespace, slides: EvaluatedSlides, store: FeatureStore, shard: Shard | None
) -> list[SlideItem]:
    """The slides of this job. With `--slides`, those it has extracted."""
    from span_sparse.evaluation.parts import FOLDER
    from span_sparse.extract.sharding import assignment_path, ids_of_shard

    if shard is None:
        return slides.items
    path = assignment_path(args.store if args.slides is not None else args.output / FOLDER / "slides", shard)
    ids = {item.slide_id: item.slide_id for item in slides.items}
    mine = ids_of_shard(ids, lambda slide: store.metadata(slide).num_patches if store.has(slide) else 0, shard, path)
    return [item for item in slides.items if item.slide_id in mine]


def predict_missing(
    args: Namespace,
    ensemble: Ensemble,
    voices: list[str],
    store: FeatureStore,
    mine: list[SlideItem],
    shard: Shard | None,
) -> None:
    """Predicts the slides of this job that are not in the parts yet."""
    from rich.progress import Progress

    from span_sparse.cli.evaluate_cohort import part_key
    from span_sparse.datasets import SegmentationTask, SlideDataset
    from span_sparse.evaluation.parts import FOLDER, PartWriter, read_parts
    from span_sparse.training.prediction import rows_of, stream_outcomes

    present = _present(args, store, mine)
    task = ensemble.models[0].task
    if present:
        task.check_features(*store.common_identity([item.slide_id for item in present]), where=str(args.store))
    keys = {item.slide_id: part_key(store, item) for item in present}
    done = {} if args.overwrite else read_parts(args.output / FOLDER, voices)
    items = [item for item in present if item.slide_id not in done or done[item.slide_id].key != keys[item.slide_id]]
    kept = len(present) - len(items)
    if kept:
        print(f"{kept} slides were predicted before, by the same checkpoints from the same features")
    path = args.output / FOLDER / f"{shard.name if shard else 'all'}.jsonl"
    if args.overwrite:
        path.unlink(missing_ok=True)
    dataset = SlideDataset(store, items, segmentation=task if isinstance(task, SegmentationTask) else None)
    with PartWriter(path, voices) as writer, Progress() as progress:
        bar = progress.add_task("predicting", total=len(items))
        for item in mine:
            if item.slide_id not in keys:
                writer.add(item.slide_id, "", [])
        batches = stream_outcomes(
            ensemble, dataset, batch_size=args.batch_size, max_tokens=args.max_tokens, num_workers=args.num_workers
        )
        for outcomes in batches:
            by_voice = [rows_of(model, one) for model, one in zip(ensemble.voices, outcomes, strict=True)]
            for row, index in enumerate(outcomes[0].indices.tolist()):
                slide_id = items[index].slide_id
                writer.add(slide_id, keys[slide_id], [rows[row] for rows in by_voice])
            progress.advance(bar, len(outcomes[0].indices))


def is_current(part: Part | None, store: FeatureStore, item: SlideItem) -> bool:
    """Whether a part says what the models say of the slide today."""
    from span_sparse.cli.evaluate_cohort import part_key

    return part is not None and part.key == (part_key(store, item) if store.has(item.slide_id) else "")


def prediction_table(slides: EvaluatedSlides, parts: dict[str, Part], voice: int) -> pd.DataFrame:
    """The prediction table of one voice, in the cohort's order."""
    import pandas as pd

    rows = []
    for number, (item, split) in enumerate(zip(slides.items, slides.splits, strict=True)):
        part = parts[item.slide_id]
        if part.members:
            ids = {"slide_id": item.slide_id, "case_id": item.case_id, "fold": "", "split": split}
            groups = {column: values[number] for column, values in slides.groups.items()}
            rows.append({**ids, **part.members[voice], **groups})
    return pd.DataFrame(rows)


def _present(args: Namespace, store: FeatureStore, mine: list[SlideItem]) -> list[SlideItem]:
    """The slides that are in the store; all of them unless missing ones may be left out."""
    from span_sparse.errors import StoreError

    present = [item for item in mine if store.has(item.slide_id)]
    num_missing = len(mine) - len(present)
    if num_missing and (not args.skip_missing or not present):
        first = next(item.slide_id for item in mine if not store.has(item.slide_id))
        todo = "their extraction failed, see above" if args.slides else "run `span extract` (it resumes)"
        raise StoreError(
            f"{args.store}: {num_missing} of {len(mine)} slides are not in the store, first {first!r}; {todo}, or "
            "leave them out with --skip-missing"
        )
    return present
