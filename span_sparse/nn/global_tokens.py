"""Initial global tokens of a slide.

Each token of the list is one row in input space, before any projection:

    max, mean, std   over the slide's own patches (std unbiased; zero for a slide of one patch)
    fixσ             a random row, drawn once when the model is built, e.g. `fix1e-4`
    lrnσ             the same, learned
"""

from __future__ import annotations

import re

import torch
from jaxtyping import Float
from torch import Tensor, nn

from span_sparse.errors import ConfigError
from span_sparse.nn.slides import slide_max, slide_mean, to_rows
from span_sparse.sparse import SparseSites

_SEEDED = re.compile(r"(fix|lrn)(\d+(?:\.\d*)?(?:e[+-]?\d+)?)")
_STATISTICS = ("max", "mean", "std")


def reads_patches(kinds: list[str]) -> bool:
    """Whether the first token, the one heads read, starts from the slide's own patches."""
    return kinds[:1] != [] and kinds[0] in _STATISTICS


class GlobalTokens(nn.Module):
    """The initial global tokens of every slide.

    Args:
        channels: width of the input features.
        kinds: one entry a token, see the module's docstring.

    Raises:
        ConfigError: no token, or an unknown kind.
    """

    fixed: Tensor | None

    def __init__(self, channels: int, kinds: list[str]) -> None:
        super().__init__()
        if not kinds:
            raise ConfigError("tokens: at least one global token is needed, for example ['lrn1e-4']")
        self.kinds = tuple(kinds)
        self.reads_features = any(kind in _STATISTICS for kind in kinds)
        self.learned = nn.ParameterList()
        fixed: list[Tensor] = []
        for kind in kinds:
            seeded = _SEEDED.fullmatch(kind)
            if seeded is None and kind not in _STATISTICS:
                raise ConfigError(
                    f"tokens: unknown kind {kind!r}; expected max, mean, std, or fix/lrn followed by a standard "
                    "deviation such as lrn1e-4"
                )
            if seeded is not None:
                row = torch.randn(channels) * float(seeded[2])
                if seeded[1] == "lrn":
                    self.learned.append(nn.Parameter(row))
                else:
                    fixed.append(row)
        self.register_buffer("fixed", torch.stack(fixed) if fixed else None)

    def forward(
        self, features: Float[Tensor, "tokens channels"], sites: SparseSites
    ) -> Float[Tensor, "slides globals channels"]:
        """The tokens, in the order of `kinds`; rows of `features` ordered as `sites`."""
        learned, fixed = iter(self.learned), iter(() if self.fixed is None else self.fixed)
        tokens: list[Tensor] = []
        for kind in self.kinds:
            if kind in _STATISTICS:
                tokens.append(_statistic(kind, features, sites))
            else:
                row = next(learned if kind.startswith("lrn") else fixed)
                tokens.append(row.expand(sites.num_slides, -1))
        return torch.stack(tokens, dim=1)


def _statistic(
    kind: str, rows: Float[Tensor, "tokens channels"], sites: SparseSites
) -> Float[Tensor, "slides channels"]:
    if kind == "max":
        return slide_max(rows, sites)
    mean = slide_mean(rows, sites)
    if kind == "mean":
        return mean
    variance = slide_mean((rows - to_rows(mean, sites)).square(), sites)
    counts = sites.offsets.diff().unsqueeze(1).to(variance.dtype)
    variance = variance * (counts / (counts - 1).clamp(min=1))  # unbiased; of one patch zero
    varies = variance > 0  # the root has no slope at zero
    return torch.where(varies, variance, 1).sqrt() * varies
