"""From a store and a cohort table to batches of plain tensors."""

from span_sparse.datasets.batch import SlideBatch, SlideSample, collate
from span_sparse.datasets.slide_dataset import SlideDataset
from span_sparse.datasets.task import ClassificationTask

__all__ = ["ClassificationTask", "SlideBatch", "SlideDataset", "SlideSample", "collate"]
