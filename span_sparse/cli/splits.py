"""Which patients train, which validate, which test, and can that be trusted?

`span splits make` deals the patients of a cohort; `span splits check` refuses a split (exit code 1) and lists every
reason. Both print what each side holds, and the hash that names the split whatever the format of its file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from span_sparse.cohort import CohortTable
    from span_sparse.datasets.splits import SideSummary, Splits

DESCRIPTION = "Deal patients to train, val and test (`make`), or check a split for leakage (`check`)."

SITE_COLUMN = "site"
NUM_SITES_NAMED = 4


def build_parser() -> ArgumentParser:
    """The options of `span splits make` and `span splits check`."""
    parser = ArgumentParser(prog="span splits", description=DESCRIPTION)
    verbs = parser.add_subcommands(required=True, dest="verb")
    verbs.add_subcommand("make", _make_parser())
    verbs.add_subcommand("check", _check_parser())
    return parser


def run(args: Namespace) -> int:
    """Make or check; 0 when done and nothing is wrong, 1 when the split is refused.

    Raises:
        SpanError: bad input.
    """
    return _make(args.make) if args.verb == "make" else _check(args.check)


def _make_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Deal the labelled slides of a cohort; a patient is never on two sides.")
    parser.add_argument("--config", action="config", help="YAML file with these options")
    _add_common(parser)
    parser.add_argument("--output", type=Path, required=True, help="file to write; for format clam a folder")
    parser.add_argument(
        "--method",
        type=Literal["kfold", "montecarlo", "fixed"],
        default="kfold",
        help="each patient tests once; fresh draws; one draw",
    )
    parser.add_argument("--folds", type=int | None, default=None, help="number of folds (default: 5, fixed: 1)")
    parser.add_argument("--val-fraction", type=float, default=0.2, help="share of all patients, with every method")
    parser.add_argument(
        "--test-fraction", type=float | None, default=None, help="share of all patients (default: 0.2, kfold: 1/folds)"
    )
    parser.add_argument(
        "--group", type=str, default="case_id", help="column whose values stay together; cases always do"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the shuffling")
    parser.add_argument(
        "--format", type=Literal["wide", "clam", "patho-bench", "stamp"], default="wide", help="format of the file"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that holds another split")
    return parser


def _check_parser() -> ArgumentParser:
    parser = ArgumentParser(description="List every problem of a split; exit code 1 if there is one.")
    _add_common(parser)
    parser.add_argument("--splits", type=Path, required=True, help="split file, or a folder of CLAM's splits_k.csv")
    parser.add_argument(
        "--format",
        type=Literal["auto", "wide", "clam", "patho-bench", "stamp"],
        default="auto",
        help="format of the file; auto recognises it",
    )
    parser.add_argument(
        "--split-column", type=str | None, default=None, help="only this column of a table (default: all fold_*)"
    )
    parser.add_argument(
        "--sides",
        type=str,
        default="train,val,test",
        help="sides every fold must have; Patho-Bench and STAMP have train,test",
    )
    parser.add_argument(
        "--allow-confounding", action="store_true", help="print confounding of site and label, but do not refuse"
    )
    return parser


def _add_common(parser: ArgumentParser) -> None:
    parser.add_argument("--cohort", type=Path, required=True, help="table of the slides (CSV with slide_id, ...)")
    parser.add_argument("--label", type=str, default="label", help="column of the class names")
    parser.add_argument(
        "--site-column", type=str | None, default=None, help=f"column of the sites (default: {SITE_COLUMN}, if any)"
    )
    parser.add_argument(
        "--site-aware", type=Literal["group", "none"], default="none", help="group: a site is never on two sides"
    )


def _make(args: Namespace) -> int:
    from rich.console import Console

    from span_sparse.cohort import read_cohort
    from span_sparse.datasets.splits import SplitPlan, confounding, make_splits, summarise, write_splits

    plan = SplitPlan(
        label=args.label,
        method=args.method,
        folds=args.folds,
        val_fraction=args.val_fraction,
        test_fraction=args.test_fraction,
        group=args.group,
        site_aware=args.site_aware,
        site_column=args.site_column or SITE_COLUMN,
        seed=args.seed,
    )
    cohort = read_cohort(args.cohort)
    sites = _site_column(args, cohort)
    splits = make_splits(cohort, plan)
    names = {fold: f"fold_{fold}" for fold in splits.sides}
    summaries = summarise(splits, cohort, args.label, sites)
    files = write_splits(splits, cohort, args.output, format=args.format, label=args.label, overwrite=args.overwrite)
    console = Console(highlight=False)
    _print_sides(console, summaries, names)
    _print_left_out(console, splits, cohort)
    for problem in confounding(splits, cohort, args.label, sites, names) if sites is not None else ():
        _print(console, f"warning: {problem}")
    _print(console, f"split hash: {splits.content_hash}")
    where = str(files[0]) if len(files) == 1 else f"{len(files)} files in {args.output}"
    _print(console, f"written: {where}")
    return 0


def _check(args: Namespace) -> int:
    from rich.console import Console

    from span_sparse.cohort import read_cohort
    from span_sparse.datasets.splits import check_splits, read_split_file, resolve, summarise

    cohort = read_cohort(args.cohort)
    sites = _site_column(args, cohort)
    split_file = read_split_file(args.splits, args.format, args.split_column)
    problems = check_splits(
        split_file,
        cohort,
        label=args.label,
        site_column=sites,
        site_aware=args.site_aware == "group",
        sides=_sides(args.sides),
    )
    splits = resolve(split_file, cohort, args.label)
    console = Console(highlight=False)
    _print(console, f"{args.splits}: format {split_file.format}, {_number(len(split_file.fold_names), 'fold')}")
    _print_sides(console, summarise(splits, cohort, args.label, sites), split_file.fold_names)
    _print_left_out(console, splits, cohort)
    refused = [problem for problem in problems if not (problem.confounding and args.allow_confounding)]
    for problem in problems:
        _print(console, f"{'problem' if problem in refused else 'warning'}: {problem}")
    _print(console, f"split hash: {splits.content_hash}")
    if not refused:
        _print(console, "ok: no problems" if not problems else f"ok: {_number(len(problems), 'warning')}")
        return 0
    _print(console, f"refused: {_number(len(refused), 'problem')} in {args.splits}")
    return 1


def _site_column(args: Namespace, cohort: CohortTable) -> str | None:
    """The column of the sites; the usual name is used only if the table has it or it was asked for."""
    wanted = args.site_column or SITE_COLUMN
    if args.site_column is not None or args.site_aware == "group":
        cohort.labels(wanted)  # refuses a column that is not there
        return wanted
    return wanted if wanted in cohort.frame else None


def _sides(text: str) -> tuple[str, ...]:
    from span_sparse.cohort import SPLIT_VALUES
    from span_sparse.errors import ConfigError

    sides = tuple(part.strip() for part in text.split(","))
    if not set(sides) <= set(SPLIT_VALUES):
        raise ConfigError(f"--sides {text!r}: expected some of {','.join(SPLIT_VALUES)}")
    return sides


def _print_sides(console: Console, rows: Sequence[SideSummary], names: Mapping[int, str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("fold", "side", "slides", "patients", "patients by class", "sites")
    for row in rows:
        classes = ", ".join(f"{name} {number}" for name, number in row.patients_by_class.items())
        named = ", ".join(row.sites[:NUM_SITES_NAMED]) + (", ..." if len(row.sites) > NUM_SITES_NAMED else "")
        sites = f"{len(row.sites)} ({named})" if row.sites else "-"
        cells = [names[row.fold], row.side, str(row.num_slides), str(row.num_cases), classes, sites]
        table.add_row(*map(Text, cells), end_section=row.side == "test")  # names may hold rich's markup
    console.print(table)


def _print_left_out(console: Console, splits: Splits, cohort: CohortTable) -> None:
    taking_part = {slide for side_of in splits.sides.values() for slide in side_of}
    left_out = len(cohort.slide_ids) - len(taking_part)
    if left_out:
        _print(console, f"{left_out} of {len(cohort.slide_ids)} slides are on no side of any fold")


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
