"""Modules from settings: the parts SPAN-MIL and SPAN-UNet share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor, nn

from span_sparse.models.config import Activation, PyramidConfig
from span_sparse.nn import (
    AttentionMode,
    DownSampling,
    EncoderStage,
    GlobalTokens,
    InputProjection,
    LayerSettings,
    PyramidEncoder,
    SamplingSettings,
    TokenTransition,
    make_layer,
)
from span_sparse.sparse import Pyramid, ValidCoords, build_pyramid

Place = Int[Tensor, "tokens 3"] | ValidCoords | Pyramid
"""Where the patches of a batch lie: coordinates, valid ones, or the geometry that was built from them."""

ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def sampling_settings(config: PyramidConfig) -> SamplingSettings:
    """What all steps between levels have in common."""
    return SamplingSettings(
        kernel_size=config.kernel_size,
        stride=config.stride,
        dilation=config.dilation,
        bias=config.sampling_bias,
        norm=config.norm,
        edge_mode=config.edge_mode,
        edge_eps=config.edge_eps,
        token_strategy=config.token_strategy,
    )


def make_layers(config: PyramidConfig, depth: int, width: int, mode: AttentionMode) -> list[nn.Module]:
    """The transformer layers of one stage."""
    settings = LayerSettings(
        mode=mode,
        positions=config.positions,
        head_channels=config.head_channels,
        window_size=config.window_size,
        ff_ratio=config.ff_ratio,
        activation=ACTIVATIONS[config.activation],
        dropout=config.dropout_attention,
        drop_path=config.drop_path,
        position_std=config.position_std,
        share_qkv=config.share_qkv,
    )
    return [make_layer(width, settings) for _ in range(depth)]


def make_encoder(config: PyramidConfig, num_features: int, *, locals_needed: bool) -> PyramidEncoder:
    """The encoder; `locals_needed` says whether anything reads the local tokens of its last stage.

    Raises:
        ConfigError: settings that do not fit together.
    """
    widths = config.widths(num_features)
    settings = sampling_settings(config)
    projection = InputProjection(
        num_features,
        widths[0],
        norm=config.input_norm,
        bias=config.input_bias,
        activation=None if config.input_activation is None else ACTIVATIONS[config.input_activation],
        mlp_ratio=config.input_mlp_ratio,
        dropout=config.dropout_input,
        dropout_first=config.input_dropout_first,
    )
    stages = [
        EncoderStage(
            DownSampling(widths[index - 1], width, config.down, settings) if index else None,
            make_layers(config, depth, width, config.attention),
            locals_needed=locals_needed or index < len(widths) - 1,
        )
        for index, (depth, width) in enumerate(zip(config.depths()[0], widths, strict=True))
    ]
    return PyramidEncoder(
        GlobalTokens(num_features, config.tokens),
        projection,
        TokenTransition(num_features, widths[0], config.token_strategy, norm=False),
        stages,
    )


def make_pyramid(config: PyramidConfig, place: Place, num_slides: int) -> Pyramid:
    """The geometry of a batch for these settings; one that is there already is returned as it is.

    Raises:
        BatchError: the coordinates are not a valid batch.
    """
    return build_pyramid(
        place,
        num_slides,
        num_levels=len(config.depths()[0]),
        window_size=config.window_size,
        kernel_size=config.kernel_size,
        stride=config.stride,
        dilation=config.dilation,
    )


def freeze_unreachable(network: nn.Module, num_features: int) -> None:
    """Freezes the parameters that cannot influence the output, so that DDP does not wait for their gradients.

    Some settings leave such parameters: a head that reads global tokens only never sees the coarsest level's window
    attention. Autograd itself says which they are, on a batch of one slide of two patches. A network built in inference
    mode has nothing to freeze.
    """
    if torch.is_inference_mode_enabled():
        return
    training = network.training
    network.eval()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        coords = torch.tensor([[0, 0, 0], [0, 3, 1]], dtype=torch.int32)
        network(torch.randn(2, num_features), coords, 1).sum().backward()
    network.train(training)
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
