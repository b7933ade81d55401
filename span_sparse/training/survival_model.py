"""How is survival learnt from slides? Discrete-time hazards, or Cox over accumulated risk sets.

* `nll`: time is cut into bins at the quantiles of the event times of the training cases, one case one vote; the network
  predicts the hazard of each bin (`losses/survival.py`). Works with one slide a step.
* `cox`: one relative hazard a slide. The partial likelihood compares patients, and a step holds few, so each step is
  compared with the last `risk_set_size` slides of all processes as well, whose risks are taken as they were then.

Cutting at quantiles of all slides, censored or of the test split, would leave bins without events, or let the test
split shape the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from span_sparse.datasets import SlideBatch, SurvivalTask
from span_sparse.datasets.slide_dataset import SlideItem
from span_sparse.errors import ConfigError
from span_sparse.losses import cox_partial_likelihood, discrete_survival, discrete_time_nll
from span_sparse.metrics import concordance_index
from span_sparse.models import (
    AttentionPoolingConfig,
    MeanPoolingConfig,
    NetworkConfig,
    SpanMilConfig,
    SpanSurvivalConfig,
)
from span_sparse.training.outcomes import Outcomes, by_case
from span_sparse.training.task_module import StepOutput, TaskModule


class SurvivalModel(TaskModule):
    """Risk of every slide; higher is worse. Figures are by case.

    Args:
        network: which network, with its settings; None for the survival preset.
        loss: see the module's docstring.
        num_bins: bins of `nll`.
        alpha: of `nll`; 0 counts censored slides in full, 1 ignores them.
        risk_set_size: earlier slides a step of `cox` is compared with.
        bin_edges: inner edges of the bins, in the unit of the table's times; taken from the training cases and kept in
            the checkpoint.
        settings: as in `TaskModule`.

    Raises:
        ConfigError: settings that cannot work.
    """

    task_type = SurvivalTask
    network_types: ClassVar = (SpanSurvivalConfig, SpanMilConfig, MeanPoolingConfig, AttentionPoolingConfig)
    taken_from_data = ("bin_edges",)
    past: Tensor

    def __init__(
        self,
        network: NetworkConfig | None = None,
        *,
        loss: Literal["nll", "cox"] = "nll",
        num_bins: int = 4,
        alpha: float = 0.0,
        risk_set_size: int = 128,
        bin_edges: list[float] | None = None,
        **settings: Any,
    ) -> None:
        if num_bins < 2 or risk_set_size < 0 or not 0 <= alpha <= 1:
            raise ConfigError(
                f"num_bins {num_bins} must be at least 2, risk_set_size {risk_set_size} not negative and alpha {alpha} "
                "between 0 and 1"
            )
        self.loss: Literal["nll", "cox"] = loss
        self.num_bins, self.alpha = num_bins, alpha
        own = {
            "loss": loss,
            "num_bins": num_bins,
            "alpha": alpha,
            "risk_set_size": risk_set_size,
            "bin_edges": bin_edges,
        }
        super().__init__(network, own=own, **settings)
        # (risk, time, event, index) of the last slides, oldest first; NaN before there are so many
        self.register_buffer("past", torch.full((risk_set_size if loss == "cox" else 0, 4), torch.nan))

    def num_outputs(self) -> int:
        """One logit a bin, or one risk."""
        return self.num_bins if self.loss == "nll" else 1

    def prepare(self, items: Sequence[SlideItem]) -> None:
        """Edges of the bins; see `TaskModule.prepare`."""
        if not items or self.loss == "cox" or self.own["bin_edges"] is not None:
            return
        time_of = {item.case_id: item.targets[0] for item in items if item.targets[1] == 1}
        edges = np.quantile(list(time_of.values()), np.arange(1, self.num_bins) / self.num_bins)
        if len(np.unique(edges)) < len(edges):
            raise ConfigError(
                f"num_bins {self.num_bins}: the {len(time_of)} training cases with an event have too few times "
                f"(edges {', '.join(f'{edge:g}' for edge in edges)}); choose fewer bins"
            )
        self.own["bin_edges"] = edges.tolist()

    def _batch_step(self, batch: SlideBatch) -> StepOutput:
        outputs = self(batch).float()
        assert batch.targets is not None
        time, event = batch.targets.unbind(dim=1)
        columns = {"time": time, "event": event}
        if self.loss == "cox":
            risk = outputs[:, 0]
            losses = self._cox(risk, time, event, batch.indices) if self.training else torch.full_like(risk, torch.nan)
            return StepOutput(losses, {**columns, "risk": risk})
        edges = time.new_tensor(self.own["bin_edges"])
        bins = torch.bucketize(time.nan_to_num(), edges, right=True)
        losses = discrete_time_nll(outputs, bins, event == 0, alpha=self.alpha)
        survival = discrete_survival(outputs)
        columns |= {"risk": survival.risk, "survival": survival.survival}
        return StepOutput(losses.masked_fill(time.isnan(), torch.nan), columns)

    def _cox(self, risk: Tensor, time: Tensor, event: Tensor, indices: Tensor) -> Tensor:
        """The partial likelihood of this step among the last slides, the same for each of the step's slides."""
        rows = torch.stack([risk, time, event, indices.to(risk.dtype)], dim=1)
        others = self.past[~self.past[:, 0].isnan() & ~torch.isin(self.past[:, 3], rows[:, 3])]
        joined = torch.cat([rows, others])
        loss = cox_partial_likelihood(joined[:, 0], joined[:, 1], joined[:, 2] == 1)
        latest = torch.cat([self.past, _of_all_processes(rows.detach())])
        self.past = latest[len(latest) - len(self.past) :]
        return loss.expand(len(risk))

    def figures(self, outcomes: Outcomes, case_ids: Sequence[str]) -> dict[str, float]:
        """Loss; Harrell's C by case, the risk of a case being the mean over its slides."""
        known = ~outcomes["time"].isnan()
        if not known.any():
            return {}
        cases = [case_id for case_id, is_known in zip(case_ids, known.tolist(), strict=True) if is_known]
        risk, time, event = (by_case(outcomes[name][known].double(), cases) for name in ("risk", "time", "event"))
        if self.loss == "cox":
            values = {"loss": cox_partial_likelihood(risk, time, event == 1).item()}
        else:
            values = {"loss": outcomes["loss"][known].mean().item()}
        c_index = concordance_index(time.numpy(), (event == 1).numpy(), risk.numpy())
        return values | ({"c_index": c_index} if c_index == c_index else {})

    def prediction_columns(self, outcomes: Outcomes) -> dict[str, list[Any]]:
        """`risk, time, event` (empty where unknown); for `nll` also `survival_<edge>`, the chance to outlive a bin."""
        columns: dict[str, list[Any]] = {"risk": outcomes["risk"].double().tolist()}
        for name in ("time", "event"):
            columns[name] = [None if value != value else value for value in outcomes[name].double().tolist()]
        for position, edge in enumerate(self.own["bin_edges"] or ()):
            columns[f"survival_{edge:g}"] = outcomes["survival"][:, position].double().tolist()
        return columns


def _of_all_processes(rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    shares: list[Tensor] = [rows] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, rows.cpu())  # some may have more than others
    return torch.cat(shares).to(rows.device)
