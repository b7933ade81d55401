"""The layers of SPAN: pure functions first, thin modules around them."""

from span_sparse.nn.down_sampling import DownKind, DownSampling, EdgeMode, NormPosition, TokenStrategy
from span_sparse.nn.global_tokens import GlobalTokens
from span_sparse.nn.heads import GlobalTokenHead, PyramidPoolingHead
from span_sparse.nn.input_projection import InputProjection
from span_sparse.nn.pyramid import PyramidEncoder, StageOutput
from span_sparse.nn.transformer import TransformerLayer
from span_sparse.nn.window_attention import union_window_attention

__all__ = [
    "DownKind",
    "DownSampling",
    "EdgeMode",
    "GlobalTokenHead",
    "GlobalTokens",
    "InputProjection",
    "NormPosition",
    "PyramidEncoder",
    "PyramidPoolingHead",
    "StageOutput",
    "TokenStrategy",
    "TransformerLayer",
    "union_window_attention",
]
