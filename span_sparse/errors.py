"""What can go wrong at a boundary, and how is the user told?

Every error a user can cause derives from `SpanError`. Its message names the file or value, what was expected, what was
found and what to do; the command line prints it as one line and exits with 1, without a stack trace. Programming errors
stay `assert` and ordinary Python exceptions.
"""

from __future__ import annotations


class SpanError(Exception):
    """Base of every error this package raises on bad input; `str()` is the whole message for the user."""


class SlideError(SpanError):
    """A slide cannot be opened or read, or its metadata cannot be used."""


class MppError(SlideError):
    """The slide's micrometres per pixel are missing, contradictory or implausible."""


class TissueNotFoundError(SlideError):
    """No tissue was found on a slide; a slide without tissue is a failure, never an empty bag."""


class AnnotationError(SpanError):
    """A file of outlines or a mask (GeoJSON, XML, picture) cannot be read, or does not fit its slide."""


class LatticeError(SpanError):
    """Coordinates do not lie on the lattice, or the lattice cannot be built for this slide."""


class StoreError(SpanError):
    """A feature store is missing, incomplete, inconsistent or about to become so."""


class ExchangeError(SpanError):
    """A feature file of another system cannot be imported, or a slide cannot be exported to its format."""


class CohortError(SpanError):
    """The cohort table or its splits cannot be used."""


class ConfigError(SpanError):
    """A combination of settings that cannot work, found when the model or the run is built."""


class BatchError(SpanError):
    """Tensors handed to the model do not describe a valid sparse batch."""


class CheckpointError(SpanError):
    """A checkpoint cannot be read, or does not fit the features it is applied to."""


class PredictionTableError(SpanError):
    """A prediction table lacks columns or holds values that no statistic can use."""


class TrainingError(SpanError):
    """A training cannot go on."""


class ReportError(SpanError):
    """An evaluation or a folder of heatmaps cannot be shown, in a report or in the viewer."""


class HeatmapError(SpanError):
    """Scores of patches cannot be computed, read or drawn."""
