"""What does one transformer layer of SPAN compute? Context-aware refinement (CAR), mode `long`.

With `U = [X; G]`, local and global tokens of a slide:

    A1_i = Σ_{j ∈ N(i)} softmax_j(q1_i·k1_j/√d + B(p_j − p_i)) v1_j      locals, both windows (0 for globals)
    A2_i = Σ_g softmax_g(q2_i·k2_g/√d) v2_g                              locals read the globals
    A2_g = Σ_u softmax_u(q2_g·k2_u/√d) v2_u                              globals read everything
    U'   = U + DropPath(Drop((A1 + A2) W_o + b_o)),      A of LayerNorm(U)
    U''  = U' + DropPath(FFN(LayerNorm(U')))

Deviations from the authors' released code: no sentinel tokens, the shifted window is always used, every local token
attends to itself and takes part in the global exchange.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from span_sparse.nn.global_attention import Projections, global_attention
from span_sparse.nn.positions import RelativePositionBias
from span_sparse.nn.window_attention import union_window_attention
from span_sparse.sparse import Level


class TransformerLayer(nn.Module):
    """One layer of window attention, global exchange and feed-forward network.

    Args:
        channels: width of the tokens.
        num_heads: attention heads; must divide `channels`.
        window_size: `w`; windows span `2w × 2w` cells.
        ff_ratio: width of the feed-forward network over `channels`.
        activation: makes the activation module of the feed-forward network.
        dropout: rate after the output projection and in the feed-forward network.
        drop_path: rate at which a slide skips a residual branch.
        position_std: initial spread of the relative position bias.
        share_qkv: the second attention uses the first one's projections.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        *,
        window_size: int,
        ff_ratio: float,
        activation: Callable[[], nn.Module],
        dropout: float,
        drop_path: float,
        position_std: float,
        share_qkv: bool,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(channels)
        self.window_qkv = nn.ModuleList(nn.Linear(channels, channels) for _ in range(3))
        self.global_qkv = None if share_qkv else nn.ModuleList(nn.Linear(channels, channels) for _ in range(3))
        self.positions = RelativePositionBias(num_heads, window_size, position_std)
        self.output = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)
        self.feed_forward_norm = nn.LayerNorm(channels)
        hidden = int(channels * ff_ratio)
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, hidden),
            activation(),
            nn.Dropout(dropout),
            nn.Linear(hidden, channels),
            nn.Dropout(dropout),
        )
        self.drop_path = drop_path

    def parameters_of_locals(self) -> list[nn.Parameter]:
        """The parameters that only the window attention of local tokens reads."""
        modules = [self.positions] if self.global_qkv is None else [self.positions, self.window_qkv]
        return [parameter for module in modules for parameter in module.parameters()]

    def forward(
        self,
        local_tokens: Float[Tensor, "tokens channels"],
        global_tokens: Float[Tensor, "slides globals channels"],
        level: Level,
        *,
        locals_needed: bool = True,
    ) -> tuple[Float[Tensor, "tokens channels"], Float[Tensor, "slides globals channels"]]:
        """Refines the tokens of a level.

        Args:
            local_tokens: rows ordered as `level.sites`.
            global_tokens: the global tokens of every slide.
            level: sites and windows.
            locals_needed: False when nothing after this layer reads the locals: they are returned unchanged and their
                part of the work, which could not reach the output, is left out.
        """
        sites = level.sites
        normed, normed_global = self.attention_norm(local_tokens), self.attention_norm(global_tokens)
        shared = self.window_qkv if self.global_qkv is None else self.global_qkv
        query, key, value = shared
        projections = Projections(query, key, value)  # pyright: ignore[reportArgumentType]
        from_globals, for_globals = global_attention(
            normed, normed_global, projections, self.num_heads, sites.counts, read_by_locals=locals_needed
        )
        skip = (self._kept_slides(sites.num_slides, normed), self._kept_slides(sites.num_slides, normed))
        global_tokens = self._residual(global_tokens, for_globals, [_per_slide(kept) for kept in skip])
        if from_globals is None:
            return local_tokens, global_tokens
        q, k, v = (linear(normed).unflatten(-1, (self.num_heads, -1)) for linear in self.window_qkv)
        attended = union_window_attention(q, k, v, self.positions(), level.windows).flatten(1) + from_globals
        return self._residual(local_tokens, attended, [_per_token(kept, level) for kept in skip]), global_tokens

    def _residual(self, tokens: Tensor, attended: Tensor, kept: list[Tensor | None]) -> Tensor:
        """Both residual branches, each scaled by what DropPath keeps."""
        attention, feed_forward = kept
        tokens = tokens + _scaled(self.dropout(self.output(attended)), attention)
        return tokens + _scaled(self.feed_forward(self.feed_forward_norm(tokens)), feed_forward)

    def _kept_slides(self, num_slides: int, like: Tensor) -> Float[Tensor, " slides"] | None:
        """DropPath: one factor a slide, 0 or `1 / (1 − rate)`; None when nothing is dropped."""
        if not self.training or self.drop_path == 0:
            return None
        return like.new_empty(num_slides).bernoulli_(1 - self.drop_path) / (1 - self.drop_path)


def _per_slide(kept: Tensor | None) -> Tensor | None:
    return None if kept is None else kept[:, None, None]


def _per_token(kept: Tensor | None, level: Level) -> Tensor | None:
    return None if kept is None else kept[level.sites.coords[:, 0].long()].unsqueeze(1)


def _scaled(branch: Tensor, kept: Tensor | None) -> Tensor:
    return branch if kept is None else branch * kept
