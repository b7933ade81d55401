"""Lightning modules, one a task, and what surrounds a run."""

from span_sparse.training.patch_segmenter import PatchSegmenter
from span_sparse.training.slide_classifier import SlideClassifier
from span_sparse.training.slide_tasks import MultiLabelClassifier, SlideRegressor
from span_sparse.training.survival_model import SurvivalModel
from span_sparse.training.task_module import TaskModule
from span_sparse.training.weight_average import WeightAverage

__all__ = [
    "MultiLabelClassifier",
    "PatchSegmenter",
    "SlideClassifier",
    "SlideRegressor",
    "SurvivalModel",
    "TaskModule",
    "WeightAverage",
]
