"""`span compare`: is one model better than another on the same cases?

`span compare A/predictions.csv B/predictions.csv` prints, for every figure, both values, the difference with its
interval over drawings of patients, and p. The first table is the one the others are measured against.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from span_sparse.evaluation.compare import Comparison

DESCRIPTION = "Compare models on the same cases: differences with intervals and p values, DeLong's test."

COMPARISON_FILE: Final = "comparison.json"
_WIDTH: Final = 120
"""Columns of the table in a file or a pipe, where names would be cut to fit the 80 of a terminal."""


def build_parser() -> ArgumentParser:
    """The options of `span compare`."""
    parser = ArgumentParser(prog="span compare", description=DESCRIPTION)
    parser.add_argument("tables", type=Path, nargs="+", help="predictions.csv of two models or more, or their folders")
    parser.add_argument("--output", type=Path | None, default=None, help=f"folder for {COMPARISON_FILE}")
    parser.add_argument("--split", type=str | None, default=None, help="which split (default: test)")
    parser.add_argument("--resamples", type=int, default=2000, help="patient-level bootstrap drawings")
    parser.add_argument("--seed", type=int, default=0, help="of the drawings")
    return parser


def run(args: Namespace) -> int:
    """Compares; returns 0.

    Raises:
        PredictionTableError: tables that cannot be compared.
        ConfigError: fewer than two tables, or no drawings.
    """
    from span_sparse.errors import ConfigError
    from span_sparse.evaluation.compare import compare, read_compared
    from span_sparse.files import write_atomically

    if len(args.tables) < 2:
        raise ConfigError(f"{args.tables[0]}: a comparison needs two tables at least")
    if args.resamples < 1:
        raise ConfigError(f"--resamples {args.resamples} must be at least 1")
    paths = [path / "predictions.csv" if path.is_dir() else path for path in args.tables]
    tables = read_compared(paths, args.split)
    results = compare(tables, resamples=args.resamples, seed=args.seed)
    cases = int(tables.frames[0]["case_id"].nunique())
    num_drawings = results[0].num_drawings
    drawn = f", {num_drawings} drawings" if num_drawings else ""
    print(f"split {tables.split}: {len(tables.frames[0])} labelled slides of {cases} cases{drawn}")
    for result in results:
        _print(result)
    if args.output is not None:
        content = {
            "split": tables.split,
            "task": tables.kind,
            "num_slides": len(tables.frames[0]),
            "num_cases": cases,
            "bootstrap": {"unit": "case_id", "resamples": num_drawings, "seed": args.seed, "level": 0.95},
            "comparisons": [result.as_dict() for result in results],
        }
        text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
        write_atomically(args.output / COMPARISON_FILE, f"{text}\n".encode())
        print(f"written: {args.output / COMPARISON_FILE}")
    return 0


def _print(result: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "first", "second", "difference", "95 % interval", "p")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in result.figures.items():
        interval = row["difference_ci"]
        between = "" if interval is None else f"{interval[0]:+.3f} to {interval[1]:+.3f}"
        table.add_row(
            name, _text(row["first"]), _text(row["second"]), _text(row["difference"], "+.3f"), between, _p(row["p"])
        )
    if result.delong is not None:
        one = result.delong
        spread = 1.959964 * one["standard_error"]
        low, high = max(one["difference"] - spread, -1.0), min(one["difference"] + spread, 1.0)
        between = f"{low:+.3f} to {high:+.3f}"
        values = (_text(one["auc_first"]), _text(one["auc_second"]), _text(one["difference"], "+.3f"))
        table.add_row(f"AUC, DeLong (by {one['unit']})", *values, between, _p(one["p"]))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    console.print(f"first: {result.first}\nsecond: {result.second}", markup=False, soft_wrap=True)
    console.print(table)
    for note in result.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


def _text(value: Any, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
