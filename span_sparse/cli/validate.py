"""Is this feature store whole, consistent, plausible, and does it hold the slides of the cohort?

`span validate STORE` reads every byte of the store and prints all problems in one table; with `--cohort` also the
slides that are in only one of the two, with the reason where extraction gave one, and those of which the table says
something else. `--fix` first deletes what killed writers left behind, the one repair that loses nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from span_sparse.cohort import CohortTable
    from span_sparse.store import FeatureStore, Problem
    from span_sparse.store.validate import Examination

DESCRIPTION = "Check a feature store, all slides and all bytes, and that it holds the slides of a cohort."

MAX_MPP_DIFFERENCE = 0.01
"""Relative difference of the table's and the store's µm per pixel that is taken for rounding."""


def build_parser() -> ArgumentParser:
    """The options of `span validate`."""
    parser = ArgumentParser(prog="span validate", description=DESCRIPTION)
    parser.add_argument("store", type=Path, help="folder of the feature store")
    parser.add_argument("--cohort", type=Path | None, default=None, help="cohort table to compare the slides with")
    parser.add_argument(
        "--fix",
        action="store_true",
        help="first delete leftovers of killed writers (those untouched for an hour); nothing else is ever changed: "
        "no slide is deleted, re-sorted or re-labelled",
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that read slides (default: this one)")
    parser.add_argument("--json", type=Path | None, default=None, help="write all findings to this file, too")
    return parser


def run(args: Namespace) -> int:
    """Print the problems; 0 when there are none, else 1. Remarks do not change the exit code.

    Raises:
        StoreError: the folder is not a store.
        CohortError: the cohort table cannot be read.
        ConfigError: a negative number of workers.
    """
    from rich.console import Console

    from span_sparse.cohort import read_cohort
    from span_sparse.errors import ConfigError
    from span_sparse.store import FeatureStore, Problem

    if args.workers < 0:
        raise ConfigError(f"--workers must be at least 0, got {args.workers}")
    console = Console(highlight=False)
    store = FeatureStore(args.store)
    cohort = None if args.cohort is None else read_cohort(args.cohort)
    if args.fix:
        removed = store.remove_leftovers()
        console.print(f"deleted {len(removed)} leftovers of killed writers")
    examination = _examine(store, args.workers)
    problems = [*examination.problems]
    if cohort is not None:
        problems += _compare(store, cohort)
    if not store.slide_ids and not problems:
        problems = [Problem(None, "the store holds no slides; run `span extract` first")]
    if args.json is not None:
        _write_json(args.json, args.store, examination, problems)
    _show(console, problems, f"{len(problems)} problems in {args.store}", "problem")
    _show(console, examination.remarks, f"{len(examination.remarks)} remarks", "remark")
    if problems:
        return 1
    console.print(_summary(store, examination), soft_wrap=True)
    return 0


def _examine(store: FeatureStore, num_workers: int) -> Examination:
    """With a bar over slides."""
    from rich.console import Console
    from rich.progress import Progress

    from span_sparse.store.validate import examine_store

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("slides", total=None)
        return examine_store(
            store.path, num_workers, lambda done, total: progress.update(task, completed=done, total=total)
        )


def _compare(store: FeatureStore, cohort: CohortTable) -> list[Problem]:
    """What table and store say differently."""
    from span_sparse.extract.process_list import FAILED, read_process_lists
    from span_sparse.store import Problem

    wanted, present = set(cohort.slide_ids), set(store.slide_ids)
    tried = read_process_lists(store.path)
    problems: list[Problem] = []
    for slide_id in sorted(wanted - present):
        row = tried.get(slide_id)
        failed = row is not None and row.status == FAILED
        reason = f"its extraction failed: {row.error}" if row is not None and failed else "extract or import it"
        problems.append(Problem(slide_id, f"is in {cohort.path} but not in the store; {reason}"))
    for slide_id in sorted(present - wanted):
        problems.append(Problem(slide_id, f"is in the store but not in {cohort.path}; add a line if it takes part"))
    for slide_id in sorted(wanted & present):
        problems += [Problem(slide_id, message) for message in _contradictions(store, cohort, slide_id)]
    return problems


def _contradictions(store: FeatureStore, cohort: CohortTable, slide_id: str) -> list[str]:
    from span_sparse.errors import StoreError

    try:
        stored = store.metadata(slide_id)
    except StoreError:  # reported already
        return []
    messages: list[str] = []
    mpp, stored_mpp = cohort.mpp(slide_id), stored.lattice.slide_mpp
    if mpp is not None and abs(mpp - stored_mpp) > MAX_MPP_DIFFERENCE * min(mpp, stored_mpp):
        messages.append(
            f"was made at {stored_mpp:.4g} µm/px (from {stored.mpp_source}), {cohort.path} says {mpp:.4g}; correct the "
            "table or make the slide again"
        )
    case = cohort.case_of(slide_id)
    if stored.case_id not in (None, slide_id) and case not in (stored.case_id, slide_id):
        messages.append(
            f"belongs to case {stored.case_id!r} in the store and to {case!r} in {cohort.path}; correct the table or "
            "make the slide again"
        )
    return messages


def _write_json(path: Path, store: Path, examination: Examination, problems: Sequence[Problem]) -> None:
    from span_sparse.files import write_atomically

    document = {
        "store": str(store),
        "num_slides": examination.num_slides,
        "num_patches": examination.num_patches,
        "problems": [{"slide_id": one.slide_id, "message": one.message} for one in problems],
        "remarks": [{"slide_id": one.slide_id, "message": one.message} for one in examination.remarks],
    }
    write_atomically(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def _show(console: Console, findings: Sequence[Problem], title: str, column: str) -> None:
    from rich.table import Table
    from rich.text import Text

    if not findings:
        return
    table = Table("slide", column, title=Text(title), title_justify="left")
    for finding in findings:
        table.add_row(Text(finding.slide_id or "(store)"), Text(finding.message))  # ids may hold rich's markup
    console.print(table)


def _summary(store: FeatureStore, examination: Examination) -> str:
    encoder, spec = store.common_identity()
    return (
        f"ok: {examination.num_slides} slides, {examination.num_patches} patches, encoder {encoder.name} "
        f"{encoder.revision} ({encoder.dimension} × {encoder.precision}), {spec.patch_size_px} px at "
        f"{spec.target_mpp:g} µm/px"
    )
