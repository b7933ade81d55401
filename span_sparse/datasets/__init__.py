"""From a store and a cohort table to batches of plain tensors."""

from span_sparse.datasets.batch import SlideBatch, SlideSample, collate
from span_sparse.datasets.slide_dataset import SlideDataset
from span_sparse.datasets.task import (
    AnyTask,
    ClassificationTask,
    MultiLabelTask,
    RegressionTask,
    SegmentationTask,
    SurvivalTask,
    Task,
)

__all__ = [
    "AnyTask",
    "ClassificationTask",
    "MultiLabelTask",
    "RegressionTask",
    "SegmentationTask",
    "SlideBatch",
    "SlideDataset",
    "SlideSample",
    "SurvivalTask",
    "Task",
    "collate",
]
