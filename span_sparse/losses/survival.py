"""What does a wrong prognosis cost? Discrete-time hazards, and Cox.

Discrete time (Zadeh and Schmid, IEEE TPAMI 2021): time is cut into bins, `h_t = σ(logit_t)` is the hazard of bin t and
`S_t = Π_{u ≤ t} (1 − h_u)` the survival. With the bin y of the event or of the last follow-up and c = 1 where censored:

    L = −(1 − c)·[log S_{y−1} + log h_y] − (1 − α)·c·log S_y

`risk = −Σ_t S_t` orders patients. Products are taken as sums of logarithms, so that long follow-up does not underflow.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

_EPS = 1e-7


class DiscreteSurvival(NamedTuple):
    """What hazards' logits mean.

    Attributes:
        hazards: `h_t`.
        survival: `S_t`.
        risk: `−Σ_t S_t`, between −bins and 0; higher is worse.
    """

    hazards: Float[Tensor, "slides bins"]
    survival: Float[Tensor, "slides bins"]
    risk: Float[Tensor, " slides"]


def discrete_survival(logits: Float[Tensor, "slides bins"]) -> DiscreteSurvival:
    """Hazards, survival and risk of every slide."""
    survival = F.logsigmoid(-logits).cumsum(dim=1).exp()
    return DiscreteSurvival(logits.sigmoid(), survival, -survival.sum(dim=1))


def discrete_time_nll(
    logits: Float[Tensor, "slides bins"],
    bins: Int64[Tensor, " slides"],
    censored: Bool[Tensor, " slides"],
    *,
    alpha: float = 0.0,
) -> Float[Tensor, " slides"]:
    """Negative log-likelihood of every slide.

    Args:
        logits: of the hazards.
        bins: bin of the event or of the last follow-up.
        censored: True where no event was seen.
        alpha: 0 counts censored slides in full, 1 ignores them.
    """
    floor = math.log(_EPS)
    log_survival = F.logsigmoid(-logits).cumsum(dim=1).clamp(min=floor)
    before = F.pad(log_survival, (1, 0))[:, :-1].gather(1, bins.unsqueeze(1)).squeeze(1)
    after = log_survival.gather(1, bins.unsqueeze(1)).squeeze(1)
    log_hazard = F.logsigmoid(logits).clamp(min=floor).gather(1, bins.unsqueeze(1)).squeeze(1)
    return torch.where(censored, -(1 - alpha) * after, -(before + log_hazard))


def cox_partial_likelihood(
    risk: Float[Tensor, " slides"], time: Float[Tensor, " slides"], event: Bool[Tensor, " slides"]
) -> Float[Tensor, ""]:
    """Negative log partial likelihood, the mean over events (Cox 1972; ties after Breslow).

    Args:
        risk: log relative hazard; the higher the worse.
        time: of the event or of the last follow-up, any unit.
        event: True where the event was seen.

    Returns:
        Zero, attached to the graph, where no event was seen: then nothing can be compared.
    """
    order = time.argsort(descending=True, stable=True)
    ordered = time[order]
    at_risk = risk[order].logcumsumexp(dim=0)
    last_of_tie = torch.searchsorted(-ordered, -ordered, right=True) - 1  # everybody whose time is at least this one
    losses = (at_risk[last_of_tie] - risk[order])[event[order]]
    return losses.mean() if len(losses) else risk.sum() * 0
