"""How do weights trained with the authors' released code become ours? A table of names and a few changes of layout.

The authors' model (github wwyi1828/SPAN, commit 08e4ba0) and ours hold the same numbers under other names; convolution
kernels are permuted (`[channels, 1, k, k]` → `[taps, channels]`, `[out, in, k, k]` → spconv's `[out, k, k, in]`,
transposed convolutions `[in, out, k, k]` → `[out, k, k, in]`). Left out is what their model holds and never uses: the
aggregators of the survival heads that are not selected, the last projection of the decoder's global tokens, norms of
global tokens under the strategy `kernel`, the second names of shared projections, and the slopes of ALiBi, which follow
from the number of heads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from span_sparse.errors import CheckpointError, ConfigError
from span_sparse.models.config import PyramidConfig, SpanMilConfig, SpanUnetConfig

_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "silu": "silu", "swish": "silu", "tanh": "tanh"}


@dataclass(frozen=True, slots=True)
class Layout:
    """A change of layout and its inverse; both only permute entries."""

    ours: Callable[[Tensor], Tensor]
    theirs: Callable[[Tensor], Tensor]


_SAME = Layout(lambda tensor: tensor, lambda tensor: tensor)
_TOKEN = Layout(lambda tensor: tensor.flatten(), lambda tensor: tensor.unsqueeze(0))
_DENSE = Layout(lambda tensor: tensor.permute(0, 2, 3, 1), lambda tensor: tensor.permute(0, 3, 1, 2))
_INVERSE = Layout(lambda tensor: tensor.permute(1, 2, 3, 0), lambda tensor: tensor.permute(3, 0, 1, 2))
_DEPTHWISE = Layout(
    lambda tensor: tensor.flatten(1).T,
    lambda tensor: tensor.T.unflatten(1, (1, round(len(tensor) ** 0.5), round(len(tensor) ** 0.5))),
)

_Rule = tuple[str, str | None, Layout]


def official_names(config: PyramidConfig) -> list[_Rule]:
    """Patterns of the authors' names, our names for them (None: left out) and the change of layout."""
    return [*_encoder_rules(config), *_decoder_rules(config), *_head_rules(config)]


def _block_rules(config: PyramidConfig, block: str, ours: str, convolution: str) -> list[_Rule]:
    """Names inside one block: sampling step and transformer layers."""
    step = rf"{block}\.convs_0\.0"
    layer, layer_ours = rf"{block}\.trans_\d+\.(\d+)\.trans_block", rf"{ours}.layers.\2"
    second = "window_qkv" if config.share_qkv else "global_qkv"
    dense = convolution.startswith("patch")
    norm = r"\2" if "invs" not in convolution else "output_norm"
    rules: list[_Rule] = [
        (
            rf"{step}\.global_input_norm\.(\w+)",
            None if config.token_strategy == "kernel" else rf"{ours}.{{}}.tokens.norm.\2",
            _SAME,
        ),
        (rf"{step}\.(?:identity|g)_proj\.(\w+)", rf"{ours}.{{}}.tokens.projection.\2", _SAME),
        (rf"{step}\.conv_block\.(norm|input_norm|output_norm)\.(\w+)", rf"{ours}.{{}}.operator.{norm}.\3", _SAME),
        (rf"{step}\.conv_block\.(?:pwconv|conv)\.(\w+)", rf"{ours}.{{}}.operator.linear.\2", _SAME),
        (
            rf"{step}\.conv_block\.dwconv\.weight",
            rf"{ours}.{{}}.operator.convolution.{'spconv.' if dense else ''}weight",
            _DENSE if dense else _DEPTHWISE,
        ),
        (
            rf"{step}\.conv_block\.upconv\.weight",
            rf"{ours}.{{}}.operator.convolution.weight",
            _INVERSE if dense else _DEPTHWISE,
        ),
        (rf"{step}\.conv_block\.(?:dw|up)conv\.bias", rf"{ours}.{{}}.operator.convolution.bias", _SAME),
    ]
    side = "up" if ours.startswith("decoder") else "down"
    named: list[_Rule] = [
        (pattern, None if name is None else name.format(side), layout) for pattern, name, layout in rules
    ]
    named += [
        (rf"{layer}\.table_RPB\.adjustment_tables", rf"{layer_ours}.positions.table", _SAME),
        (rf"{layer}\.pos_encoder\.slopes", None, _SAME),
        (rf"{layer}\.fc_out\.(\w+)", rf"{layer_ours}.output.\3", _SAME),
        (rf"{layer}\.ffn\.(\d+)\.(\w+)", rf"{layer_ours}.feed_forward.\3.\4", _SAME),
        (rf"{layer}\.norm1\.(\w+)", rf"{layer_ours}.attention_norm.\3", _SAME),
        (rf"{layer}\.norm2\.(\w+)", rf"{layer_ours}.feed_forward_norm.\3", _SAME),
    ]
    for position, letter in enumerate("qkv"):
        named.append((rf"{layer}\.{letter}1\.(\w+)", rf"{layer_ours}.window_qkv.{position}.\3", _SAME))
        named.append((rf"{layer}\.{letter}2\.(\w+)", rf"{layer_ours}.{second}.{position}.\3", _SAME))
    return named


def _encoder_rules(config: PyramidConfig) -> list[_Rule]:
    first = r"encoder\.blocks\.0\.modules_dict\.convs_0\.0"
    last_linear = "0" if config.input_activation is None else "3"
    if config.input_activation is None and config.input_dropout_first:
        last_linear = "1"
    rules: list[_Rule] = [
        (rf"{first}\.conv_block\.linear\.{last_linear}\.(\w+)", r"encoder.input_projection.linear.\1", _SAME),
        (rf"{first}\.conv_block\.linear\.0\.(\w+)", r"encoder.input_projection.hidden.0.\1", _SAME),
        (rf"{first}\.conv_block\.prenorm\.(\w+)", r"encoder.input_projection.norm.\1", _SAME),
        (rf"{first}\.(?:identity|g)_proj\.(\w+)", r"encoder.token_transition.projection.\1", _SAME),
        (rf"{first}\.global_input_norm\.(\w+)", None, _SAME),
        (r"encoder\.learnable_tokens\.(\d+)", r"encoder.tokens.learned.\1", _TOKEN),
        (r"encoder\.fixed_tokens", "encoder.tokens.fixed", _SAME),
    ]
    block = r"encoder\.blocks\.(\d+)\.modules_dict"
    return rules + _block_rules(config, block, r"encoder.stages.\1", config.down)


def _decoder_rules(config: PyramidConfig) -> list[_Rule]:
    if not isinstance(config, SpanUnetConfig):
        return []
    last = len(config.depths()[1])
    final = rf"decoder\.blocks\.{last}\.modules_dict\.convs_0\.0"
    block = r"decoder\.blocks\.(\d+)\.modules_dict"
    rules: list[_Rule] = [
        (rf"{final}\.conv_block\.linear\.1\.(\w+)", r"output.\1", _SAME),
        (rf"{final}\.(?:identity|g)_proj\.(\w+)", None, _SAME),
        (rf"{final}\.global_input_norm\.(\w+)", None, _SAME),
        (rf"{block}\.convs_[12]\.0\.conv_block\.linear\.0\.(\w+)", r"decoder.stages.\1.fuse.\2", _SAME),
        (rf"{block}\.convs_[12]\.0\.(?:identity|g)_proj\.(\w+)", r"decoder.stages.\1.fuse_tokens.projection.\2", _SAME),
    ]
    return rules + _block_rules(config, block, r"decoder.stages.\1", config.up)


def _head_rules(config: PyramidConfig) -> list[_Rule]:
    if not isinstance(config, SpanMilConfig):
        return []
    linear = {"concat": "2", "addition": "2"}.get(config.head, "1")
    rules: list[_Rule] = [
        (r"aggregator\.module\.norm\.(\w+)", r"head.readout.norm.\1", _SAME),
        (r"aggregator\.module\.fc\.1\.(\w+)", r"head.readout.linear.\1", _SAME),
        (rf"aggregator\.module\.{linear}\.(\w+)", r"head.readout.linear.\1", _SAME),
        (r"aggregator\.module\.0\.(\w+)", r"head.readout.norm.\1", _SAME),
        (r"aggregator\.scale_logits", "head.stage_offset", _SAME),
        (r"aggregator\.context_alpha", "head.gate_offset", _SAME),
        (r"aggregator\.scale_router\.(\w+)", r"head.stage_score.\1", _SAME),
        (r"aggregator\.context_router\.(\w+)", r"head.gate.\1", _SAME),
        (r"aggregator\.aggregators\.(\d+)\.attention_mechanism\.0\.(\w+)", r"head.pooling.\1.hidden.\2", _SAME),
        (r"aggregator\.aggregators\.(\d+)\.attention_mechanism\.[23]\.(\w+)", r"head.pooling.\1.score.\2", _SAME),
    ]
    selected = {
        r"aggregator\.norm\.(\w+)": ("head.readout.norm", ("addition", "multiattn")),
        r"aggregator\.fc\.(\w+)": ("head.readout.linear", ("addition", "multiattn")),
        r"multi_aggregator\.fc\.1\.(\w+)": ("head.readout.linear", ("multi_addition",)),
        r"classifier_1\.1\.(\w+)": ("head.readout.linear", ("concat",)),
    }
    for pattern, (name, heads) in selected.items():
        rules.append((pattern, rf"{name}.\1" if config.head in heads else None, _SAME))
    return rules


def our_name(name: str, config: PyramidConfig) -> tuple[str | None, Layout]:
    """Our name of a parameter of the authors' code (None: left out) and the change of layout.

    Raises:
        CheckpointError: a name that no model of these settings has.
    """
    for pattern, ours, layout in official_names(config):
        match = re.fullmatch(pattern, name)
        if match:
            return (None if ours is None else match.expand(ours)), layout
    raise CheckpointError(
        f"{name!r} is not a parameter of the authors' SPAN with these settings; check that the configuration belongs "
        "to these weights"
    )


def convert_state_dict(official: Mapping[str, Tensor], config: PyramidConfig) -> dict[str, Tensor]:
    """A state dict of the authors' code as one of ours.

    Raises:
        CheckpointError: a name that no model of these settings has.
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in official.items():
        ours, layout = our_name(name, config)
        if ours is not None:
            converted[ours] = layout.ours(tensor).contiguous()
    return converted


def config_from_official(official: Mapping[str, Any]) -> SpanMilConfig | SpanUnetConfig:
    """Our settings for a configuration of the authors' code (its resolved hydra keys).

    Raises:
        ConfigError: a key is missing, or a value has no counterpart.
    """
    try:
        model = official["model"]
        projection = model["input_projection"]
        shared: dict[str, Any] = {
            "stages": str(model["slide_configs"]),
            "embed_dim_div": model["embed_dim_div"],
            "channel_factor": model["channel_factor"],
            "input_norm": projection["prenorm"],
            "input_bias": projection["bias"],
            "input_activation": _activation(projection["activation"]),
            "input_mlp_ratio": float(projection["mlp_ratio"]),
            "input_dropout_first": projection["drop_first"],
            "attention": model["trans_type"],
            "positions": model["pos_emb"],
            "position_std": float(model["pos_std"]),
            "window_size": model["window_size"],
            "share_qkv": model["share_qkv"],
            "ff_ratio": float(model["ff_ratio"]),
            "activation": _activation(model["enc_act"]) or "gelu",
            "down": model["econvs_type"],
            "kernel_size": model["kernel_size"],
            "stride": model["stride"],
            "dilation": model["dilation"],
            "sampling_bias": model["conv_bias"],
            "norm": model["conv_norm_position"],
            "edge_mode": model["edge_mode"],
            "edge_eps": float(model["edge_eps"]),
            "tokens": [str(kind) for kind in model["token_init_types"]],
            "token_strategy": model["global_strategy"],
            "dropout_input": float(projection["dropout"]),
            "dropout_attention": float(max(model["attn_drop"], model["proj_drop"])),
            "drop_path": float(model["drop_path"]),
        }
        if "-" in shared["stages"]:
            return SpanUnetConfig(
                **shared,
                up=model["dconvs_type"],
                connection=str(model["connection"] or "none").lower(),  # pyright: ignore[reportArgumentType]
                skip_order="after_attention" if model["skip_first"] == 1 else "before_attention",
                decoder_attention=model["dtrans_type"],
            )
        survival = official.get("survival")
        head = official["classification"] if survival is None else survival
        return SpanMilConfig(
            **shared,
            head=head["aggr_method"] if survival is None else head["aggregation"],
            head_norm=survival is None and bool(head.get("head_norm", False)),
            head_activation=_activation(head["head_act"]) or "tanh",
            head_divisor=head.get("head_div", 4),
            dropout_head=float(head["cls_drop"]),
        )
    except KeyError as error:
        raise ConfigError(
            f"the authors' configuration lacks the key {error}; save it with all defaults resolved"
        ) from error


def _activation(name: str | None) -> Any:
    if name is None:
        return None
    if name.lower() not in _ACTIVATIONS:
        raise ConfigError(f"activation {name!r} has no counterpart, expected one of {sorted(_ACTIVATIONS)}")
    return _ACTIVATIONS[name.lower()]
