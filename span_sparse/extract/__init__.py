"""How do slides become features? Encoders, and the pipeline from slide to store."""

from __future__ import annotations

from span_sparse.extract.encoder import PatchEncoder
from span_sparse.extract.pipeline import extract_cohort
from span_sparse.extract.stain_texture import StainTextureEncoder

__all__ = ["PatchEncoder", "StainTextureEncoder", "extract_cohort"]
