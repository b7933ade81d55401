"""How do I turn a folder of slides into features?

`span extract --cohort cohort.csv --slides DIR --store DIR` reads every slide of the table, and writes the store and,
beside it, the process list. Running the same command again does only what is missing. A slide that cannot be used is a
line on the screen and a row of the process list, and makes the exit code 1; the other slides are extracted all the
same.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from rich.console import Console

    from span_sparse.extract.process_list import SlideStatus

DESCRIPTION = "Extract features of all slides of a cohort into a store; resumes what is there."


def build_parser() -> ArgumentParser:
    """The options of `span extract`."""
    parser = ArgumentParser(prog="span extract", description=DESCRIPTION)
    parser.add_argument("--config", action="config", help="YAML file with these options")
    parser.add_argument("--cohort", type=Path, required=True, help="table of the slides (CSV with slide_id, ...)")
    parser.add_argument("--slides", type=Path, required=True, help="folder of the slide files")
    parser.add_argument("--store", type=Path, required=True, help="folder of the store, created when missing")
    parser.add_argument("--patch-size", type=int | None, default=None, help="pixels (default: the encoder's, 224)")
    parser.add_argument("--target-mpp", type=float | None, default=None, help="µm/px (default: the encoder's, 0.5)")
    parser.add_argument("--min-tissue", type=float, default=0.5, help="least share of tissue of a patch, in (0, 1]")
    parser.add_argument("--batch-size", type=int, default=256, help="patches in memory at a time, for each worker")
    parser.add_argument("--workers", type=int, default=1, help="processes, each works on whole slides")
    parser.add_argument("--limit", type=int | None, default=None, help="only the first N slides of the cohort")
    parser.add_argument("--overwrite", action="store_true", help="extract again what is in the store")
    parser.add_argument("--dry-run", action="store_true", help="open and check every slide, write nothing")
    parser.add_argument("--skip-errors", action="store_true", help="exit with 0 even if slides failed")
    return parser


def run(args: Namespace) -> int:
    """Extract; 0 when every slide is in the store, 1 when one failed (0 with `--skip-errors`).

    Raises:
        CohortError: the table cannot be used.
        ConfigError: the settings fit no slide.
        StoreError: the store was made with other settings, or cannot be written.
        SlideError: there is no folder of slides.
    """
    from rich.console import Console

    from span_sparse.cohort import read_cohort
    from span_sparse.errors import ConfigError
    from span_sparse.extract.pipeline import extract_cohort
    from span_sparse.extract.process_list import FAILED
    from span_sparse.extract.stain_texture import StainTextureEncoder
    from span_sparse.grid import LatticeSpec

    defaults = StainTextureEncoder().identity
    spec = LatticeSpec(
        defaults.input_size_px if args.patch_size is None else args.patch_size,
        defaults.mpp if args.target_mpp is None else args.target_mpp,
    )
    try:
        encoder = StainTextureEncoder(input_size_px=spec.patch_size_px, mpp=spec.target_mpp)
    except ValueError as error:
        raise ConfigError(f"--patch-size {spec.patch_size_px}: {error}") from error
    console = Console(stderr=True, highlight=False)
    statuses = extract_cohort(
        read_cohort(args.cohort),
        args.slides,
        args.store,
        spec=spec,
        encoder=encoder,
        workers=args.workers,
        overwrite=args.overwrite,
        limit=args.limit,
        dry_run=args.dry_run,
        min_tissue_fraction=args.min_tissue,
        batch_size=args.batch_size,
        console=console,
    )
    _print_summary(Console(highlight=False), statuses, args.store, dry_run=args.dry_run)
    failed = any(status.status == FAILED for status in statuses)
    return int(failed and not args.skip_errors)


def _print_summary(console: Console, statuses: list[SlideStatus], store: Path, *, dry_run: bool) -> None:
    from rich.table import Table

    from span_sparse.extract.process_list import DONE, FAILED, PENDING, process_list_path

    groups = {
        "extracted": [status for status in statuses if status.status == DONE and not status.resumed],
        "in the store already": [status for status in statuses if status.resumed],
        "to extract": [status for status in statuses if status.status == PENDING],
        "failed": [status for status in statuses if status.status == FAILED],
    }
    table = Table("slides", "number", "patches", "seconds")
    for name, members in groups.items():
        if members or name == "failed":
            patches, seconds = sum(row.num_patches for row in members), sum(row.seconds for row in members)
            table.add_row(name, str(len(members)), str(patches), f"{seconds:.1f}")
    console.print(table)
    if dry_run:
        console.print("dry run: nothing was written", markup=False)
    else:
        console.print(f"store: {store}\nprocess list: {process_list_path(store)}", markup=False, soft_wrap=True)
