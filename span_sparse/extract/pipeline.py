"""How does a cohort of slides become a feature store?

1. Refuse what cannot work for any slide: an encoder of another input size, a store made with other settings.
2. Let workers read, the encoder encode, and a thread write (`engine`).
3. After each slide: a row of the process list, a step of the display. A slide that failed stops nobody else.
4. At the end, also of a run that was interrupted: process list and QC page say what there is.

Resuming is not a mode: a slide that is complete in the store, from the same file, resolution and settings, is done.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from rich.console import Console

from span_sparse.cohort import CohortTable
from span_sparse.errors import ConfigError, SlideError, SpanError, StoreError
from span_sparse.extract.display import Display
from span_sparse.extract.encoder import PatchEncoder
from span_sparse.extract.engine import Engine
from span_sparse.extract.interruption import interruptible
from span_sparse.extract.process_list import FAILED, SlideStatus
from span_sparse.extract.run_log import RunLog
from span_sparse.extract.settings import ExtractionSettings, FailureLimit, SlideTask
from span_sparse.extract.sharding import Shard, tasks_of_shard
from span_sparse.extract.slide_pictures import picture_path
from span_sparse.extract.slide_work import Request, SlideWork
from span_sparse.extract.store_guard import clean_store
from span_sparse.extract.workers import WorkerPool
from span_sparse.files import write_atomically
from span_sparse.grid import LatticeSpec
from span_sparse.store import FeatureStore, SlideRecord
from span_sparse.wsi import TissueSettings, tissue_settings_for


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
    max_failed_patches: FailureLimit | None = None,
    allow_upsampling: bool = False,
    shard: Shard | None = None,
    console: Console | None = None,
) -> list[SlideStatus]:
    """Extract every slide of a cohort into a store, resuming what is there.

    Args:
        cohort: the slides.
        slides_dir: folder of the slide files.
        store: folder of the store; created when missing. Process list, outlines and pictures are written beside it.
        spec: patch size and resolution; must be the encoder's.
        encoder: turns patches into features. With a `device` that is not `cpu` it stays in this process and works on
            what workers read; else each worker has a copy, which takes that it can be pickled.
        workers: processes; 0 works in this one, and so does 1 with an encoder on the CPU.
        overwrite: extract again what is there.
        limit: only the first so many slides of the cohort.
        dry_run: open the slides, check file, resolution and store, write nothing; status `pending` means it would run.
        tissue: how tissue is found, where columns of the cohort table do not say otherwise for a slide.
        min_tissue_fraction: least share of tissue of a patch, in (0, 1].
        batch_size: patches that a worker reads at a time.
        max_failed_patches: a slide with more unreadable patches is a failure; 1 % of its patches when None.
        allow_upsampling: take slides that are coarser than the patches asked for; how much is recorded.
        shard: only this part of the cohort.
        console: where progress and failures are shown; None for silence.

    Returns:
        One status for each slide of the shard, in the cohort's order; failures are statuses, not exceptions.

    Raises:
        ConfigError: settings that fit no slide.
        SlideError: `slides_dir` is not a folder.
        StoreError: the store cannot be opened or written, or holds slides made with other settings and `overwrite` is
            not set.
        SystemExit: the process was told to end (SIGTERM, SIGUSR1); what was complete is kept.
        KeyboardInterrupt: the same by Ctrl-C.
    """
    settings = ExtractionSettings(
        spec,
        tissue or TissueSettings(),
        min_tissue_fraction,
        batch_size,
        max_failed_patches or FailureLimit(),
        allow_upsampling,
    )
    _check_settings(settings, encoder, workers, limit)
    if not slides_dir.is_dir():
        raise SlideError(f"{slides_dir}: no such folder of slides")
    tasks, missing = _find_slides(cohort, cohort.slide_ids[:limit], slides_dir, settings)
    if shard is not None:
        tasks = tasks_of_shard(tasks, shard, store, dry_run=dry_run)
        missing = missing if shard.number == 1 else []
    with ExitStack() as stack:
        check = stack.enter_context(interruptible())
        if not dry_run:
            stack.enter_context(clean_store(store, several_hosts=shard is not None))
        _refuse_other_settings(store, settings, encoder, overwrite=overwrite)
        on_device = has_device(encoder)
        work = SlideWork(
            store, settings, encoder.identity, None if on_device else encoder, overwrite=overwrite, dry_run=dry_run
        )
        stack.callback(work.close)
        in_this_process = not tasks or workers == 0 or (workers == 1 and not on_device)
        slot_shape = (batch_size, spec.patch_size_px, spec.patch_size_px, 3)
        pool: WorkerPool[Request] = WorkerPool(work, 0 if in_this_process else workers, slot_shape)
        stack.callback(pool.close)
        pool.start()
        engine = Engine(pool, tasks, encoder if on_device else None, settings, partial(_write_slide, store), check)
        display = stack.enter_context(Display(console, len(tasks) + len(missing), engine.activities))
        engine.on_patches = display.add_patches
        mine = {row.slide_id for row in (*tasks, *missing)}
        order = [slide_id for slide_id in cohort.slide_ids if slide_id in mine]
        log = None if dry_run else RunLog(store, shard.name if shard else "", order)
        statuses = _follow(engine, missing, display, log)
    return [statuses[slide_id] for slide_id in order]


def _follow(engine: Engine, missing: list[SlideStatus], display: Display, log: RunLog | None) -> dict[str, SlideStatus]:
    """Let the engine run, and tell display and log of every outcome, whatever ends it."""
    statuses: dict[str, SlideStatus] = {}

    def tell(status: SlideStatus) -> None:
        status = status if log is None else log.add(status)
        statuses[status.slide_id] = status
        display.show(status)

    try:
        for status in missing:
            tell(status)
        for status in engine.run():
            tell(status)
    except BaseException:
        for status in engine.stop():
            tell(status)
        if log is not None:
            with suppress(OSError):  # what ended the run is the message to show
                log.close()
        raise
    engine.stop()
    if log is not None:
        log.close()
    return statuses


def _write_slide(store: Path, slide_id: str, pictures: dict[str, bytes], record: SlideRecord | None) -> None:
    """Pictures first: what is complete in the store has them."""
    for suffix, content in pictures.items():
        write_atomically(picture_path(store, slide_id, suffix), content)
    if record is not None:
        # replaced also when it was not there at first: another run may have been faster, with the same result
        FeatureStore(store).write(record, overwrite=True)


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


def has_device(encoder: PatchEncoder) -> bool:
    """Whether the encoder works on a device that one process must own; those without `device` work on the CPU."""
    return str(getattr(encoder, "device", "cpu")) != "cpu"


def _refuse_other_settings(path: Path, settings: ExtractionSettings, encoder: PatchEncoder, *, overwrite: bool) -> None:
    """Slides made with other settings are overwritten on request, never mixed with new ones by accident."""
    if overwrite or not path.exists():
        return
    store = FeatureStore(path)
    for slide_id in store.slide_ids:
        if differences := settings.differences_of_run(store.metadata(slide_id), encoder.identity):
            raise StoreError(
                f"{path}: slide {slide_id} was extracted with other settings (now != stored: "
                f"{'; '.join(differences)}); use another --store, the same settings, or --overwrite to extract it again"
            )


def _find_slides(
    cohort: CohortTable, slide_ids: tuple[str, ...], slides_dir: Path, settings: ExtractionSettings
) -> tuple[list[SlideTask], list[SlideStatus]]:
    """Slides with a file, and failures for the others."""
    tasks: list[SlideTask] = []
    missing: list[SlideStatus] = []
    for slide_id in slide_ids:
        try:
            path = cohort.slide_path(slide_id, slides_dir)
            tissue = tissue_settings_for(cohort, slide_id, settings.tissue, slides_dir)
            tasks.append(SlideTask(slide_id, cohort.case_of(slide_id), path, cohort.mpp(slide_id), tissue))
        except SpanError as error:
            missing.append(SlideStatus(slide_id, FAILED, str(error)))
    return tasks, missing
