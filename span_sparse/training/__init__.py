"""Lightning modules and what surrounds a run."""

from span_sparse.training.slide_classifier import SlideClassifier

__all__ = ["SlideClassifier"]
