"""How do weights trained with the authors' released code become ours? A table of names and three changes of layout.

The authors' classification model (github wwyi1828/SPAN, commit 08e4ba0) and `SpanMil` hold the same numbers; ours are
named after what they do, and a depthwise kernel is `[taps, channels]` instead of `[channels, 1, kernel, kernel]`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from span_sparse.errors import CheckpointError


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1)


def _kernel(tensor: Tensor) -> Tensor:
    """`[channels, 1, k, k]` → `[taps, channels]`; `[out, in, k, k]` → `[out, k, k, in]`, spconv's layout."""
    if tensor.shape[1] == 1:
        return tensor.flatten(1).T.contiguous()
    return tensor.permute(0, 2, 3, 1).contiguous()


_BLOCK = r"encoder\.blocks\.(\d+)\.modules_dict"
_CONVOLUTION = rf"{_BLOCK}\.convs_0\.0"
_LAYER = rf"{_BLOCK}\.trans_2\.(\d+)\.trans_block"
_OURS = r"encoder.stages.\1.layers.\2"

_RULES: list[tuple[str, str, Callable[[Tensor], Tensor]]] = [
    (
        r"encoder\.blocks\.0\.modules_dict\.convs_0\.0\.conv_block\.linear\.0\.weight",
        "encoder.input_projection.linear.weight",
        _same,
    ),
    (
        r"encoder\.blocks\.0\.modules_dict\.convs_0\.0\.(?:identity|g)_proj\.(\w+)",
        r"encoder.token_projection.\1",
        _same,
    ),
    (rf"{_CONVOLUTION}\.(?:identity|g)_proj\.(\w+)", r"encoder.stages.\1.down.token_projection.\2", _same),
    (rf"{_CONVOLUTION}\.global_input_norm\.(\w+)", r"encoder.stages.\1.down.token_norm.\2", _same),
    (rf"{_CONVOLUTION}\.conv_block\.(input_norm|output_norm)\.(\w+)", r"encoder.stages.\1.down.\2.\3", _same),
    (rf"{_CONVOLUTION}\.conv_block\.dwconv\.weight", r"encoder.stages.\1.down.operation.weight", _kernel),
    (rf"{_CONVOLUTION}\.conv_block\.dwconv\.bias", r"encoder.stages.\1.down.operation.bias", _same),
    (rf"{_LAYER}\.table_RPB\.adjustment_tables", rf"{_OURS}.positions.table", _same),
    (rf"{_LAYER}\.q1\.(\w+)", rf"{_OURS}.window_qkv.0.\3", _same),
    (rf"{_LAYER}\.k1\.(\w+)", rf"{_OURS}.window_qkv.1.\3", _same),
    (rf"{_LAYER}\.v1\.(\w+)", rf"{_OURS}.window_qkv.2.\3", _same),
    (rf"{_LAYER}\.q2\.(\w+)", rf"{_OURS}.global_qkv.0.\3", _same),
    (rf"{_LAYER}\.k2\.(\w+)", rf"{_OURS}.global_qkv.1.\3", _same),
    (rf"{_LAYER}\.v2\.(\w+)", rf"{_OURS}.global_qkv.2.\3", _same),
    (rf"{_LAYER}\.fc_out\.(\w+)", rf"{_OURS}.output.\3", _same),
    (rf"{_LAYER}\.ffn\.(\d+)\.(\w+)", rf"{_OURS}.feed_forward.\3.\4", _same),
    (rf"{_LAYER}\.norm1\.(\w+)", rf"{_OURS}.attention_norm.\3", _same),
    (rf"{_LAYER}\.norm2\.(\w+)", rf"{_OURS}.feed_forward_norm.\3", _same),
    (r"encoder\.learnable_tokens\.(\d+)", r"encoder.tokens.learned.\1", _flat),
    (r"aggregator\.module\.norm\.(\w+)", r"head.norm.\1", _same),
    (r"aggregator\.module\.fc\.1\.(\w+)", r"head.output.\1", _same),
]


def our_name(name: str) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Our name of a parameter of the authors' code, and the change of layout (a permutation of its entries).

    Raises:
        CheckpointError: a name this table does not know.
    """
    for pattern, replacement, change in _RULES:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement), change
    raise CheckpointError(
        f"{name!r} is not a parameter of the authors' SPAN-MIL with the settings this version converts "
        "(input projection without activation, relative position bias, head multi_addition)"
    )


def convert_state_dict(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the authors' SPAN-MIL as one of `SpanMil`."""
    converted: dict[str, Tensor] = {}
    for name, tensor in official.items():
        ours, change = our_name(name)
        converted[ours] = change(tensor)
    return converted
