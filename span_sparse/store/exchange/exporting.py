"""How does a store leave for another system?

Slide by slide: rows go back into the order of the file they were imported from, if they were, and a slide that returns
to the format it came from gets its own coordinates and attributes again. Every file appears in one step; slides whose
files are all there are left alone, so that running the same command again does only what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from span_sparse.errors import ExchangeError, SpanError
from span_sparse.store.exchange.formats import format_named
from span_sparse.store.exchange.layout import export_slide
from span_sparse.store.exchange.source import TensorFiles
from span_sparse.store.reader import FeatureStore


@dataclass(frozen=True, slots=True)
class ExportOutcome:
    """What became of one slide: why it failed, or whether its files were there already."""

    slide_id: str
    error: str = ""
    resumed: bool = False
    num_patches: int = 0


def export_slides(
    store: FeatureStore,
    slide_ids: Sequence[str],
    format_name: str,
    folder: Path,
    tensors: TensorFiles,
    *,
    overwrite: bool = False,
) -> Iterator[ExportOutcome]:
    """Export slide after slide.

    Args:
        store: where they are.
        slide_ids: which.
        format_name: a format's name.
        folder: where the files go; created when missing.
        tensors: writes `.pt` files.
        overwrite: write again what is there.

    Raises:
        ExchangeError: there is no such format.
    """
    chosen = format_named(format_name)
    for slide_id in slide_ids:
        try:
            names = chosen.outputs(slide_id)
            for name in names:
                _check_name(name, slide_id)
            if not overwrite and all((folder / name).exists() for name in names):
                yield ExportOutcome(slide_id, resumed=True, num_patches=store.metadata(slide_id).num_patches)
                continue
            record = store.read(slide_id)
            chosen.write(export_slide(record, chosen.name), folder, tensors)
            yield ExportOutcome(slide_id, num_patches=len(record.features))
        except (SpanError, OSError, MemoryError) as error:
            yield ExportOutcome(slide_id, str(error) or type(error).__name__)


def _check_name(name: str, slide_id: str) -> None:
    """Ids come from tables and stores of unknown origin."""
    parts = PurePosixPath(name).parts
    if ".." in parts or PurePosixPath(name).is_absolute() or "\0" in name or "\\" in name:
        raise ExchangeError(f"slide id {slide_id!r} leads out of the folder as a file name; it cannot be exported")
