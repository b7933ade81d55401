"""How does a folder of another system's features enter a store?

1. The format is the one named, or recognised.
2. The slides are those of the cohort table, or all in the folder; one whose file is missing is a failure of that slide.
3. Each is read, fitted, checked and written by itself; what is there already, from the same bytes and with the same
   settings, is left alone. A failure is an outcome with its reason, never the end of the run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from span_sparse.cohort import CohortTable
from span_sparse.errors import CohortError, ExchangeError, SpanError
from span_sparse.store.checks import validate_record
from span_sparse.store.exchange.assemble import assemble, checksum, describe_files
from span_sparse.store.exchange.formats import AUTO, detect, format_named
from span_sparse.store.exchange.layout import IMPORTED, Files, Format
from span_sparse.store.exchange.source import ImportSettings, Request, TensorFiles
from span_sparse.store.reader import FeatureStore, identity_differences
from span_sparse.store.schema import SlideMetadata, SlideRecord, raise_problems

_UNEXPECTED = (TypeError, AttributeError, LookupError, ValueError, ArithmeticError, RecursionError)
"""What reading a file raises whose parts are of other kinds than its format says."""


@dataclass(frozen=True, slots=True)
class ImportOutcome:
    """What became of one slide.

    Attributes:
        slide_id: the slide.
        error: why it failed; empty otherwise.
        metadata: what is in the store, or would be; None when it failed.
        resumed: it was there already.
        seconds: time it took.
    """

    slide_id: str
    error: str = ""
    metadata: SlideMetadata | None = None
    resumed: bool = False
    seconds: float = 0.0

    @property
    def report(self) -> dict[str, Any]:
        """How the lattice was found, empty when the slide failed."""
        return self.metadata.provenance[IMPORTED]["lattice"] if self.metadata else {}


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """What is to be imported.

    Attributes:
        folder: where the files are.
        format: their format.
        evidence: what it was recognised by, empty when it was named.
        requests: the slides, in order.
        files: the files of those that have some.
        num_ignored: slides in the folder that the cohort table does not name.
    """

    folder: Path
    format: Format
    evidence: str
    requests: tuple[Request, ...]
    files: dict[str, Files]
    num_ignored: int


def plan_import(
    folder: Path,
    format_name: str,
    settings: ImportSettings,
    cohort: CohortTable | None = None,
    limit: int | None = None,
) -> ImportPlan:
    """Find the slides of a folder.

    Args:
        folder: where the files are.
        format_name: a format's name, or `auto`.
        settings: what holds for all slides.
        cohort: the slides wanted, with what the table says of each; None: all in the folder.
        limit: only the first so many.

    Raises:
        ExchangeError: the folder is missing or holds no slides, or the format is not clear.
        CohortError: the table's sizes are no numbers.
    """
    if not folder.is_dir():
        raise ExchangeError(f"{folder}: no such folder of features")
    chosen, evidence = detect(folder) if format_name == AUTO else (format_named(format_name), "")
    files = chosen.find(folder)
    if not files:
        raise ExchangeError(f"{folder} holds no slides of format {chosen.name} ({chosen.description})")
    if cohort is None:
        requests = [Request(slide_id, settings=settings) for slide_id in sorted(files)]
    else:
        requests = [_request(slide_id, cohort, settings) for slide_id in cohort.slide_ids]
    ignored = len(set(files) - {request.slide_id for request in requests})
    return ImportPlan(folder, chosen, evidence, tuple(requests[:limit]), files, ignored)


def _request(slide_id: str, cohort: CohortTable, settings: ImportSettings) -> Request:
    width, height = (_size(cohort, name).get(slide_id) for name in ("width_px0", "height_px0"))
    return Request(slide_id, cohort.case_of(slide_id), cohort.mpp(slide_id), width, height, settings)


def _size(cohort: CohortTable, column: str) -> dict[str, int]:
    """Whole positive numbers of a column, where it has some."""
    if column not in cohort.frame:
        return {}
    found: dict[str, int] = {}
    for slide_id, text in cohort.labels(column).items():
        if text is None:
            continue
        if not text.isascii() or not text.isdigit() or int(text) == 0:
            raise CohortError(
                f"{cohort.path}, column {column!r}: expected a number of pixels, found {text!r} for slide {slide_id!r}"
            )
        found[slide_id] = int(text)
    return found


def import_slides(
    plan: ImportPlan, store: Path, tensors: TensorFiles, *, overwrite: bool = False, dry_run: bool = False
) -> Iterator[ImportOutcome]:
    """Import slide after slide.

    Args:
        plan: what to import.
        store: folder of the store, created when missing.
        tensors: reads `.pt` files.
        overwrite: replace slides that are there with other content or settings.
        dry_run: read and fit, write nothing.

    Yields:
        One outcome for each slide of the plan, in its order.

    Raises:
        StoreError: the folder is not a store, or cannot be made.
    """
    target = None if dry_run and not store.exists() else FeatureStore(store) if dry_run else FeatureStore.create(store)
    for request in plan.requests:
        start = time.monotonic()
        try:
            metadata, resumed = _import_one(plan, request, target, tensors, overwrite=overwrite, dry_run=dry_run)
            yield ImportOutcome(request.slide_id, "", metadata, resumed, time.monotonic() - start)
        except (SpanError, OSError, MemoryError) as error:
            message = str(error) or type(error).__name__
            yield ImportOutcome(request.slide_id, message, seconds=time.monotonic() - start)


def _import_one(
    plan: ImportPlan,
    request: Request,
    store: FeatureStore | None,
    tensors: TensorFiles,
    *,
    overwrite: bool,
    dry_run: bool,
) -> tuple[SlideMetadata, bool]:
    files = plan.files.get(request.slide_id)
    if files is None:
        raise ExchangeError(f"{plan.folder} has no features of this slide; its slides are called like {_names(plan)}")
    if missing := next((path for path in files if not path.exists()), None):
        raise ExchangeError(f"{files[0]} needs {missing}, which does not exist")
    described = describe_files(files, plan.folder)
    there = store.metadata(request.slide_id) if store is not None and store.has(request.slide_id) else None
    if there is not None and not overwrite and _is_same(there, request, plan.format, described):
        return there, True
    try:
        record = assemble(plan.format.read(files, request, tensors), request, plan.format.name, described)
    except _UNEXPECTED as error:
        kind = type(error).__name__
        raise ExchangeError(
            f"{files[0]} is not what format {plan.format.name} says ({kind}: {error}); did another program write it?"
        ) from error
    except SpanError as error:
        message = str(error)
        named = any(str(path) in message for path in files)
        raise type(error)(message if named else f"{files[0]}: {message}") from error
    raise_problems(str(files[0]), validate_record(record))
    if store is not None:
        _refuse_mixing(store, record)
    if store is not None and not dry_run:
        store.write(record, overwrite=there is not None)
    return record.metadata(), False


def _names(plan: ImportPlan) -> str:
    return ", ".join(sorted(plan.files)[:3])


def _is_same(there: SlideMetadata, request: Request, chosen: Format, described: list[dict[str, Any]]) -> bool:
    """Whether the slide in the store is this import's; raises when it is the same bytes imported in another way."""
    imported = there.provenance.get(IMPORTED)
    if imported is None:
        raise ExchangeError("the slide is in the store and was not imported; pass --overwrite to replace it")
    if there.slide_checksum != checksum(described):
        return False
    now = {"format": chosen.name, **request.settings.as_dict()}
    before = {"format": imported["format"], **imported["settings"]}
    changed = [f"{key}: {now[key]} != {before.get(key)}" for key in now if now[key] != before.get(key)]
    if request.mpp is not None and not math.isclose(request.mpp, there.lattice.slide_mpp):
        changed.append(f"mpp: {request.mpp} != {there.lattice.slide_mpp}")
    if changed:
        raise ExchangeError(
            f"the slide is in the store, imported with other settings (now != stored: {'; '.join(changed)}); pass "
            "--overwrite to replace it"
        )
    return True


def _refuse_mixing(store: FeatureStore, record: SlideRecord) -> None:
    """One store, one encoder and one lattice."""
    other = next((slide_id for slide_id in store.slide_ids if slide_id != record.slide_id), None)
    if other is None:
        return
    if differences := identity_differences(record.metadata(), store.metadata(other)):
        raise ExchangeError(
            f"the store's slide {other!r} has other features (this != stored: {'; '.join(differences)}); use another "
            "--store"
        )
