"""Where do features of slides lie on the disk? See FORMAT.md for the format, `FeatureStore` for its use."""

from __future__ import annotations

from span_sparse.store.local_copies import LocallyCopiedStore
from span_sparse.store.reader import FeatureStore, identity_differences
from span_sparse.store.schema import FORMAT_NAME, FORMAT_VERSION, SlideMetadata, SlideRecord
from span_sparse.store.validate import Problem, validate_store

__all__ = [
    "FORMAT_NAME",
    "FORMAT_VERSION",
    "FeatureStore",
    "LocallyCopiedStore",
    "Problem",
    "SlideMetadata",
    "SlideRecord",
    "identity_differences",
    "validate_store",
]
