"""How does a cohort of slides become a feature store?

1. Refuse what cannot work for any slide: an encoder of another input size, a store made with other settings.
2. Hand the slides to worker processes, one whole slide each (`slide_extraction`, `workers`).
3. After each: a row of the process list, a step of the progress bar, a line if it failed. The others go on.

Resuming is not a mode: a slide that is complete in the store, from the same file, resolution and settings, is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from span_sparse.cohort import CohortTable
from span_sparse.errors import ConfigError, SlideError, SpanError, StoreError
from span_sparse.extract.encoder import PatchEncoder
from span_sparse.extract.process_list import (
    DONE,
    FAILED,
    SlideStatus,
    process_list_path,
    read_process_list,
    write_process_list,
)
from span_sparse.extract.slide_extraction import ExtractionSettings, SlideExtraction, SlideTask
from span_sparse.extract.store_guard import clean_store
from span_sparse.extract.workers import WorkerDeath, run_tasks
from span_sparse.grid import LatticeSpec
from span_sparse.store import FeatureStore
from span_sparse.wsi import TissueSettings


def extract_cohort(
    cohort: CohortTable,
    slides_dir: Path,
    store: Path,
    *,
    spec: LatticeSpec,
    encoder: PatchEncoder,
    workers: int = 1,
    overwrite: bool = False,
    limit: int | None = None,
    dry_run: bool = False,
    tissue: TissueSettings | None = None,
    min_tissue_fraction: float = 0.5,
    batch_size: int = 256,
    console: Console | None = None,
) -> list[SlideStatus]:
    """Extract every slide of a cohort into a store, resuming what is there.

    Args:
        cohort: the slides.
        slides_dir: folder of the slide files.
        store: folder of the store; created when missing. The process list is written beside it.
        spec: patch size and resolution; must be the encoder's.
        encoder: turns patches into features; picklable when `workers > 1`.
        workers: processes; 0 and 1 work in this one.
        overwrite: extract again what is there.
        limit: only the first so many slides of the cohort.
        dry_run: open the slides, check file, resolution and store, write nothing; status `pending` means it would run.
        tissue: how tissue is found.
        min_tissue_fraction: least share of tissue of a patch, in (0, 1].
        batch_size: patches in memory at a time, for each worker.
        console: where progress and failures are shown; None for silence.

    Returns:
        One status for each slide, in the cohort's order; failures are statuses, not exceptions.

    Raises:
        ConfigError: settings that fit no slide.
        SlideError: `slides_dir` is not a folder.
        StoreError: the store cannot be opened, or holds slides made with other settings and `overwrite` is not set.
    """
    settings = ExtractionSettings(spec, tissue or TissueSettings(), min_tissue_fraction, batch_size)
    _check_settings(settings, encoder, workers, limit)
    if not slides_dir.is_dir():
        raise SlideError(f"{slides_dir}: no such folder of slides")
    slide_ids = cohort.slide_ids[:limit]
    tasks, missing = _find_slides(cohort, slide_ids, slides_dir)
    work = SlideExtraction(store, settings, encoder, overwrite=overwrite, dry_run=dry_run)
    process_list = process_list_path(store)
    rows = {row.slide_id: row for row in read_process_list(process_list)}
    statuses: dict[str, SlideStatus] = {}
    with ExitStack() as stack:
        if not dry_run:
            stack.enter_context(clean_store(store))
        _refuse_other_settings(store, settings, encoder, overwrite=overwrite)
        display = stack.enter_context(_Display(console, len(slide_ids)))
        for status in _outcomes(work, tasks, missing, workers, display):
            before = rows.pop(status.slide_id, None)
            if status.resumed and before is not None and before.status == DONE:
                status = replace(status, seconds=before.seconds)
            statuses[status.slide_id] = status
            display.show(status)
            if not dry_run:
                in_order = [statuses[slide_id] for slide_id in slide_ids if slide_id in statuses]
                write_process_list(process_list, [*in_order, *rows.values()])
    return [statuses[slide_id] for slide_id in slide_ids]


def _check_settings(settings: ExtractionSettings, encoder: PatchEncoder, workers: int, limit: int | None) -> None:
    spec, identity = settings.spec, encoder.identity
    if (spec.patch_size_px, spec.target_mpp) != (identity.input_size_px, identity.mpp):
        raise ConfigError(
            f"patches of {spec.patch_size_px} px at {spec.target_mpp:g} µm/px do not fit the encoder {identity.name}, "
            f"which takes {identity.input_size_px} px at {identity.mpp:g} µm/px"
        )
    if not 0 < settings.min_tissue_fraction <= 1:
        raise ConfigError(f"the least share of tissue must be in (0, 1], got {settings.min_tissue_fraction:g}")
    if settings.batch_size < 1 or workers < 0 or (limit is not None and limit < 1):
        raise ConfigError(
            f"batch size and limit must be at least 1 and workers at least 0, got batch size {settings.batch_size}, "
            f"limit {limit}, workers {workers}"
        )


def _refuse_other_settings(path: Path, settings: ExtractionSettings, encoder: PatchEncoder, *, overwrite: bool) -> None:
    """Slides made with other settings are overwritten on request, never mixed with new ones by accident."""
    if overwrite or not path.exists():
        return
    store = FeatureStore(path)
    for slide_id in store.slide_ids:
        if differences := settings.differences(store.metadata(slide_id), encoder):
            raise StoreError(
                f"{path}: slide {slide_id} was extracted with other settings (now != stored: "
                f"{'; '.join(differences)}); use another --store, the same settings, or --overwrite to extract it again"
            )


def _find_slides(
    cohort: CohortTable, slide_ids: tuple[str, ...], slides_dir: Path
) -> tuple[list[SlideTask], list[SlideStatus]]:
    """Slides with a file, and failures for the others."""
    tasks: list[SlideTask] = []
    missing: list[SlideStatus] = []
    for slide_id in slide_ids:
        try:
            path = cohort.slide_path(slide_id, slides_dir)
            tasks.append(SlideTask(slide_id, cohort.case_of(slide_id), path, cohort.mpp(slide_id)))
        except SpanError as error:
            missing.append(SlideStatus(slide_id, FAILED, str(error)))
    return tasks, missing


def _outcomes(
    work: SlideExtraction, tasks: list[SlideTask], missing: list[SlideStatus], workers: int, display: _Display
) -> Iterator[SlideStatus]:
    yield from missing
    for task, result in run_tasks(work, tasks, min(workers, len(tasks)), display.add_patches):
        if isinstance(result, WorkerDeath):
            yield SlideStatus(
                task.slide_id,
                FAILED,
                f"{task.path}: the process that worked on it died ({result.reason}); the file crashes a library or "
                "memory ran out: try it alone with `span inspect`, or fewer --workers",
            )
        else:
            yield result


class _Display:
    """Progress bar over slides, with a count of patches and the time left; silent without a console."""

    def __init__(self, console: Console | None, num_slides: int) -> None:
        self._console = console
        self._num_patches = 0
        self._progress = Progress(
            TextColumn("slides"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[patches]} patches"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=console is None,
        )
        self._task = self._progress.add_task("slides", total=num_slides, patches=0)

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def add_patches(self, count: int) -> None:
        self._num_patches += count
        self._progress.update(self._task, patches=self._num_patches)

    def show(self, status: SlideStatus) -> None:
        self._progress.advance(self._task)
        if status.status == FAILED and self._console is not None:
            line = f"[red]failed[/] {escape(status.slide_id)}: {escape(status.error)}"
            self._progress.console.print(line, soft_wrap=True)
