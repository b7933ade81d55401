"""`span runs`: which runs are there, how good are they, and in what do two of them differ?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.console import Console

    from span_sparse.cli.run_summary import RunSummary

DESCRIPTION = "List the runs of folders with their figures, or compare two of them (`span runs compare A B`)."

COMPARE = "compare"
DEFAULT_FOLDER = Path("runs")
NUM_HASH_DIGITS = 8
PIPE_WIDTH = 200
"""Columns of a table that goes into a file or another program; rich would take 80."""


def build_parser() -> ArgumentParser:
    """The options of `span runs`."""
    parser = ArgumentParser(prog="span runs", description=DESCRIPTION)
    parser.add_argument(
        "folders", type=Path, nargs="*", help="folders with runs, at any depth (default: runs); or `compare A B`"
    )
    parser.add_argument(
        "--sort",
        type=Literal["name", "date", "val", "test"],
        default="name",
        help="order of the list; by a figure the best comes first, runs without it last",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def run(args: Namespace) -> int:
    """Lists or compares; returns 0.

    Raises:
        SpanError: a folder that does not exist, or settings that cannot be read.
    """
    from span_sparse.errors import ConfigError

    folders: list[Path] = list(args.folders) or [DEFAULT_FOLDER]
    if str(folders[0]) != COMPARE:
        return _list(folders, args.sort, as_json=args.json)
    if len(folders) != 3:
        raise ConfigError(f"span runs compare: expected two run folders, found {len(folders) - 1}")
    return _compare(folders[1], folders[2], as_json=args.json)


def _list(folders: list[Path], order: str, *, as_json: bool) -> int:
    from rich.table import Table
    from rich.text import Text

    from span_sparse.cli.run_summary import find_runs, read_run

    runs = _sorted([read_run(path) for path in find_runs(folders)], order)
    if as_json:
        print(json.dumps([one.as_dict() for one in runs], indent=2, ensure_ascii=False))
        return 0
    console = _console()
    if not runs:
        console.print(f"no runs in {', '.join(map(str, folders))}", markup=False, soft_wrap=True)
        return 0
    columns = ("run", "started", "network", "task", "epoch", "val", "test", "split", "status")
    table = Table(*columns)
    for one in runs:
        date = one.started[:16].replace("T", " ")
        split = f"{one.split} {one.split_hash.removeprefix('sha256:')[:NUM_HASH_DIGITS]}".strip()
        status = f"{one.status}: {one.problem}" if one.problem else one.status
        epoch = "" if one.best_epoch is None else str(one.best_epoch)
        cells = [str(one.path), date, one.network, one.task, epoch, _val(one), _test(one), split, status]
        table.add_row(*map(Text, cells))  # names may hold rich's markup
    console.print(table)
    return 0


def _sorted(runs: list[RunSummary], order: str) -> list[RunSummary]:
    if order == "name":
        return sorted(runs, key=lambda one: str(one.path))
    if order == "date":
        return sorted(runs, key=lambda one: one.started)

    def badness(one: RunSummary) -> tuple[bool, float]:
        value = getattr(one, order).get(one.headline)
        if value is None:
            return True, 0.0
        return False, value if one.headline in ("mae", "loss") else -value

    return sorted(runs, key=badness)


def _val(one: RunSummary) -> str:
    name = one.headline if one.headline in one.val else next(iter(one.val), None)
    return "" if name is None else f"{name} {one.val[name]:.3f}"


def _test(one: RunSummary) -> str:
    name = one.headline
    if name is None or name not in one.test:
        return ""
    interval = one.test_intervals.get(name)
    return f"{name} {one.test[name]:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _compare(first: Path, second: Path, *, as_json: bool) -> int:
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from span_sparse.cli.run_files import ENVIRONMENT_FILE, read_json
    from span_sparse.cli.run_summary import read_run, read_settings

    settings = _differences(*(read_settings(path) for path in (first, second)))
    runs = [read_run(path) for path in (first, second)]
    packages = _differences(*(read_json(path / ENVIRONMENT_FILE).get("packages") or {} for path in (first, second)))
    facts = _differences(*({"status": one.status, "split hash": one.split_hash} for one in runs))
    figures = {
        f"{side} {name}": [getattr(one, side).get(name) for one in runs]
        for side in ("val", "test")
        for name in dict.fromkeys(name for one in runs for name in getattr(one, side))
    }
    if as_json:
        content = {"settings": settings, "packages": packages, "run": facts, "figures": figures}
        print(json.dumps(content, indent=2, ensure_ascii=False, default=str))
        return 0
    console = _console()
    rows = {**settings, **packages, **facts, **figures}
    table = Table("differs in", escape(str(first)), escape(str(second)))
    for title, group in (("settings", settings), ("packages", packages), ("run", facts), ("figures", figures)):
        for number, (name, values) in enumerate(group.items(), start=1):
            cells = [f"{title}: {name}", *(_cell(value) for value in values)]
            table.add_row(*map(Text, cells), end_section=number == len(group))
    console.print(table if rows else "no difference in settings, packages and figures")
    return 0


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Names whose values differ, with both values; `(absent)` where there is none."""
    names: Iterable[str] = dict.fromkeys([*first, *second])
    pairs = {name: [first.get(name, "(absent)"), second.get(name, "(absent)")] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
