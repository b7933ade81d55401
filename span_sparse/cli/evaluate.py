"""`span evaluate`: what do checkpoints say about a cohort they have not seen?

A checkpoint alone says which classes, encoder and lattice it is for; a store of another encoder or lattice is refused,
because a number computed from other features looks like any other. With `--slides` the features are made first, by the
engine of `span extract` and the checkpoint's own encoder and lattice. Several checkpoints are an ensemble.

1. What was predicted already, by the same checkpoints from the same features, is read from `OUTPUT/parts`.
2. The other slides (with `--shard`, those of this job) are predicted; each is kept at once.
3. When every slide of the cohort is there, predictions, figures and pictures are written; another shard may do that.

Without a label column the slides are predicted and no metrics are written.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from span_sparse.cli.tissue_option import TISSUE_HELP, tissue_settings

if TYPE_CHECKING:
    import pandas as pd

    from span_sparse.cli.evaluate_cohort import EvaluatedSlides
    from span_sparse.cohort import CohortTable
    from span_sparse.extract.sharding import Shard
    from span_sparse.training import TaskModule
    from span_sparse.training.ensemble import Ensemble

DESCRIPTION = "Apply checkpoints to a store or to slides: predictions, figures with intervals, pictures."

MEMBERS = "members"
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
    add = parser.add_argument
    add("--config", action="config", help="YAML file with these options")
    add(
        "--checkpoint", type=Path, nargs="+", action="extend", required=True,
        help="checkpoints written by `lightning fit`; several are an ensemble",
    )  # fmt: skip
    add("--store", type=Path | None, default=None, help="feature store (with --slides: default OUTPUT/store)")
    add("--slides", type=Path | None, default=None, help="folder of slide files: extract their features first")
    add("--cohort", type=Path | None, default=None, help="CSV of the slides, cases and labels; default: all slides")
    add("--output", type=Path, required=True, help="folder for predictions, metrics and pictures")
    add("--label", type=str, default="label", help="column of the class names (default: label)")
    add("--split-column", type=str, default="split", help="column of the splits (default: split)")
    add("--split", type=str | None, default=None, help="only slides of this split; default: all, each under its own")
    add("--by", type=str, nargs="+", default=[], help="columns of the cohort table whose values are subgroups (site)")
    add("--shard", type=str | None, default=None, help="only part k of n (k/n); slurm: by place in a job array")
    add("--overwrite", action="store_true", help="predict again what is there")
    add(
        "--batch-size",
        type=int | None,
        default=None,
        help="slides a step; does not change predictions but for rounding",
    )
    add(
        "--max-tokens", type=int | None, default=None,
        help="instead of --batch-size: as many slides as have so many patches together (default: on a GPU 200000; "
        "on the CPU one slide a step)",
    )  # fmt: skip
    add(
        "--num-workers", type=int | None, default=None,
        help="processes that read the store, or the slides (default: on a GPU one for each core, at most 8; else 0)",
    )  # fmt: skip
    add("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    add("--resamples", type=int, default=2000, help="patient-level bootstrap drawings")
    add("--seed", type=int, default=0, help="of the bootstrap")
    add("--skip-missing", action="store_true", help="leave out slides that are not in the store or cannot be extracted")
    add("--encoder", type=str | None, default=None, help="with --slides: program *.pt2, *.ts the features were made by")
    add("--encoder-weights", type=Path | None, default=None, help="with --slides: file or folder of its weights")
    add("--trust-program", action="store_true", help="load an --encoder *.pt2 or *.ts, which can run its author's code")
    add("--tissue", type=dict[str, bool | float | str], default={}, help=f"with --slides: {TISSUE_HELP}")
    add("--min-tissue", type=float, default=0.5, help="with --slides: least share of tissue of a patch, in (0, 1]")
    return parser


def run(args: Namespace) -> int:
    """Evaluates; returns 0.

    Raises:
        SpanError: bad input.
    """
    from span_sparse.cli.device_option import device_of
    from span_sparse.cli.evaluate_cohort import slides_of_cohort, slides_of_store, table_of_folder
    from span_sparse.cli.evaluate_predict import is_current, predict_missing, prediction_table, slides_of_shard
    from span_sparse.cohort import read_cohort
    from span_sparse.errors import StoreError
    from span_sparse.evaluation.parts import FOLDER, read_parts
    from span_sparse.extract.sharding import Shard
    from span_sparse.store import FeatureStore
    from span_sparse.training.ensemble import Ensemble, checkpoint_hash, load_ensemble

    _check(args)
    shard = None if args.shard is None else Shard.parse(args.shard, os.environ)
    models = load_ensemble(args.checkpoint)
    device = device_of(args.device)
    _choose_steps(args, device)
    task = models[0].task
    if args.slides is not None and args.cohort is None:
        args.cohort = table_of_folder(args.slides, args.output / "cohort.csv")
    cohort = read_cohort(args.cohort) if args.cohort is not None else None
    slides = None if cohort is None else slides_of_cohort(args, cohort, task)
    if args.slides is not None and cohort is not None and slides is not None:
        args.store = args.output / "store" if args.store is None else args.store
        _extract(args, cohort, slides, models[0], shard, device)
    store = FeatureStore(args.store)
    slides = slides_of_store(store, task) if slides is None else slides
    mine = slides_of_shard(args, slides, store, shard)
    hashes = [checkpoint_hash(path) for path in args.checkpoint]
    ensemble = Ensemble([model.to(device) for model in models])
    voices = [*hashes, *["together"] * (len(ensemble.voices) - len(models))]
    predict_missing(args, ensemble, voices, store, mine, shard)
    parts = read_parts(args.output / FOLDER, voices)
    waiting = [item for item in slides.items if not is_current(parts.get(item.slide_id), store, item)]
    if waiting and shard is None:
        raise StoreError(
            f"{args.store}: {len(waiting)} slides changed while they were predicted, first "
            f"{waiting[0].slide_id!r}; wait until nobody writes into the store, and run the same command again"
        )
    if waiting:
        print(
            f"shard {args.shard}: {len(mine)} slides are predicted; {len(waiting)} of {len(slides.items)} are still to "
            "come from other shards, the last of which writes the results"
        )
        return 0
    tables = [prediction_table(slides, parts, voice) for voice in range(len(voices))]
    _write(args, slides, tables, ensemble, hashes)
    return 0


def _check(args: Namespace) -> None:
    from span_sparse.errors import ConfigError

    for option, value, least in (
        ("--batch-size", args.batch_size, 1),
        ("--max-tokens", args.max_tokens, 1),
        ("--num-workers", args.num_workers, 0),
        ("--resamples", args.resamples, 1),
    ):
        if value is not None and value < least:
            raise ConfigError(f"{option} {value}: must be at least {least}")
    if args.batch_size is not None and args.max_tokens is not None:
        raise ConfigError(
            f"--batch-size {args.batch_size} and --max-tokens {args.max_tokens} both say which slides make a step; "
            "give one of them"
        )
    if args.store is None and args.slides is None:
        raise ConfigError("name the features with --store, or the slides with --slides")
    for option, value in (("--split", args.split), ("--by", " ".join(args.by))):
        if value and args.cohort is None:
            raise ConfigError(f"{option} {value}: its columns are in a cohort table; give --cohort")
    if len(set(args.checkpoint)) < len(args.checkpoint):
        raise ConfigError("--checkpoint names a file twice; it would count twice in the ensemble")


def _choose_steps(args: Namespace, device: str) -> None:
    """What nobody said about batches and readers, by device."""
    from span_sparse.cli.device_option import reading_processes, tokens_per_step

    if args.batch_size is None and args.max_tokens is None:
        args.max_tokens = tokens_per_step(device)
    args.batch_size = 1 if args.batch_size is None else args.batch_size
    if args.num_workers is None:
        args.num_workers = reading_processes(device)


def _extract(
    args: Namespace, cohort: CohortTable, slides: EvaluatedSlides, model: TaskModule, shard: Shard | None, device: str
) -> None:
    """Features of the slides into the store; what failed is missing there."""
    from rich.console import Console

    from span_sparse.cli.checkpoint_encoder import checkpoint_encoder
    from span_sparse.extract.pipeline import extract_cohort

    encoder = checkpoint_encoder(
        model.task, args.checkpoint[0], encoder=args.encoder, weights=args.encoder_weights,
        trust_program=args.trust_program, device=device,
    )  # fmt: skip
    wanted = cohort.frame["slide_id"].isin([item.slide_id for item in slides.items])
    lines = tuple(line for line, is_wanted in zip(cohort.lines, wanted, strict=True) if is_wanted)
    extract_cohort(
        replace(cohort, frame=cohort.frame.loc[wanted].reset_index(drop=True), lines=lines),
        args.slides,
        args.store,
        spec=model.task.lattice,
        encoder=encoder,
        workers=max(1, args.num_workers),
        tissue=tissue_settings(args.tissue),
        min_tissue_fraction=args.min_tissue,
        shard=shard,
        console=Console(stderr=True, highlight=False),
    )


def _write(
    args: Namespace, slides: EvaluatedSlides, tables: list[pd.DataFrame], ensemble: Ensemble, hashes: list[str]
) -> None:
    """Predictions, metrics and pictures of the whole cohort."""
    from span_sparse.evaluation import write_results
    from span_sparse.evaluation.ensemble import RULES, mean_prediction

    kind, members = ensemble.models[0].task.kind, tables[: len(hashes)]
    is_one = len(tables) == 1 or len(tables) > len(members)  # one model, or segmenters that spoke together
    frame = tables[-1] if is_one else mean_prediction(tables, kind)
    _write_members(args.output / MEMBERS, members if len(members) > 1 else [])
    paths = [str(path) for path in args.checkpoint]
    about: dict[str, Any] = {"checkpoint": paths[0] if len(paths) == 1 else ", ".join(paths), "store": str(args.store)}
    about |= {
        "task": kind,
        "checkpoints": [{"path": path, "sha256": one} for path, one in zip(paths, hashes, strict=True)],
    }
    if len(paths) > 1:
        about["ensemble"] = RULES[kind]
    threshold = getattr(ensemble.voices[-1], "decision_threshold", None)
    if threshold is not None:
        about["decision_threshold"] = round(float(threshold), 6)
    if args.cohort is not None:
        about["cohort"] = str(args.cohort)
    missing = len(slides.items) - len(frame)
    if missing:
        about["num_missing"] = missing
    files = write_results(
        args.output, frame, kind, by=args.by, resamples=args.resamples, seed=args.seed, about={"run": about}
    )
    for split, metrics in files.metrics.items():
        print(f"{split}: {_summary(metrics)}")
    for note in files.notes:
        print(f"note: {note}")
    left_out = f" ({missing} are missing and left out)" if missing else ""
    print(f"{len(frame)} slides{left_out}; written: {', '.join(path.name for path in files.paths)} in {args.output}")


def _write_members(folder: Path, tables: list[pd.DataFrame]) -> None:
    """`1.csv`, `2.csv`, … in the order of the checkpoints; those of an earlier ensemble go."""
    from span_sparse.files import write_atomically

    for number, table in enumerate(tables, start=1):
        write_atomically(folder / f"{number}.csv", table.to_csv(index=False, lineterminator="\n").encode())
    for path in folder.glob("*.csv"):
        if path.stem.isdecimal() and int(path.stem) > len(tables):
            path.unlink()


def _summary(metrics: dict[str, Any]) -> str:
    parts = []
    for name, words in _SHOWN.items():
        if metrics.get(name) is not None:
            interval = metrics.get(f"{name}_ci")
            parts.append(
                f"{words} {metrics[name]:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
            )
    return f"{', '.join(parts)} ({metrics['num_slides']} slides, {metrics['num_cases']} cases)"
