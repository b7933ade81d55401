"""How do I turn a folder of slides into features?

`span extract --cohort cohort.csv --slides DIR --store DIR` reads every slide of the table, and writes the store and,
beside it, process list, tissue outlines and a page of thumbnails. Running the same command again does only what is
missing. A slide that cannot be used is a line on the screen and a row of the process list, and makes the exit code 1;
the other slides are extracted all the same.

Exit code 130 after Ctrl-C, 143 after SIGTERM, 138 after SIGUSR1: what was complete is kept, the same command goes on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from span_sparse.cli.tissue_option import TISSUE_HELP, tissue_settings

if TYPE_CHECKING:
    from rich.console import Console

    from span_sparse.extract.process_list import SlideStatus

DESCRIPTION = "Extract features of all slides of a cohort into a store; resumes what is there."


def build_parser() -> ArgumentParser:
    """The options of `span extract`."""
    parser = ArgumentParser(prog="span extract", description=DESCRIPTION)
    add = parser.add_argument
    add("--config", action="config", help="YAML file with these options")
    add("--cohort", type=Path, required=True, help="table of the slides (CSV with slide_id, ...)")
    add("--slides", type=Path, required=True, help="folder of the slide files")
    add("--store", type=Path, required=True, help="folder of the store, created when missing")
    add("--encoder", type=str, default="stain-texture", help="what turns patches into features (`span encoders`)")
    add("--encoder-weights", type=Path | None, default=None, help="file or folder of its weights (default: the cache)")
    add("--download", action="store_true", help="fetch weights that are not on this machine")
    add("--trust-program", action="store_true", help="load an --encoder *.pt2 or *.ts, which can run its author's code")
    add("--device", type=str, default="cpu", help="cpu, cuda or cuda:N, where the encoder works")
    add("--precision", type=str | None, default=None, help="float16 or float32 features (default: the encoder's)")
    add("--patch-size", type=int | None, default=None, help="pixels (default: the encoder's)")
    add("--target-mpp", type=float | None, default=None, help="µm/px (default: the encoder's)")
    tissue_help = f"{TISSUE_HELP}; columns of the cohort table of these names override it for a slide"
    add("--tissue", type=dict[str, bool | float | str], default={}, help=tissue_help)
    add("--min-tissue", type=float, default=0.5, help="least share of tissue of a patch, in (0, 1]")
    add("--max-failed-patches", type=str, default="1%", help="unreadable patches a slide may have: a share or a number")
    add("--allow-upsampling", action="store_true", help="take slides coarser than the target resolution")
    add("--batch-size", type=int, default=256, help="patches that a worker reads at a time")
    add("--workers", type=int, default=1, help="processes that read slides, and encode if --device is cpu")
    add("--shard", type=str | None, default=None, help="only part k of n (k/n); slurm: by place in a job array")
    add("--limit", type=int | None, default=None, help="only the first N slides of the cohort")
    add("--overwrite", action="store_true", help="extract again what is in the store")
    add("--dry-run", action="store_true", help="open and check every slide, write nothing")
    add("--skip-errors", action="store_true", help="exit with 0 even if slides failed")
    return parser


def run(args: Namespace) -> int:
    """Extract; 0 when every slide is in the store, 1 when one failed (0 with `--skip-errors`).

    Raises:
        CohortError: the table cannot be used.
        ConfigError: the settings fit no slide.
        StoreError: the store was made with other settings, or cannot be written.
        SlideError: there is no folder of slides.
        SystemExit: told to end, with 143 (SIGTERM) or 138 (SIGUSR1).
    """
    from rich.console import Console

    from span_sparse.cohort import read_cohort
    from span_sparse.extract.encoders import load_encoder
    from span_sparse.extract.pipeline import extract_cohort
    from span_sparse.extract.process_list import FAILED
    from span_sparse.extract.settings import FailureLimit
    from span_sparse.extract.sharding import Shard
    from span_sparse.grid import LatticeSpec

    shard = None if args.shard is None else Shard.parse(args.shard, os.environ)
    limit = FailureLimit.parse(args.max_failed_patches)
    cohort = read_cohort(args.cohort)
    encoder = load_encoder(
        args.encoder,
        weights=args.encoder_weights,
        device=args.device,
        precision=args.precision,
        input_size_px=args.patch_size,
        mpp=args.target_mpp,
        allow_download=args.download,
        trust_program=args.trust_program,
    )
    statuses = extract_cohort(
        cohort,
        args.slides,
        args.store,
        spec=LatticeSpec(encoder.identity.input_size_px, encoder.identity.mpp),
        encoder=encoder,
        workers=args.workers,
        overwrite=args.overwrite,
        limit=args.limit,
        dry_run=args.dry_run,
        tissue=tissue_settings(args.tissue),
        min_tissue_fraction=args.min_tissue,
        batch_size=args.batch_size,
        max_failed_patches=limit,
        allow_upsampling=args.allow_upsampling,
        shard=shard,
        console=Console(stderr=True, highlight=False),
    )
    _print_summary(Console(highlight=False), statuses, args.store, shard.name if shard else "", dry_run=args.dry_run)
    failed = any(status.status == FAILED for status in statuses)
    return int(failed and not args.skip_errors)


def _print_summary(console: Console, statuses: list[SlideStatus], store: Path, shard: str, *, dry_run: bool) -> None:
    from rich.table import Table

    from span_sparse.extract.process_list import DONE, FAILED, PENDING, process_list_path
    from span_sparse.extract.qc_page import qc_page_path

    groups = {
        "extracted": [status for status in statuses if status.status == DONE and not status.resumed],
        "in the store already": [status for status in statuses if status.resumed],
        "to extract": [status for status in statuses if status.status == PENDING],
        "failed": [status for status in statuses if status.status == FAILED],
    }
    table = Table("slides", "number", "patches", "not readable", "seconds")
    for name, members in groups.items():
        if members or name == "failed":
            sums = (sum(row.num_patches for row in members), sum(row.failed_patches for row in members))
            table.add_row(name, *map(str, (len(members), *sums)), f"{sum(row.seconds for row in members):.1f}")
    console.print(table)
    if dry_run:
        console.print("dry run: nothing was written", markup=False)
        return
    lines = f"store: {store}\nprocess list: {process_list_path(store, shard)}\npictures: {qc_page_path(store)}"
    console.print(lines, markup=False, soft_wrap=True)
