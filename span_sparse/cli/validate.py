"""Is this feature store whole, consistent, and does it hold the slides of the cohort?

`span validate STORE` reads every byte of the store and prints all problems in one table; with `--cohort` also the
slides that are in only one of the two. `--clean` first deletes what killed writers left behind.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from span_sparse.store import FeatureStore, Problem

DESCRIPTION = "Check a feature store, all slides and all bytes, and that it holds the slides of a cohort."


def build_parser() -> ArgumentParser:
    """The options of `span validate`."""
    parser = ArgumentParser(prog="span validate", description=DESCRIPTION)
    parser.add_argument("store", type=Path, help="folder of the feature store")
    parser.add_argument("--cohort", type=Path | None, default=None, help="cohort table to compare the slides with")
    parser.add_argument(
        "--clean",
        action="store_true",
        help="delete leftovers of killed writers first (those untouched for an hour)",
    )
    return parser


def run(args: Namespace) -> int:
    """Print the problems; 0 when there are none, else 1.

    Raises:
        StoreError: the folder is not a store.
        CohortError: the cohort table cannot be read.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from span_sparse.store import FeatureStore, Problem, validate_store

    console = Console(highlight=False)
    store = FeatureStore(args.store)
    if args.clean:
        removed = store.remove_leftovers()
        console.print(f"deleted {len(removed)} leftovers of killed writers")
    problems = validate_store(args.store)
    if args.cohort is not None:
        problems += _compare(store, args.cohort)
    if not store.slide_ids and not problems:
        problems = [Problem(None, "the store holds no slides; run `span extract` first")]
    if not problems:
        console.print(_summary(store), soft_wrap=True)
        return 0
    table = Table("slide", "problem", title=f"{len(problems)} problems in {args.store}", title_justify="left")
    for problem in problems:
        table.add_row(Text(problem.slide_id or "(store)"), Text(problem.message))  # ids may hold rich's markup
    console.print(table)
    return 1


def _compare(store: FeatureStore, cohort_path: Path) -> list[Problem]:
    from span_sparse.cohort import read_cohort
    from span_sparse.store import Problem

    wanted, present = set(read_cohort(cohort_path).slide_ids), set(store.slide_ids)
    missing = [Problem(slide_id, f"is in {cohort_path} but not in the store") for slide_id in sorted(wanted - present)]
    return missing + [
        Problem(slide_id, f"is in the store but not in {cohort_path}") for slide_id in sorted(present - wanted)
    ]


def _summary(store: FeatureStore) -> str:
    slide_ids = store.slide_ids
    encoder, spec = store.common_identity()
    num_patches = sum(store.metadata(slide_id).num_patches for slide_id in slide_ids)
    return (
        f"ok: {len(slide_ids)} slides, {num_patches} patches, encoder {encoder.name} {encoder.revision} "
        f"({encoder.dimension} × {encoder.precision}), {spec.patch_size_px} px at {spec.target_mpp:g} µm/px"
    )
