"""Figures that people compare, as pure functions of numpy arrays."""

from span_sparse.metrics.segmentation import dice, intersection_over_union
from span_sparse.metrics.survival import concordance_index

__all__ = ["concordance_index", "dice", "intersection_over_union"]
