"""Bins from training cases, the loss of each kind, risk sets that reach back, C by case."""

from __future__ import annotations

import lightning
import pytest
import torch

from span_sparse.datasets import SlideBatch, SurvivalTask
from span_sparse.datasets.slide_dataset import SlideItem
from span_sparse.errors import ConfigError
from span_sparse.grid import LatticeSpec
from span_sparse.losses import cox_partial_likelihood, discrete_time_nll
from span_sparse.models import SpanSurvivalConfig
from span_sparse.training import SurvivalModel
from span_sparse.training.checkpoint import load_model
from span_sparse.training.outcomes import Outcomes
from span_sparse.types import EncoderIdentity

ENCODER = EncoderIdentity("stain-texture", "1", "descriptor", 16, 32, 1.0, "float32")
TASK = SurvivalTask("months", "died").on(ENCODER, LatticeSpec(32, 1.0))
NETWORK = SpanSurvivalConfig(stages="11", head_channels=8, window_size=2)


def survival_model(**settings) -> SurvivalModel:
    return SurvivalModel(NETWORK, task=TASK.as_dict(), **settings)


def batch_of(*targets: tuple[float, float], first: int = 0) -> SlideBatch:
    """Slides of four patches each."""
    count = len(targets)
    slides = torch.arange(count, dtype=torch.int32).repeat_interleave(4)
    cells = torch.tensor([[0, 0], [0, 1], [1, 0], [2, 2]], dtype=torch.int32).repeat(count, 1)
    return SlideBatch(
        coords=torch.cat([slides.unsqueeze(1), cells], dim=1),
        features=torch.randn(4 * count, 16),
        labels=torch.full((count,), -1),
        indices=torch.arange(first, first + count),
        targets=torch.tensor(targets),
    )


def test_bins_are_quantiles_of_the_events_of_training_cases() -> None:
    """By hand: events at 2, 4, 6, 8 (case d has two slides); quartiles by linear interpolation."""
    items = [SlideItem("s", case, -1, (time, event)) for case, time, event in (
        ("a", 2.0, 1.0), ("b", 4.0, 1.0), ("c", 6.0, 1.0), ("d", 8.0, 1.0), ("d", 8.0, 1.0), ("e", 50.0, 0.0),
    )]  # fmt: skip
    model = survival_model()
    model.prepare(items)
    assert model.own["bin_edges"] == pytest.approx([3.5, 5.0, 6.5])
    with pytest.raises(ConfigError, match="num_bins 4: the 1 training cases with an event have too few times"):
        survival_model().prepare(items[:1])


def test_the_loss_is_that_of_the_bin_of_each_time() -> None:
    model = survival_model(bin_edges=[3.0, 5.0, 7.0], alpha=0.25).eval()
    batch = batch_of((2.0, 1.0), (3.0, 1.0), (6.9, 0.0), (90.0, 1.0), (float("nan"), float("nan")))
    step = model._batch_step(batch)
    known = discrete_time_nll(
        model(batch)[:4], torch.tensor([0, 1, 2, 3]), torch.tensor([False, False, True, False]), alpha=0.25
    )
    torch.testing.assert_close(step.losses[:4], known)
    assert step.losses[4].isnan()
    survival = torch.cumprod(1 - model(batch).sigmoid(), dim=1)
    torch.testing.assert_close(step.columns["risk"], -survival.sum(dim=1))


def test_risk_sets_reach_back_to_earlier_steps() -> None:
    model = survival_model(loss="cox", risk_set_size=3).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    first, second = batch_of((5.0, 1.0), (9.0, 0.0)), batch_of((4.0, 1.0), (7.0, 1.0), first=2)
    alone = model._batch_step(first).losses
    risks = model(first)[:, 0]
    expected = cox_partial_likelihood(risks, torch.tensor([5.0, 9.0]), torch.tensor([True, False]))
    torch.testing.assert_close(alone, expected.expand(2))
    together = model._batch_step(second).losses[0]
    joined = torch.cat([model(second)[:, 0], risks])
    times, events = torch.tensor([4.0, 7.0, 5.0, 9.0]), torch.tensor([True, True, True, False])
    torch.testing.assert_close(together, cox_partial_likelihood(joined, times, events))
    assert model.past[:, 3].tolist() == [1.0, 2.0, 3.0]  # the last three slides, oldest first
    again = model._batch_step(second).losses[0]  # its own earlier risks are not its competitors
    both = torch.cat([model(second)[:, 0], risks[1:]])
    expected = cox_partial_likelihood(both, torch.tensor([4.0, 7.0, 9.0]), torch.tensor([True, True, False]))
    torch.testing.assert_close(again, expected)


def test_c_is_by_case() -> None:
    """By hand: case a (risks 3 and 1, mean 2) died at 1, b (risk 4) at 2, c (risk 0) lived: pairs ab no, ac, bc yes."""
    columns = {
        "risk": torch.tensor([3.0, 1.0, 4.0, 0.0, 9.0]),
        "time": torch.tensor([1.0, 1.0, 2.0, 3.0, torch.nan]),
        "event": torch.tensor([1.0, 1.0, 1.0, 0.0, torch.nan]),
        "loss": torch.tensor([1.0, 2.0, 3.0, 6.0, torch.nan]),
    }
    model = survival_model(bin_edges=[1.0, 2.0, 3.0])
    figures = model.figures(Outcomes(torch.arange(5), columns), ["a", "a", "b", "c", "d"])
    assert figures == pytest.approx({"loss": 3.0, "c_index": 2 / 3})


def test_a_checkpoint_alone_restores_bins_risks_and_risk_set(tmp_path) -> None:
    trainer = lightning.Trainer(accelerator="cpu", default_root_dir=tmp_path, barebones=True)
    for loss in ("nll", "cox"):
        model = survival_model(loss=loss, bin_edges=[1.0, 2.0, 3.0] if loss == "nll" else None, risk_set_size=5)
        batch = batch_of((5.0, 1.0), (9.0, 0.0))
        model._batch_step(batch)
        trainer.strategy.connect(model)
        trainer.save_checkpoint(tmp_path / "c.ckpt")
        again = load_model(tmp_path / "c.ckpt")
        assert isinstance(again, SurvivalModel)
        assert again.own == model.own
        torch.testing.assert_close(again.past, model.past, equal_nan=True)
        ours, theirs = again.predict_step(batch), model.eval().predict_step(batch)
        assert torch.equal(ours["risk"], theirs["risk"])
        frame = again.prediction_columns(ours)
        assert list(frame) == [
            "risk",
            "time",
            "event",
            *["survival_1", "survival_2", "survival_3"][: 3 * (loss == "nll")],
        ]
