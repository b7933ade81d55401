"""Splits of a cohort into train, val and test: made, checked, and read and written in the formats of the field."""

from span_sparse.datasets.splits.check import SplitProblem, check_splits, confounding, read_splits
from span_sparse.datasets.splits.formats import FORMATS, read_split_file
from span_sparse.datasets.splits.make import SplitPlan, make_splits
from span_sparse.datasets.splits.summary import SideSummary, summarise
from span_sparse.datasets.splits.table import SplitFile, SplitFormat, Splits, resolve, split_hash
from span_sparse.datasets.splits.training import DEFAULT_SITE_COLUMN, column_hash, require_trainable
from span_sparse.datasets.splits.writing import write_splits

__all__ = [
    "DEFAULT_SITE_COLUMN",
    "FORMATS",
    "SideSummary",
    "SplitFile",
    "SplitFormat",
    "SplitPlan",
    "SplitProblem",
    "Splits",
    "check_splits",
    "column_hash",
    "confounding",
    "make_splits",
    "read_split_file",
    "read_splits",
    "require_trainable",
    "resolve",
    "split_hash",
    "summarise",
    "write_splits",
]
