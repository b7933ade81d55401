"""Which networks are behind the names, and how is a vector read from each?

Vision transformers, ResNet and Swin are timm's. Written here is only what it does not have: the convolutional stem of
CTransPath and the attention pooling of CONCH. Their sub-modules are named as in the published weights,
so that these load without a single tensor left over. Phikon-v2 is published for transformers; its network is the same
vision transformer under other names, and a second library, whose own names change between versions, is not needed.

Functions that build take further keywords, which replace those of the published network: tests build small ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from span_sparse.extract.encoders.libraries import library

State = dict[str, Tensor]


def timm_model(name: str, *, gated_mlp: bool = False, **settings: Any) -> nn.Module:
    """A network of timm without its classifier.

    Args:
        name: timm's name of the architecture.
        gated_mlp: SwiGLU with SiLU in place of the plain MLP; what model cards pass as `mlp_layer` and `act_layer`.
        settings: further arguments of timm's constructor.

    Raises:
        ConfigError: timm is missing.
    """
    timm = library("timm")
    if gated_mlp:
        settings = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU} | settings
    if not settings.get("features_only"):
        settings = {"num_classes": 0} | settings
    return timm.create_model(name, pretrained=False, **settings)


def ctranspath(**settings: Any) -> nn.Module:
    """CTransPath (Wang et al. 2022): timm's Swin-T behind a convolutional stem.

    Raises:
        ConfigError: timm is missing.
    """
    # without timm's own initialisation, which in some releases asks the stem for a single weight
    fixed: dict[str, Any] = {"embed_layer": ConvolutionalStem, "weight_init": "skip"}
    return timm_model("swin_tiny_patch4_window7_224", **(fixed | settings))


class ConvolutionalStem(nn.Module):
    """Two convolutions of stride 2 in place of Swin's 4×4 patches (Wang et al. 2022, section 3.2).

    Args:
        img_size: edge of the input, or its height and width.
        patch_size: must be 4.
        in_chans: channels of the input.
        embed_dim: channels of the output, a multiple of 8.
        norm_layer: last layer, over channels.
        rest: arguments timm passes to its own patch embedding, without meaning here.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        norm_layer: type[nn.Module] | None = None,
        **rest: Any,
    ) -> None:
        super().__init__()
        assert patch_size == 4, patch_size
        assert embed_dim % 8 == 0, embed_dim
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid_size = (height // 4, width // 4)
        half, narrow = embed_dim // 4, embed_dim // 8
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, narrow, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(narrow),
            nn.ReLU(),
            nn.Conv2d(narrow, half, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, embed_dim, 1),
        )
        self.norm = norm_layer(embed_dim) if norm_layer is not None else nn.Identity()

    def forward(self, inputs: Float[Tensor, "patches 3 height width"]) -> Float[Tensor, "patches rows cols channels"]:
        """`[batch, 3, edge, edge]` to `[batch, edge/4, edge/4, embed_dim]`."""
        return self.norm(self.proj(inputs).permute(0, 2, 3, 1))


class Conch(nn.Module):
    """The image side of CONCH (Lu et al. 2024): a ViT-B/16 whose tokens one learned query attends to.

    Its vector is the pooled one before the projection into the space shared with text, as its authors advise for
    multiple instance learning.

    Args:
        dimension: of the vector.
        heads: of the pooling.
        settings: of timm's vision transformer.
    """

    def __init__(self, dimension: int = 512, heads: int = 8, **settings: Any) -> None:
        super().__init__()
        defaults: dict[str, Any] = {"img_size": 448}
        self.trunk = timm_model("vit_base_patch16_224", **(defaults | settings))
        width: int = self.trunk.num_features  # type: ignore[assignment]
        self.attn_pool_contrast = _MultiHeadPooling(dimension, width, heads)
        self.ln_contrast = nn.LayerNorm(dimension)

    def forward(self, inputs: Float[Tensor, "patches 3 height width"]) -> Float[Tensor, "patches channels"]:
        """`[batch, 3, 448, 448]` to `[batch, dimension]`."""
        return self.ln_contrast(self.attn_pool_contrast(self.trunk.forward_features(inputs)))  # type: ignore[operator]


class _MultiHeadPooling(nn.Module):
    """`MultiheadAttention(norm(query), norm(tokens))`, with the parameter names of CONCH."""

    def __init__(self, dimension: int, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, dimension))
        self.attn = nn.MultiheadAttention(dimension, heads, kdim=width, vdim=width, batch_first=True)
        self.ln_q, self.ln_k = nn.LayerNorm(dimension), nn.LayerNorm(width)

    def forward(self, tokens: Float[Tensor, "patches tokens width"]) -> Float[Tensor, "patches channels"]:
        query = self.ln_q(self.query).expand(len(tokens), -1, -1)  # (batch, 1, dimension)
        context = self.ln_k(tokens)
        return self.attn(query, context, context, need_weights=False)[0][:, 0]


def class_token(network: Any, inputs: Float[Tensor, "patches 3 height width"]) -> Float[Tensor, "patches channels"]:
    """The class token of a vision transformer of timm, after its last norm."""
    return network.forward_features(inputs)[:, 0]


def class_and_mean(network: Any, inputs: Float[Tensor, "patches 3 height width"]) -> Float[Tensor, "patches channels"]:
    """The class token, then the mean of the patch tokens; registers and the class token are not in the mean."""
    tokens = network.forward_features(inputs)
    return torch.cat([tokens[:, 0], tokens[:, network.num_prefix_tokens :].mean(dim=1)], dim=1)


def mean_of_map(network: Any, inputs: Float[Tensor, "patches 3 height width"]) -> Float[Tensor, "patches channels"]:
    """The mean over positions of the last feature map."""
    return network(inputs)[-1].mean(dim=(2, 3))


def as_it_is(network: Any, inputs: Float[Tensor, "patches 3 height width"]) -> Float[Tensor, "patches channels"]:
    """What the network returns."""
    return network(inputs)


def keep(state: State) -> State:
    """Weights that fit as they are."""
    return state


def without(*prefixes: str) -> Any:
    """Removes tensors the encoder has no use for, such as a classifier.

    Returns:
        A function from state to state.
    """

    def convert(state: State) -> State:
        return {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}

    return convert


def from_conch(state: State) -> State:
    """The image tower of CONCH's published weights, without the projection and the text side."""
    tower = _below(state, "visual.")
    return without("attn_pool_caption.", "ln_caption.", "proj_contrast", "head.")(tower)


_DINOV2_NAMES: Final = (
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.cls_token", "cls_token"),
    ("encoder.layer.", "blocks."),
    (".attention.output.dense.", ".attn.proj."),
    (".attention.o_proj.", ".attn.proj."),
    (".layer_scale1.lambda1", ".ls1.gamma"),
    (".layer_scale2.lambda1", ".ls2.gamma"),
    ("layernorm.", "norm."),
)
_DINOV2_QUERY: Final = re.compile(r"(.+\.attention\.)(attention\.query|q_proj)(\.\w+)")
_DINOV2_KEY_OR_VALUE: Final = re.compile(r"\.attention\.(attention\.(key|value)|[kv]_proj)\.")
_DINOV2_KEY_AND_VALUE: Final = {
    "attention.query": ("attention.key", "attention.value"),
    "q_proj": ("k_proj", "v_proj"),
}


def from_dinov2(state: State) -> State:
    """A DINOv2 of transformers (either generation of its names) under timm's names.

    timm has query, key and value in one matrix. The mask token is for training.
    """
    renamed: State = {}
    for name, tensor in without("embeddings.mask_token")(state).items():
        if found := _DINOV2_QUERY.fullmatch(name):
            before, kind, after = found.groups()
            parts = [tensor, *(state[f"{before}{other}{after}"] for other in _DINOV2_KEY_AND_VALUE[kind])]
            renamed[f"{_timm_name(before.removesuffix('attention.'))}attn.qkv{after}"] = torch.cat(parts)
        elif not _DINOV2_KEY_OR_VALUE.search(name):
            renamed[_timm_name(name)] = tensor
    return renamed


def _timm_name(name: str) -> str:
    for theirs, ours in _DINOV2_NAMES:
        name = name.replace(theirs, ours)
    return name


def from_ctranspath(state: State) -> State:
    """CTransPath's weights, saved by a Swin of 2022, under the names of timm's present one.

    A stage's down-sampling was the last step of the stage before, and tables that follow from the window size were
    saved with the weights.
    """
    renamed: State = {}
    for name, tensor in without("head.")(state).items():
        if name.endswith(("relative_position_index", "attn_mask")):
            continue
        parts = name.split(".")
        if parts[0] == "layers" and parts[2] == "downsample" and "layers.0.downsample.norm.weight" in state:
            parts[1] = str(int(parts[1]) + 1)
        renamed[".".join(parts)] = tensor
    return renamed


def _below(state: Mapping[str, Tensor], prefix: str) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
