"""How do I turn drawn annotations into labels of patches?

`span annotate --store STORE --annotations DIR` finds each slide's file in the folder (ASAP, Aperio ImageScope or
QuPath), computes the share of every patch that each class covers, and keeps it in the store. Running it again does only
what is missing or has changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from rich.console import Console

    from span_sparse.extract.annotate import AnnotationStatus, Survey

DESCRIPTION = "Turn annotations (ASAP, Aperio, QuPath) into labels of the patches of a store."


def build_parser() -> ArgumentParser:
    """The options of `span annotate`."""
    from typing import Literal

    parser = ArgumentParser(prog="span annotate", description=DESCRIPTION)
    add = parser.add_argument
    add("--config", action="config", help="YAML file with these options")
    add("--store", type=Path, required=True, help="folder of the feature store")
    add("--annotations", type=Path, required=True, help="folder of the files, named like the slides")
    add("--cohort", type=Path | None, default=None, help="only its slides; its column path may name the files")
    add("--format", type=Literal["auto", "asap", "aperio", "geojson"], default="auto", help="of the files")
    add(
        "--classes",
        type=str,
        nargs="+",
        default=[],
        help="classes and their annotation names, as tumor=Tumor,_0,_1 normal=Normal (default: each name is a class)",
    )
    add("--exclude", type=str, nargs="+", default=[], help="annotation names that are holes in every class, as _2")
    add("--exclusive", action="store_true", help="where classes overlap, the first in the list has the area")
    add("--ignore-unknown", action="store_true", help="leave out names that --classes does not mention")
    add("--unannotated", type=Literal["skip", "negative"], default="skip", help="slides without a file")
    add("--origin", type=Literal["auto", "slide", "bounds"], default="auto", help="what coordinates count from")
    add("--allow-empty", action="store_true", help="accept a file whose regions touch no patch")
    add("--overwrite", action="store_true", help="annotate again what is annotated already")
    add("--dry-run", action="store_true", help="read all files and show names and classes, write nothing")
    return parser


def run(args: Namespace) -> int:
    """Annotate; 0 when no slide failed, else 1.

    Raises:
        StoreError: there is no such store, or it holds other classes.
        AnnotationError: no file belongs to a slide, or names are unknown.
        ConfigError: the rules for the classes contradict each other.
        CohortError: the table cannot be used.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    from span_sparse.cohort import read_cohort
    from span_sparse.extract.annotate import FAILED, AnnotationSettings, annotate_slides, survey
    from span_sparse.store import FeatureStore
    from span_sparse.wsi.annotations import AnnotationFiles, ClassMapping

    settings = AnnotationSettings(
        ClassMapping.parse(args.classes, args.exclude, exclusive=args.exclusive),
        kind=args.format,
        origin=args.origin,
        ignore_unknown=args.ignore_unknown,
        unannotated=args.unannotated,
        allow_empty=args.allow_empty,
        overwrite=args.overwrite,
    )
    store = FeatureStore(args.store)
    cohort = None if args.cohort is None else read_cohort(args.cohort)
    messages = Console(stderr=True, highlight=False)
    with messages.status("reading the names in all files"):
        plan = survey(store, AnnotationFiles(args.annotations, args.format), settings, cohort)
    if plan.unused:
        first = escape(plan.unused[0].name)
        messages.print(f"note: {len(plan.unused)} files belong to no slide, first {first}", soft_wrap=True)
    if args.dry_run:
        return _show_plan(Console(highlight=False), plan)
    statuses: list[AnnotationStatus] = []
    with Progress(console=messages) as progress:
        for status in progress.track(
            annotate_slides(store, plan, settings), total=len(plan.file_of), description="slides"
        ):
            statuses.append(status)
            if status.message:
                colour = "red" if status.status == FAILED else "yellow"
                line = f"[{colour}]{status.status}[/] {escape(status.slide_id)}: {escape(status.message)}"
                progress.console.print(line, soft_wrap=True)
    _show_results(Console(highlight=False), plan.mapping.classes, statuses)
    return int(any(status.status == FAILED for status in statuses))


def _show_plan(console: Console, plan: Survey) -> int:
    from rich.table import Table
    from rich.text import Text

    class_of = {name: one for one, names in plan.mapping.names_of for name in names}
    class_of |= dict.fromkeys(plan.mapping.excluded, "(cut out)")
    table = Table("annotation", "slides", "class")
    for name, count in sorted(plan.num_slides_of.items()):
        table.add_row(Text(name), str(count), Text(class_of.get(name, "(left out)")))
    console.print(table)
    for slide_id, reason in plan.failures.items():
        console.print(f"failed {slide_id}: {reason}", markup=False, soft_wrap=True)
    without = sum(path is None for path in plan.file_of.values())
    console.print(f"{len(plan.file_of) - without} slides with a file, {without} without; dry run: nothing was written")
    return int(bool(plan.failures))


def _show_results(console: Console, classes: tuple[str, ...], statuses: list[AnnotationStatus]) -> None:
    from rich.table import Table
    from rich.text import Text

    from span_sparse.extract.annotate import LABEL_SHARE

    counted = [status for status in statuses if status.num_patches]
    table = Table("class", "slides", f"patches ≥ {LABEL_SHARE:.0%}", "mm²")
    for position, name in enumerate(classes):
        areas = [status.areas_mm2[position] for status in counted]
        patches = sum(status.num_patches[position] for status in counted)
        table.add_row(Text(name), str(sum(area > 0 for area in areas)), str(patches), f"{sum(areas):.3f}")
    console.print(table)
    for what in dict.fromkeys(status.status for status in statuses):
        console.print(f"{sum(status.status == what for status in statuses)} slides {what}")
