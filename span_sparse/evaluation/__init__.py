"""Prediction tables in; figures, intervals, pictures and files out. Reads tables, never models."""

from span_sparse.evaluation.predictions import PredictionTable, parse_predictions, read_predictions, write_predictions
from span_sparse.evaluation.report import EvaluationFiles, write_evaluation
from span_sparse.evaluation.scores import score_table, write_results
from span_sparse.evaluation.statistics import ClassificationMetrics, classification_metrics, metrics_by_split

__all__ = [
    "ClassificationMetrics",
    "EvaluationFiles",
    "PredictionTable",
    "classification_metrics",
    "metrics_by_split",
    "parse_predictions",
    "read_predictions",
    "score_table",
    "write_evaluation",
    "write_predictions",
    "write_results",
]
