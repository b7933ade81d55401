"""One self-contained HTML file about an evaluation; how folders of evaluations and heatmaps are read. No torch."""

from span_sparse.report.evaluation_folder import Evaluation, read_evaluation
from span_sparse.report.heatmap_folder import HeatmapFolder, PatchScores, ShownSlide, read_heatmap_folder, read_scores
from span_sparse.report.page import DEFAULT_PICTURES, render_report, write_report
from span_sparse.report.slide_errors import is_wrong, outcome_texts, slide_errors

__all__ = [
    "DEFAULT_PICTURES",
    "Evaluation",
    "HeatmapFolder",
    "PatchScores",
    "ShownSlide",
    "is_wrong",
    "outcome_texts",
    "read_evaluation",
    "read_heatmap_folder",
    "read_scores",
    "render_report",
    "slide_errors",
    "write_report",
]
