"""Which encoder does a name mean? `load_encoder` turns what people type into something that encodes patches."""

from __future__ import annotations

from span_sparse.extract.encoders.loading import load_encoder

__all__ = ["load_encoder"]
