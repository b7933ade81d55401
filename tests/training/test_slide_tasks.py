"""Regression in the units of the table, several questions with gaps; both restored from a checkpoint alone."""

from __future__ import annotations

import lightning
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import pearsonr
from sklearn.metrics import r2_score, roc_auc_score

from span_sparse.datasets import MultiLabelTask, RegressionTask, SlideBatch
from span_sparse.datasets.slide_dataset import SlideItem
from span_sparse.errors import ConfigError
from span_sparse.grid import LatticeSpec
from span_sparse.models import MeanPoolingConfig
from span_sparse.training import MultiLabelClassifier, SlideRegressor
from span_sparse.training.checkpoint import load_model
from span_sparse.training.outcomes import Outcomes
from span_sparse.types import EncoderIdentity

ENCODER = EncoderIdentity("stain-texture", "1", "descriptor", 16, 32, 1.0, "float32")
AGE = RegressionTask("age").on(ENCODER, LatticeSpec(32, 1.0))
GENES = MultiLabelTask(("tp53", "kras")).on(ENCODER, LatticeSpec(32, 1.0))


def batch_of(targets: torch.Tensor) -> SlideBatch:
    slides = torch.arange(len(targets), dtype=torch.int32).repeat_interleave(2)
    coords = torch.stack([slides, slides, torch.arange(len(slides)).int() % 2], dim=1)
    labels = torch.full((len(targets),), -1)
    return SlideBatch(coords, torch.randn(len(slides), 16), labels, torch.arange(len(targets)), targets=targets)


@pytest.mark.parametrize("delta", [0.0, 0.5])
def test_numbers_are_learnt_standardised_and_said_in_their_unit(delta: float, tmp_path) -> None:
    items = [SlideItem("s", case, -1, (age,)) for case, age in (("a", 40.0), ("a", 40.0), ("b", 60.0), ("c", 80.0))]
    model = SlideRegressor(MeanPoolingConfig(), huber_delta=delta, task=AGE.as_dict())
    model.prepare(items)
    spread = np.std([40.0, 60.0, 80.0])
    assert model.own["scale"] == pytest.approx([60.0, spread])
    batch = batch_of(torch.tensor([[50.0], [75.0], [torch.nan]]))
    step = model.eval()._batch_step(batch)
    outputs = model(batch)[:2, 0]
    wanted = (torch.tensor([50.0, 75.0]) - 60.0) / spread
    if delta:
        expected = F.huber_loss(outputs, wanted, reduction="none", delta=delta)
    else:
        expected = F.mse_loss(outputs, wanted, reduction="none")
    torch.testing.assert_close(step.losses[:2], expected.float())
    assert step.losses[2].isnan()
    torch.testing.assert_close(step.columns["predictions"][:2], (outputs * spread + 60.0).float())
    model._remember()
    trainer = lightning.Trainer(accelerator="cpu", default_root_dir=tmp_path, barebones=True)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    again = load_model(tmp_path / "c.ckpt")
    assert torch.equal(again.predict_step(batch)["predictions"], step.columns["predictions"])


def test_figures_of_numbers_are_by_case() -> None:
    model = SlideRegressor(MeanPoolingConfig(), task=AGE.as_dict())
    predictions, targets = torch.tensor([1.0, 3.0, 5.0, 4.0, 9.0]), torch.tensor([2.0, 2.0, 4.0, 7.0, torch.nan])
    columns = {"predictions": predictions, "targets": targets, "loss": torch.tensor([1.0, 1.0, 2.0, 4.0, torch.nan])}
    figures = model.figures(Outcomes(torch.arange(5), columns), ["a", "a", "b", "c", "d"])
    ours, true = [2.0, 5.0, 4.0], [2.0, 4.0, 7.0]
    assert figures == pytest.approx(
        {"loss": 2.0, "mae": 4 / 3, "r2": r2_score(true, ours), "pearson": pearsonr(true, ours).statistic}
    )


def test_unanswered_questions_are_left_out(tmp_path) -> None:
    model = MultiLabelClassifier(MeanPoolingConfig(), positive_weights=[1.0, 3.0], task=GENES.as_dict()).eval()
    nan = torch.nan
    targets = torch.tensor([[1.0, 0.0], [0.0, nan], [nan, nan], [1.0, 1.0], [0.0, 0.0]])
    batch = batch_of(targets)
    step = model._batch_step(batch)
    logits = model(batch)
    by_hand = [
        [
            -F.logsigmoid(x) * (1, 3)[place] if target else -F.logsigmoid(-x)
            for place, (x, target) in enumerate(zip(*row, strict=True))
        ]
        for row in zip(logits, targets, strict=True)
    ]
    torch.testing.assert_close(step.losses[0], (by_hand[0][0] + by_hand[0][1]) / 2)
    torch.testing.assert_close(step.losses[1], by_hand[1][0])
    assert step.losses[2].isnan()
    outcomes = model.predict_step(batch)
    scores = outcomes["probabilities"].detach().numpy()
    areas = [roc_auc_score([1, 0, 1, 0], scores[[0, 1, 3, 4], 0]), roc_auc_score([0, 1, 0], scores[[0, 3, 4], 1])]
    assert model.figures(outcomes, list("abcde"))["auc"] == pytest.approx(np.mean(areas))
    columns = model.prediction_columns(outcomes)
    assert list(columns) == ["true_tp53", "true_kras", "prob_tp53", "prob_kras"]
    assert columns["true_kras"] == [0, None, None, 1, 0]
    with pytest.raises(ConfigError, match=r"positive_weights has 1 entries, the task 2 columns"):
        MultiLabelClassifier(MeanPoolingConfig(), positive_weights=[1.0], task=GENES.as_dict())
