"""The layers of SPAN: pure functions first, thin modules around them."""

from span_sparse.nn.down_sampling import DownKind, DownSampling, EdgeMode, NormPosition, SamplingSettings
from span_sparse.nn.execution import Execution, current_execution, execution
from span_sparse.nn.global_tokens import GlobalTokens, reads_patches
from span_sparse.nn.heads import (
    AdditionHead,
    AttentionPooling,
    GlobalTokenHead,
    HeadKind,
    MultiAttentionHead,
    PyramidPoolingHead,
    reads_locals,
)
from span_sparse.nn.input_projection import InputProjection
from span_sparse.nn.pyramid import Connection, DecoderStage, EncoderStage, PyramidDecoder, PyramidEncoder, StageOutput
from span_sparse.nn.slides import slide_mean
from span_sparse.nn.token_transition import TokenStrategy, TokenTransition
from span_sparse.nn.transformer import AttentionMode, LayerSettings, Positions, make_layer, writes_globals
from span_sparse.nn.up_sampling import UpKind, UpSampling
from span_sparse.nn.window_attention import window_attention

__all__ = [
    "AdditionHead",
    "AttentionMode",
    "AttentionPooling",
    "Connection",
    "DecoderStage",
    "DownKind",
    "DownSampling",
    "EdgeMode",
    "EncoderStage",
    "Execution",
    "GlobalTokenHead",
    "GlobalTokens",
    "HeadKind",
    "InputProjection",
    "LayerSettings",
    "MultiAttentionHead",
    "NormPosition",
    "Positions",
    "PyramidDecoder",
    "PyramidEncoder",
    "PyramidPoolingHead",
    "SamplingSettings",
    "StageOutput",
    "TokenStrategy",
    "TokenTransition",
    "UpKind",
    "UpSampling",
    "current_execution",
    "execution",
    "make_layer",
    "reads_locals",
    "reads_patches",
    "slide_mean",
    "window_attention",
    "writes_globals",
]
