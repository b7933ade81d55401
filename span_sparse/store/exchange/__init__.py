"""How do features of other systems get into a store, and out again? See docs/formats.md for the formats."""

from __future__ import annotations

from span_sparse.store.exchange.exporting import ExportOutcome, export_slides
from span_sparse.store.exchange.formats import AUTO, FORMAT_NAMES, FORMATS
from span_sparse.store.exchange.importing import ImportOutcome, ImportPlan, import_slides, plan_import
from span_sparse.store.exchange.source import ImportSettings, TensorFiles

__all__ = [
    "AUTO",
    "FORMATS",
    "FORMAT_NAMES",
    "ExportOutcome",
    "ImportOutcome",
    "ImportPlan",
    "ImportSettings",
    "TensorFiles",
    "export_slides",
    "import_slides",
    "plan_import",
]
