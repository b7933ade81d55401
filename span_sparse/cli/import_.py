"""How do I use the features I already have?

`span import FOLDER --store STORE --format FORMAT --cohort cohort.csv` reads the files of another system slide by slide,
proves that their coordinates lie on a lattice, and writes the store and, beside it, the process list. Running the same
command again does only what is missing. `--dry-run` prints how each slide would be fitted.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console

    from span_sparse.extract.process_list import SlideStatus
    from span_sparse.store.exchange import ImportOutcome, ImportPlan, ImportSettings

DESCRIPTION = "Import features that another system extracted; refuses coordinates that are on no lattice."

SECONDS_BETWEEN_LISTS = 2.0
NUM_IGNORED_SHOWN = 3


def build_parser() -> ArgumentParser:
    """The options of `span import`."""
    parser = ArgumentParser(prog="span import", description=DESCRIPTION)
    parser.add_argument("folder", type=Path, help="folder of the feature files")
    parser.add_argument("--config", action="config", help="YAML file with these options")
    parser.add_argument("--store", type=Path, required=True, help="folder of the store, created when missing")
    parser.add_argument(
        "--format",
        type=str,
        default="auto",
        help="trident, clam, span, patchpreprocess, span-st, stamp, slideflow, lazyslide, atlaspatch, slide2vec, "
        "histossl; auto recognises it and says what it saw",
    )
    parser.add_argument(
        "--cohort",
        type=Path | None,
        default=None,
        help="table of the slides wanted (slide_id, case_id, mpp, width_px0, height_px0); default: all in the folder",
    )
    _add_statements(parser)
    _add_choices(parser)
    parser.add_argument("--limit", type=int | None, default=None, help="only the first N slides")
    parser.add_argument("--overwrite", action="store_true", help="replace slides with other content or settings")
    parser.add_argument("--dry-run", action="store_true", help="read and fit every slide, write nothing")
    parser.add_argument("--skip-errors", action="store_true", help="exit with 0 even if slides failed")
    return parser


def _add_statements(parser: ArgumentParser) -> None:
    """What the files may not say."""
    number, text = float | None, str | None
    parser.add_argument("--mpp", type=number, default=None, help="µm/px of level 0, where table and file lack it")
    parser.add_argument("--target-mpp", type=number, default=None, help="µm/px at which patches were read")
    parser.add_argument("--patch-size", type=int | None, default=None, help="edge of a patch in pixels at that")
    parser.add_argument("--patch-px0", type=int | None, default=None, help="edge of a patch in level-0 pixels")
    parser.add_argument("--step", type=int | None, default=None, help="distance of neighbours in level-0 pixels")
    parser.add_argument("--encoder-name", type=text, default=None, help="for example uni_v1")
    parser.add_argument("--encoder-revision", type=text, default=None, help="version of its weights")
    parser.add_argument("--encoder-readout", type=text, default=None, help="for example cls or cls+mean")
    parser.add_argument("--encoder-input", type=int | None, default=None, help="edge of its input in pixels")
    parser.add_argument("--features-key", type=text, default=None, help="which of several feature sets in a file")
    parser.add_argument("--ratio-class", type=text, default=None, help="class of a file's annotation ratios")
    parser.add_argument(
        "--size-from-patches",
        action="store_true",
        help="where nobody states the slide's size, take the patches' extent",
    )
    parser.add_argument("--transposed", action="store_true", help="the coordinates are (y, x)")


def _add_choices(parser: ArgumentParser) -> None:
    """What may be done to coordinates off the lattice."""
    parser.add_argument("--snap", action="store_true", help="move patches off the lattice to the nearest cell")
    parser.add_argument(
        "--per-contour", action="store_true", help="move patches that share an origin together, so that none collide"
    )
    parser.add_argument("--drop", action="store_true", help="leave out patches off the lattice and repeated ones")


def run(args: Namespace) -> int:
    """Import; 0 when every slide is in the store, 1 when one failed (0 with `--skip-errors`).

    Raises:
        ExchangeError: the folder holds no slides, or the format is not clear.
        CohortError: the table cannot be used.
        ConfigError: options that exclude each other.
        StoreError: the store cannot be opened or made.
    """
    from rich.console import Console

    from span_sparse.cli.tensor_files import TorchFiles
    from span_sparse.cohort import read_cohort
    from span_sparse.errors import ConfigError
    from span_sparse.extract.process_list import FAILED
    from span_sparse.store.exchange import import_slides, plan_import

    if args.snap and args.per_contour:
        raise ConfigError("--snap and --per-contour exclude each other: choose one way of moving patches")
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit must be at least 1, got {args.limit}")
    cohort = None if args.cohort is None else read_cohort(args.cohort)
    plan = plan_import(args.folder, args.format, _settings(args), cohort, args.limit)
    console = Console(stderr=True, highlight=False)
    _say(console, f"format {plan.format.name}" + (f": saw {plan.evidence}" if plan.evidence else ""))
    if plan.num_ignored and cohort is not None:
        _say(console, f"{plan.num_ignored} slides of the folder are not in {args.cohort} and are left out")
    outcomes = import_slides(plan, args.store, TorchFiles(), overwrite=args.overwrite, dry_run=args.dry_run)
    done = list(_followed(_with_progress(outcomes, plan, console), args.store, dry_run=args.dry_run))
    _print_summary(Console(highlight=False), done, args.store, dry_run=args.dry_run)
    failed = any(_status(outcome).status == FAILED for outcome in done)
    return int(failed and not args.skip_errors)


def _settings(args: Namespace) -> ImportSettings:
    from span_sparse.store.exchange import ImportSettings

    return ImportSettings(
        mpp=args.mpp,
        target_mpp=args.target_mpp,
        patch_size_px=args.patch_size,
        patch_px0=args.patch_px0,
        step_px0=args.step,
        encoder_name=args.encoder_name,
        encoder_revision=args.encoder_revision,
        encoder_readout=args.encoder_readout,
        encoder_input_px=args.encoder_input,
        features_key=args.features_key,
        ratio_class=args.ratio_class,
        size_from_patches=args.size_from_patches,
        transposed=args.transposed,
        snap=args.snap,
        per_contour=args.per_contour,
        drop=args.drop,
    )


def _with_progress(outcomes: Iterable[ImportOutcome], plan: ImportPlan, console: Console) -> Iterator[ImportOutcome]:
    """A bar over slides, and a line for each that failed."""
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(console=console) as progress:
        task = progress.add_task("slides", total=len(plan.requests))
        for outcome in outcomes:
            progress.advance(task)
            if outcome.error:
                line = f"[red]failed[/] {escape(outcome.slide_id)}: {escape(outcome.error)}"
                progress.console.print(line, soft_wrap=True)
            yield outcome


def _followed(outcomes: Iterable[ImportOutcome], store: Path, *, dry_run: bool) -> Iterator[ImportOutcome]:
    """Keep the process list up to date; it is whole at any moment and at most two seconds old."""
    from span_sparse.extract.process_list import process_list_path, update_process_list

    path = process_list_path(store)
    waiting: list[SlideStatus] = []
    last = time.monotonic()
    try:
        for outcome in outcomes:
            waiting.append(_status(outcome))
            if not dry_run and time.monotonic() - last > SECONDS_BETWEEN_LISTS:
                update_process_list(path, waiting, store)
                waiting, last = [], time.monotonic()
            yield outcome
    finally:
        if waiting and not dry_run:
            update_process_list(path, waiting, store)


def _status(outcome: ImportOutcome) -> SlideStatus:
    from span_sparse.extract.process_list import DONE, FAILED, SlideStatus

    num_patches = outcome.metadata.num_patches if outcome.metadata else 0
    return SlideStatus(
        slide_id=outcome.slide_id,
        status=FAILED if outcome.error else DONE,
        error=outcome.error,
        seconds=outcome.seconds,
        num_patches=num_patches,
        resumed=outcome.resumed,
    )


def _print_summary(console: Console, outcomes: list[ImportOutcome], store: Path, *, dry_run: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from span_sparse.extract.process_list import process_list_path

    if dry_run:
        fits = Table("slide", "patches", "dtype", "step", "origin", "how the step was found", "moved by ≤", "dropped")
        for outcome in outcomes:
            fits.add_row(*map(Text, _fit_cells(outcome)))  # ids may hold rich's markup
        console.print(fits)
    groups = {
        "would be imported" if dry_run else "imported": [one for one in outcomes if not one.error and not one.resumed],
        "in the store already": [one for one in outcomes if one.resumed],
        "failed": [one for one in outcomes if one.error],
    }
    table = Table("slides", "number", "patches", "patches dropped")
    for name, members in groups.items():
        patches = sum(one.metadata.num_patches for one in members if one.metadata)
        dropped = sum(one.report.get("dropped", 0) for one in members)
        table.add_row(name, str(len(members)), str(patches), str(dropped))
    console.print(table)
    if dry_run:
        _say(console, "dry run: nothing was written")
    else:
        _say(console, f"store: {store}\nprocess list: {process_list_path(store)}")


def _fit_cells(outcome: ImportOutcome) -> list[str]:
    metadata, report = outcome.metadata, outcome.report
    if metadata is None:
        return [outcome.slide_id, "failed", *[""] * 6]
    moved = report.get("max_displacement_px0", report["max_residual_px0"])
    return [
        outcome.slide_id,
        str(metadata.num_patches),
        metadata.encoder.precision,
        str(metadata.lattice.step_px0),
        str(metadata.lattice.origin_px0),
        report["step_source"],
        f"{moved:g} px",
        str(report["dropped"]),
    ]


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
