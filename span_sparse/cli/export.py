"""How do I give my features to another system?

`span export STORE --format FORMAT --output FOLDER` writes every slide in the files of another system. Rows and, for
slides that came from that system, coordinates and attributes are those of the files they were imported from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

DESCRIPTION = "Write the slides of a store as files of another system, for example for the authors' SPAN."

FORMATS = Literal[
    "trident", "clam", "span", "patchpreprocess", "span-st", "stamp", "slideflow", "lazyslide", "atlaspatch",
    "slide2vec", "histossl",
]  # fmt: skip


def build_parser() -> ArgumentParser:
    """The options of `span export`."""
    parser = ArgumentParser(prog="span export", description=DESCRIPTION)
    parser.add_argument("store", type=Path, help="folder of the feature store")
    parser.add_argument("--config", action="config", help="YAML file with these options")
    parser.add_argument("--format", type=FORMATS, required=True, help="span: what the authors' loader expects")
    parser.add_argument("--output", type=Path, required=True, help="folder of the files, created when missing")
    parser.add_argument("--cohort", type=Path | None, default=None, help="only the slides of this table")
    parser.add_argument("--limit", type=int | None, default=None, help="only the first N slides")
    parser.add_argument("--overwrite", action="store_true", help="write again what is there")
    parser.add_argument("--skip-errors", action="store_true", help="exit with 0 even if slides failed")
    return parser


def run(args: Namespace) -> int:
    """Export; 0 when every slide is there, 1 when one failed (0 with `--skip-errors`).

    Raises:
        StoreError: the folder is not a store.
        CohortError: the table cannot be read.
        ConfigError: an option cannot be used.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track

    from span_sparse.cli.tensor_files import TorchFiles
    from span_sparse.cohort import read_cohort
    from span_sparse.errors import ConfigError
    from span_sparse.store import FeatureStore
    from span_sparse.store.exchange import export_slides

    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit must be at least 1, got {args.limit}")
    store = FeatureStore(args.store)
    slide_ids = store.slide_ids if args.cohort is None else read_cohort(args.cohort).slide_ids
    slide_ids = slide_ids[: args.limit]
    console = Console(stderr=True, highlight=False)
    outcomes = export_slides(store, slide_ids, args.format, args.output, TorchFiles(), overwrite=args.overwrite)
    failed = resumed = patches = 0
    for outcome in track(outcomes, "slides", total=len(slide_ids), console=console):
        failed += bool(outcome.error)
        resumed += outcome.resumed
        patches += outcome.num_patches
        if outcome.error:
            console.print(f"[red]failed[/] {escape(outcome.slide_id)}: {escape(outcome.error)}", soft_wrap=True)
    written = len(slide_ids) - failed - resumed
    Console(highlight=False).print(
        f"{args.output}: {written} slides written, {resumed} were there already (--overwrite replaces them), {failed} "
        f"failed; {patches} patches, format {args.format}",
        markup=False,
        soft_wrap=True,
    )
    return int(failed > 0 and not args.skip_errors)
