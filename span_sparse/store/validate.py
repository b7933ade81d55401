"""What is wrong in this store? All of it, for all slides, and never an exception.

1. The root: is it a store of a known version?
2. Entries that are no slide: leftovers of killed writers, foreign files, links out of the store.
3. Each slide: attributes, arrays with their checksums, values, order.
4. Between slides: one encoder, one lattice.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from span_sparse.errors import StoreError
from span_sparse.store.checks import is_row_major, validate_contents
from span_sparse.store.naming import TEMPORARY_PREFIX, slide_id_of
from span_sparse.store.reader import FeatureStore, identity_differences
from span_sparse.store.schema import SlideMetadata
from span_sparse.store.shard import METADATA_FILE


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a store; `slide_id` is None when it concerns the store as a whole."""

    slide_id: str | None
    message: str


def validate_store(path: Path) -> list[Problem]:
    """Every problem of a store, read wholly, one slide in memory at a time; empty when it is good."""
    try:
        store = FeatureStore(path)
        names = sorted(entry.name for entry in store.path.iterdir())
    except StoreError as error:
        return [Problem(None, str(error))]
    except OSError as error:
        return [Problem(None, f"{path} cannot be listed: {error.strerror or error}")]
    problems: list[Problem] = []
    first: SlideMetadata | None = None
    for name in names:
        if name == METADATA_FILE:
            continue
        if name.startswith(TEMPORARY_PREFIX):
            problems.append(Problem(None, f"{name} was left by a killed writer; `span validate --clean` removes it"))
            continue
        try:
            slide_id = slide_id_of(name)
        except StoreError as error:
            problems.append(Problem(None, f"{error}; it does not belong into a store"))
            continue
        metadata, messages = _validate_slide(store, slide_id)
        problems += [Problem(slide_id, message) for message in messages]
        if metadata is not None and first is None:
            first = metadata
        elif metadata is not None and first is not None:
            differences = identity_differences(first, metadata)
            if differences:
                problems.append(Problem(slide_id, f"differs from slide {first.slide_id!r}: {'; '.join(differences)}"))
    return problems


def _validate_slide(store: FeatureStore, slide_id: str) -> tuple[SlideMetadata | None, list[str]]:
    try:
        metadata = store.metadata(slide_id)
    except StoreError as error:
        return None, [str(error)]
    except OSError as error:
        return None, [f"cannot be read: {error.strerror or error}"]
    try:
        record = store.read(slide_id)
    except StoreError as error:
        return metadata, [str(error)]
    problems = validate_contents(record)
    if not is_row_major(record.grid):
        problems.append("cells are not in row-major order: this format sorts rows by (row, col)")
    return metadata, problems
