"""Figures that people compare, as pure functions of numpy arrays."""

from span_sparse.metrics.censoring import SurvivalCurve, kaplan_meier, log_rank
from span_sparse.metrics.delong import DeLong, delong_test
from span_sparse.metrics.segmentation import dice, intersection_over_union
from span_sparse.metrics.survival import concordance_index

__all__ = [
    "DeLong",
    "SurvivalCurve",
    "concordance_index",
    "delong_test",
    "dice",
    "intersection_over_union",
    "kaplan_meier",
    "log_rank",
]
