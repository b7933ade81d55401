"""Prediction tables in; figures, intervals, pictures and files out. Reads tables, never models."""

from span_sparse.evaluation.curves import precision_recall_points, roc_points
from span_sparse.evaluation.predictions import PredictionTable, parse_predictions, read_predictions, write_predictions
from span_sparse.evaluation.report import EvaluationFiles, write_evaluation, write_results
from span_sparse.evaluation.scores import score_table
from span_sparse.evaluation.statistics import (
    ClassificationMetrics,
    classification_metrics,
    metrics_by_split,
    reliability_table,
)
from span_sparse.evaluation.subgroups import subgroup_scores
from span_sparse.evaluation.survival_figure import risk_groups
from span_sparse.evaluation.thresholds import choose_risk_cut, choose_threshold
from span_sparse.metrics import kaplan_meier, log_rank

__all__ = [
    "ClassificationMetrics",
    "EvaluationFiles",
    "PredictionTable",
    "choose_risk_cut",
    "choose_threshold",
    "classification_metrics",
    "kaplan_meier",
    "log_rank",
    "metrics_by_split",
    "parse_predictions",
    "precision_recall_points",
    "read_predictions",
    "reliability_table",
    "risk_groups",
    "roc_points",
    "score_table",
    "subgroup_scores",
    "write_evaluation",
    "write_predictions",
    "write_results",
]
