"""Transformer layer of SPAN: context-aware refinement (CAR).

With `U = [X; G]`, local and global tokens of a slide, and `A` of LayerNorm(U):

    U'  = U + DropPath(Drop(A W_o + b_o)),      U'' = U' + DropPath(FFN(LayerNorm(U')))

| mode           | A of the locals                                     | A of the globals |
|----------------|-----------------------------------------------------|------------------|
| `long`         | windows₁(regular ∪ shifted) + read₂(globals)        | read₂(everything) |
| `long_noshift` | windows₁(regular) + read₂(globals)                  | read₂(everything) |
| `swin`         | windows₁(shifted) + windows₂(regular)               | 0                |
| `swin_global`  | windows₁(shifted) + windows₂(regular) + read₂(globals) | read₂(everything) |
| `tradswin`     | two such layers in a row, windows(shifted), then windows(regular) | 0  |

The index names the projections (q1, k1, v1) or (q2, k2, v2); every term is a softmax of its own; with `share_qkv` both
sets are one. Deviations from the authors' released code are listed in docs/deviations.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, repeat
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from span_sparse.nn.execution import current_execution
from span_sparse.nn.global_attention import GlobalExchange, Projections, global_attention, projected_attention
from span_sparse.nn.joint_layer import joint_layer, takes_joint_rows
from span_sparse.nn.positions import AlibiBias, RelativePositionBias, rotate
from span_sparse.nn.slides import to_rows
from span_sparse.nn.window_attention import Reach, packed_attention, window_attention
from span_sparse.sparse import Level

AttentionMode = Literal["long", "long_noshift", "swin", "swin_global", "tradswin"]
Positions = Literal["rpb", "alibi", "rope", "none"]
_WritesGlobals = ("long", "long_noshift", "swin_global")


def writes_globals(mode: AttentionMode) -> bool:
    """Whether the global tokens learn anything about the slide's patches in this mode."""
    return mode in _WritesGlobals


@dataclass(frozen=True, slots=True)
class LayerSettings:
    """What all layers of a network have in common.

    Attributes:
        mode: which attentions, see the module's docstring.
        positions: how positions enter.
        head_channels: width of a head; must divide the width of every stage.
        window_size: `w`; windows span `2w × 2w` cells.
        ff_ratio: width of the feed-forward network over the width of the tokens.
        activation: makes the activation of the feed-forward network.
        dropout: rate after the output projection and in the feed-forward network.
        drop_path: rate at which a slide skips a residual branch.
        position_std: initial spread of the relative position bias.
        share_qkv: whether both attentions use the first one's projections.
    """

    mode: AttentionMode
    positions: Positions
    head_channels: int
    window_size: int
    ff_ratio: float
    activation: Callable[[], nn.Module]
    dropout: float
    drop_path: float
    position_std: float
    share_qkv: bool


class LayerOutput(NamedTuple):
    """Tokens after a layer.

    Attributes:
        local_tokens: rows ordered as the level's sites.
        global_tokens: of every slide.
        attention: weight every local had for each global token and head; None where globals read nothing.
    """

    local_tokens: Float[Tensor, "tokens channels"]
    global_tokens: Float[Tensor, "slides globals channels"]
    attention: Float[Tensor, "globals heads tokens"] | None


def _position_module(settings: LayerSettings, num_heads: int) -> nn.Module | None:
    if settings.positions == "rpb":
        return RelativePositionBias(num_heads, settings.window_size, settings.position_std)
    if settings.positions == "alibi":
        return AlibiBias(num_heads, settings.window_size)
    return None


def _projections(channels: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(channels, channels) for _ in range(3))


class TransformerLayer(nn.Module):
    """One layer of every mode but `tradswin`.

    Args:
        channels: width of the tokens.
        settings: what all layers have in common.
        reach: attend to these windows only, with no second attention; for the halves of `tradswin`.
        positions: a position module to share with another layer.
    """

    def __init__(
        self,
        channels: int,
        settings: LayerSettings,
        *,
        reach: Reach | None = None,
        positions: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = channels // settings.head_channels
        self.mode: AttentionMode = settings.mode
        self.reach: Reach | None = reach
        self.rotary = settings.positions == "rope"
        self.drop_path = settings.drop_path
        self.attention_norm = nn.LayerNorm(channels)
        self.window_qkv = _projections(channels)
        self.global_qkv = None if settings.share_qkv or reach is not None else _projections(channels)
        self.positions = _position_module(settings, self.num_heads) if positions is None else positions
        self.output = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(settings.dropout)
        self.feed_forward_norm = nn.LayerNorm(channels)
        hidden = int(channels * settings.ff_ratio)
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, hidden),
            settings.activation(),
            nn.Dropout(settings.dropout),
            nn.Linear(hidden, channels),
            nn.Dropout(settings.dropout),
        )

    def forward(
        self,
        local_tokens: Float[Tensor, "tokens channels"],
        global_tokens: Float[Tensor, "slides globals channels"],
        level: Level,
        *,
        locals_needed: bool = True,
    ) -> LayerOutput:
        """Refines the tokens of a level.

        Args:
            local_tokens: rows ordered as `level.sites`.
            global_tokens: the global tokens of every slide.
            level: sites and windows.
            locals_needed: False when nothing after this layer reads the locals: they are returned unchanged and their
                part of the work, which could not reach the output, is left out.
        """
        if takes_joint_rows(self, local_tokens):
            return joint_layer(self, local_tokens, global_tokens, level, locals_needed=locals_needed)
        normed, normed_global = self.attention_norm(local_tokens), self.attention_norm(global_tokens)
        exchange = self.exchange(normed, normed_global, level, locals_needed)
        skip = [self._kept_slides(level.sites.num_slides, normed) for _ in range(2)]
        for_globals = global_tokens.new_zeros(global_tokens.shape) if exchange is None else exchange.for_globals
        global_tokens = self._residual(global_tokens, for_globals, [_per_slide(kept) for kept in skip])
        attention = None if exchange is None else exchange.weights
        if not locals_needed:
            return LayerOutput(local_tokens, global_tokens, attention)
        attended = self._windows(normed, level)
        del normed
        if exchange is not None and exchange.for_locals is not None:
            whole = len(exchange.for_locals) == len(attended)
            attended = attended + (exchange.for_locals if whole else to_rows(exchange.for_locals, level.sites))
        local_tokens = self._residual(local_tokens, attended, [_per_token(kept, level) for kept in skip])
        return LayerOutput(local_tokens, global_tokens, attention)

    def _window_sets(self) -> list[tuple[nn.ModuleList, Reach]]:
        """The window attentions of this mode: projections and windows of each."""
        if self.reach is not None:
            return [(self.window_qkv, self.reach)]
        if self.mode in ("long", "long_noshift"):
            return [(self.window_qkv, "union" if self.mode == "long" else "regular")]
        return [(self.window_qkv, "shifted"), (self._second(), "regular")]

    def _windows(self, normed: Tensor, level: Level) -> Tensor:
        """What the locals read in their windows, heads concatenated, some heads after the other."""
        parts = [self._attend(normed, qkv, level, reach) for qkv, reach in self._window_sets()]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def _attend(self, normed: Tensor, qkv: nn.ModuleList, level: Level, reach: Reach) -> Tensor:
        num_groups = 1
        if not torch.is_grad_enabled():
            num_groups = min(current_execution(normed.device).head_groups, self.num_heads)
        bias = None if self.positions is None else self.positions(normed.dtype)
        if num_groups == 1:
            return self._attend_with(range(self.num_heads), normed, qkv, bias, level, reach)
        bounds = [group * self.num_heads // num_groups for group in range(num_groups + 1)]
        parts = [range(first, last) for first, last in pairwise(bounds)]
        return torch.cat([self._attend_with(heads, normed, qkv, bias, level, reach) for heads in parts], dim=1)

    def window_products(self, normed: Tensor, level: Level) -> list[Float[Tensor, "tokens 3 heads head_channels"]]:
        """Queries, keys and values of every window attention, each one product."""
        products = []
        for qkv, _ in self._window_sets():
            weight, offset = (torch.cat([getattr(linear, name) for linear in qkv]) for name in ("weight", "bias"))
            packed = F.linear(normed, weight, offset).unflatten(-1, (3, self.num_heads, -1))
            if self.rotary:
                q, k, v = packed.unbind(1)
                places = level.sites.coords[:, 1:]
                packed = torch.stack([rotate(q, places), rotate(k, places), v], dim=1)
            products.append(packed)
        return products

    def attend(self, products: list[Float[Tensor, "tokens 3 heads head_channels"]], level: Level) -> Tensor:
        """What the locals read in their windows, heads concatenated, from `window_products`."""
        bias = None if self.positions is None else self.positions(products[0].dtype)
        attended = None
        for packed, (_, reach) in zip(products, self._window_sets(), strict=True):
            read = packed_attention(packed, bias, level.windows, reach).flatten(1)
            attended = read if attended is None else attended + read
        assert attended is not None
        return attended

    def _attend_with(
        self, heads: range, normed: Tensor, qkv: nn.ModuleList, bias: Tensor | None, level: Level, reach: Reach
    ) -> Tensor:
        """What some of the heads read, `[tokens, heads · head_channels]`."""
        q, k, v = (_of_heads(linear, normed, heads, self.num_heads) for linear in qkv)
        if self.rotary:
            places = level.sites.coords[:, 1:]
            q, k = rotate(q, places), rotate(k, places)
        bias = None if bias is None else bias[heads.start : heads.stop]
        return window_attention(q, k, v, bias, level.windows, reach).flatten(1)

    def exchange(self, normed: Tensor, normed_global: Tensor, level: Level, read: bool) -> GlobalExchange | None:
        """The exchange with the global tokens, where this mode has one."""
        if self.reach is not None or not writes_globals(self.mode):
            return None
        projections = Projections(*self._second())  # pyright: ignore[reportArgumentType]
        sites = level.sites
        if self.rotary:
            places = level.sites.coords[:, 1:]
            return projected_attention(normed, normed_global, projections, self.num_heads, sites, places)
        return global_attention(normed, normed_global, projections, self.num_heads, sites, read_by_locals=read)

    def _second(self) -> nn.ModuleList:
        return self.window_qkv if self.global_qkv is None else self.global_qkv

    def _residual(self, tokens: Tensor, attended: Tensor, kept: list[Tensor | None]) -> Tensor:
        """Both residual branches, each scaled by what DropPath keeps."""
        rows_at_once = current_execution(tokens.device).rows_at_once
        if torch.is_grad_enabled() or len(tokens) <= rows_at_once:  # hidden units are saved anyway
            return self._residual_rows(tokens, attended, *kept)
        columns = [tokens, attended, *kept]
        blocks = zip(*(repeat(None) if rows is None else rows.split(rows_at_once) for rows in columns), strict=False)
        return torch.cat([self._residual_rows(*block) for block in blocks])

    def _residual_rows(
        self, tokens: Tensor, attended: Tensor, attention: Tensor | None, feed_forward: Tensor | None
    ) -> Tensor:
        tokens = tokens + _scaled(self.dropout(self.output(attended)), attention)
        return tokens + _scaled(self.feed_forward(self.feed_forward_norm(tokens)), feed_forward)

    def _kept_slides(self, num_slides: int, like: Tensor) -> Float[Tensor, " slides"] | None:
        """DropPath: one factor a slide, 0 or `1 / (1 − rate)`; None when nothing is dropped."""
        if not self.training or self.drop_path == 0:
            return None
        return like.new_empty(num_slides).bernoulli_(1 - self.drop_path) / (1 - self.drop_path)


class TradSwinLayer(nn.Module):
    """Mode `tradswin`: shifted windows, then regular windows, each with projections and feed-forward of its own."""

    def __init__(self, channels: int, settings: LayerSettings) -> None:
        super().__init__()
        self.shifted = TransformerLayer(channels, settings, reach="shifted")
        self.regular = TransformerLayer(channels, settings, reach="regular", positions=self.shifted.positions)

    def forward(
        self,
        local_tokens: Float[Tensor, "tokens channels"],
        global_tokens: Float[Tensor, "slides globals channels"],
        level: Level,
        *,
        locals_needed: bool = True,
    ) -> LayerOutput:
        """Refines the tokens of a level; see `TransformerLayer.forward`."""
        local_tokens, global_tokens, _ = self.shifted(local_tokens, global_tokens, level, locals_needed=locals_needed)
        return self.regular(local_tokens, global_tokens, level, locals_needed=locals_needed)


def make_layer(channels: int, settings: LayerSettings) -> TransformerLayer | TradSwinLayer:
    """A layer of the settings' mode."""
    return TradSwinLayer(channels, settings) if settings.mode == "tradswin" else TransformerLayer(channels, settings)


def _of_heads(linear: nn.Module, rows: Tensor, heads: range, num_heads: int) -> Tensor:
    """`[tokens, heads, head_channels]` of a projection, computed for some heads only."""
    if len(heads) == num_heads:
        return linear(rows).unflatten(-1, (num_heads, -1))
    assert isinstance(linear, nn.Linear)
    weight, bias = linear.weight.unflatten(0, (num_heads, -1)), linear.bias.unflatten(0, (num_heads, -1))
    part = slice(heads.start, heads.stop)
    return F.linear(rows, weight[part].flatten(0, 1), bias[part].flatten()).unflatten(-1, (len(heads), -1))


def _per_slide(kept: Tensor | None) -> Tensor | None:
    return None if kept is None else kept[:, None, None]


def _per_token(kept: Tensor | None, level: Level) -> Tensor | None:
    return None if kept is None else kept[level.sites.coords[:, 0].long()].unsqueeze(1)


def _scaled(branch: Tensor, kept: Tensor | None) -> Tensor:
    return branch if kept is None else branch * kept
