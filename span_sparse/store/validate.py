"""What is wrong in this store? All of it, for all slides, and never an exception.

1. The root: is it a store of a known version?
2. Entries that are no slide: leftovers of killed writers, foreign files, links out of the store.
3. Each slide: attributes, arrays with their checksums, values, order; by several processes if asked to.
4. Plausibility of each slide and between slides (`plausibility`).

A problem makes the store wrong. A remark is what a user should know of a store that is right: cells that could not be
read, a file that occurs twice.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from span_sparse.errors import SpanError, StoreError
from span_sparse.store.checks import is_row_major, validate_contents
from span_sparse.store.naming import TEMPORARY_PREFIX, slide_id_of
from span_sparse.store.plausibility import compare_slides, explain_coords, implausible_slide, remarks_on_slides
from span_sparse.store.reader import FeatureStore
from span_sparse.store.schema import SlideMetadata, SlideRecord
from span_sparse.store.shard import METADATA_FILE

_AGAIN = "extract or import this slide again"
_CHUNK = 4


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a store; `slide_id` is None when it concerns the store as a whole."""

    slide_id: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found in a store.

    Attributes:
        problems: all that is wrong.
        remarks: what a user should know besides.
        num_slides: slides looked at, good or bad.
        num_patches: rows of those whose attributes could be read.
    """

    problems: tuple[Problem, ...]
    remarks: tuple[Problem, ...] = ()
    num_slides: int = 0
    num_patches: int = 0


@dataclass(frozen=True, slots=True)
class _Slide:
    metadata: SlideMetadata | None
    problems: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def validate_store(path: Path) -> list[Problem]:
    """Every problem of a store, read wholly, one slide in memory at a time; empty when it is good."""
    return list(examine_store(path).problems)


def examine_store(
    path: Path, num_workers: int = 0, on_slide: Callable[[int, int], None] = lambda done, total: None
) -> Examination:
    """Every problem and remark of a store, read wholly, one slide in memory at a time and process.

    Args:
        path: the store's folder.
        num_workers: processes that read slides; 0 reads them in this one.
        on_slide: told after each slide how many are done, of how many.
    """
    try:
        store = FeatureStore(path)
        names = sorted(entry.name for entry in store.path.iterdir())
    except StoreError as error:
        return Examination((Problem(None, str(error)),))
    except OSError as error:
        return Examination((Problem(None, f"{path} cannot be listed: {error.strerror or error}; correct its rights"),))
    slide_ids, problems = _sort_out(names)
    slides: list[_Slide] = []
    for slide in _examined(store, slide_ids, num_workers):
        slides.append(slide)
        on_slide(len(slides), len(slide_ids))
    known = [slide.metadata for slide in slides if slide.metadata is not None]
    remarks: list[Problem] = []
    for slide_id, slide in zip(slide_ids, slides, strict=True):
        problems += [Problem(slide_id, message) for message in slide.problems]
        remarks += [Problem(slide_id, message) for message in slide.remarks]
    problems += [Problem(slide_id, message) for slide_id, message in compare_slides(known)]
    remarks += [Problem(slide_id, message) for slide_id, message in remarks_on_slides(known)]
    order = {slide_id: position for position, slide_id in enumerate(slide_ids)}
    problems.sort(key=lambda problem: order.get(problem.slide_id or "", -1))
    num_patches = sum(metadata.num_patches for metadata in known)
    return Examination(tuple(problems), tuple(remarks), len(slides), num_patches)


def _sort_out(names: Sequence[str]) -> tuple[list[str], list[Problem]]:
    """Slides, and what is none."""
    slide_ids: list[str] = []
    problems: list[Problem] = []
    for name in names:
        if name == METADATA_FILE:
            continue
        if name.startswith(TEMPORARY_PREFIX):
            problems.append(Problem(None, f"{name} was left by a killed writer; `span validate --fix` removes it"))
            continue
        try:
            slide_ids.append(slide_id_of(name))
        except StoreError as error:
            problems.append(Problem(None, f"{error}; it does not belong into a store: move it elsewhere"))
    return slide_ids, problems


def _examined(store: FeatureStore, slide_ids: Sequence[str], num_workers: int) -> Iterator[_Slide]:
    examine = partial(_examine_slide, store)
    if not num_workers or len(slide_ids) < 2:
        yield from map(examine, slide_ids)
        return
    # spawned: a fork copies the locks of the progress bar's thread
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(num_workers, len(slide_ids)), mp_context=context) as pool:
        yield from pool.map(examine, slide_ids, chunksize=_CHUNK)


def _examine_slide(store: FeatureStore, slide_id: str) -> _Slide:
    try:
        metadata = store.metadata(slide_id)
    except SpanError as error:
        return _Slide(None, (str(error),))
    except OSError as error:
        return _Slide(None, (f"cannot be read: {error.strerror or error}; correct the rights, or {_AGAIN}",))
    implausible = implausible_slide(metadata)
    try:
        record = store.read(slide_id)
    except SpanError as error:
        return _Slide(metadata, (f"{error}; if no copy is whole, delete its folder and {_AGAIN}", *implausible))
    except OSError as error:
        return _Slide(metadata, (f"cannot be read: {error.strerror or error}; correct the rights, or {_AGAIN}",))
    problems = [f"{problem}{_advice(problem, record)}" for problem in validate_contents(record)]
    if not is_row_major(record.grid):
        problems.append(f"cells are not in row-major order: this format sorts rows by (row, col); {_AGAIN}")
    return _Slide(metadata, (*problems, *implausible), _remarks(record))


def _advice(problem: str, record: SlideRecord) -> str:
    explanation = explain_coords(record) if problem.startswith("coords") else ""
    return f"{f' ({explanation})' if explanation else ''}; {_AGAIN}"


def _remarks(record: SlideRecord) -> tuple[str, ...]:
    if record.failed_grid is None:
        return ()
    num_failed, num_cells = len(record.failed_grid), len(record.failed_grid) + len(record.grid)
    return (
        f"{num_failed} of {num_cells} cells with tissue could not be read and have no patch; copy the slide again and "
        "run `span extract` again if they matter",
    )
