"""Losses as pure functions: classification, segmentation, survival."""

from span_sparse.losses.classification import cross_entropy, multi_label_bce
from span_sparse.losses.segmentation import binary_segmentation_loss, multi_class_segmentation_loss, soft_dice
from span_sparse.losses.survival import DiscreteSurvival, cox_partial_likelihood, discrete_survival, discrete_time_nll

__all__ = [
    "DiscreteSurvival",
    "binary_segmentation_loss",
    "cox_partial_likelihood",
    "cross_entropy",
    "discrete_survival",
    "discrete_time_nll",
    "multi_class_segmentation_loss",
    "multi_label_bce",
    "soft_dice",
]
