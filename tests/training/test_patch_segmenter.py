"""Counts at every decision threshold against a loop, the threshold chosen on validation, figures by hand."""

from __future__ import annotations

from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch

from span_sparse.datasets import SegmentationTask, SlideBatch
from span_sparse.errors import ConfigError
from span_sparse.grid import LatticeSpec
from span_sparse.losses import binary_segmentation_loss, multi_class_segmentation_loss
from span_sparse.models import SpanUnetConfig
from span_sparse.training import PatchSegmenter
from span_sparse.training.checkpoint import load_model
from span_sparse.training.outcomes import Outcomes
from span_sparse.types import EncoderIdentity

ENCODER = EncoderIdentity("stain-texture", "1", "descriptor", 16, 32, 1.0, "float32")
NETWORK = SpanUnetConfig(stages="11-1", head_channels=8, window_size=2, channel_factor=1)


def segmenter(*classes: str, **settings) -> PatchSegmenter:
    task = SegmentationTask(classes).on(ENCODER, LatticeSpec(32, 1.0))
    return PatchSegmenter(NETWORK, task=task.as_dict(), **settings)


def batch_of(num_classes: int) -> SlideBatch:
    """Slides of 9 and 20 patches in mixed order, every fifth patch without label."""
    slides = torch.cat([torch.zeros(9), torch.ones(20)]).int()
    cells = torch.cat([torch.randperm(64)[:9], torch.randperm(64)[:20]]).int()
    order = torch.randperm(29)
    labels = torch.randint(num_classes, (29,)).masked_fill(torch.arange(29) % 5 == 0, -1)
    return SlideBatch(
        coords=torch.stack([slides, cells // 8, cells % 8], dim=1)[order],
        features=torch.randn(29, 16),
        labels=torch.tensor([-1, -1]),
        indices=torch.tensor([0, 1]),
        patch_labels=labels,
    )


@pytest.mark.parametrize("classes", [("tumor",), ("tumor", "stroma")])
def test_losses_are_of_the_labelled_patches_of_each_slide(classes) -> None:
    model, batch = segmenter(*classes, dice_weight=0.5).eval(), batch_of(len(classes) + 1)
    logits, losses = model(batch), model._batch_step(batch).losses
    for slide in (0, 1):
        rows = (batch.coords[:, 0] == slide) & (batch.patch_labels >= 0)
        truth, counts = batch.patch_labels[rows], (int(rows.sum()),)
        if len(classes) == 1:
            expected = binary_segmentation_loss(logits[rows, 0], truth.float(), counts, dice_weight=0.5)
        else:
            expected = multi_class_segmentation_loss(logits[rows], truth, counts, dice_weight=0.5)
        torch.testing.assert_close(losses[slide], expected[0])


def test_counts_at_every_threshold() -> None:
    model = segmenter("tumor").eval()
    logits, labels = torch.randn(200, 1) * 2, torch.randint(2, (200,))
    counts = model._agreement(logits, labels)
    for number, threshold in enumerate(np.arange(1, 100) / 100):
        predicted = torch.floor(logits[:, 0].sigmoid() * 100) >= round(threshold * 100)
        truth = labels == 1
        expected = [(predicted & truth).sum(), (predicted & ~truth).sum(), (~predicted & truth).sum()]
        assert counts[number].tolist() == [int(value) for value in expected], threshold


def test_confusion_of_three_classes_and_figures_by_hand() -> None:
    model = segmenter("tumor", "stroma").eval()
    logits = torch.eye(3)[torch.tensor([0, 1, 1, 2, 2, 2, 0])] * 9
    labels = torch.tensor([0, 0, 1, 2, 2, 1, 2])
    table = model._agreement(logits, labels)
    assert table.tolist() == [[1, 1, 0], [0, 1, 1], [1, 0, 2]]
    outcomes = Outcomes(torch.tensor([0]), {"agreement": table[None], "loss": torch.tensor([0.5])})
    # tumor: 1 hit, 1 false alarm, 1 miss: Dice 2/4, IoU 1/3; stroma: 2 hits, 1 false alarm, 1 miss: Dice 4/6, IoU 2/4
    figures = model.figures(outcomes, ["a"])
    assert figures == pytest.approx(
        {"loss": 0.5, "dice": (0.5 + 2 / 3) / 2, "pooled_dice": (0.5 + 2 / 3) / 2, "pooled_iou": (1 / 3 + 0.5) / 2}
    )
    columns = model.prediction_columns(outcomes)
    assert (columns["hits_stroma"], columns["false_alarms_stroma"], columns["misses_stroma"]) == ([2], [1], [1])


def test_the_threshold_is_chosen_on_validation_and_kept(tmp_path) -> None:
    """Positives score 0.31, negatives 0.1 and 0.29: only thresholds 0.30 and 0.31 separate them; the first is taken."""
    model = segmenter("tumor").eval()
    logits = torch.tensor([0.315, 0.1, 0.295, 0.315]).logit().unsqueeze(1)
    agreement = model._agreement(logits, torch.tensor([1, 0, 0, 1]))
    model.outcomes.add(Outcomes(torch.tensor([0]), {"agreement": agreement[None], "loss": torch.tensor([0.5])}))
    model._log_figures = lambda split, outcomes: None
    model.on_validation_epoch_end()
    assert model.decision_threshold.item() == pytest.approx(0.30)
    outcomes = Outcomes(torch.tensor([0]), {"agreement": agreement[None], "loss": torch.tensor([0.5])})
    assert model.figures(outcomes, ["a"])["dice"] == 1.0
    trainer = lightning.Trainer(accelerator="cpu", default_root_dir=tmp_path, barebones=True)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    again = load_model(tmp_path / "c.ckpt")
    assert isinstance(again, PatchSegmenter)
    assert again.decision_threshold.item() == pytest.approx(0.30)
    assert again.task.threshold == 0.5  # what made a patch positive in training is another thing


def test_settings_that_cannot_work() -> None:
    with pytest.raises(ConfigError, match="for two classes set positive_weight"):
        segmenter("tumor", class_weights=[1.0, 2.0])
    with pytest.raises(ConfigError, match="positive_weight is for two classes"):
        segmenter("tumor", "stroma", positive_weight=2.0)
    with pytest.raises(ConfigError, match="dice_weight 2"):
        segmenter("tumor", dice_weight=2.0)


def test_a_slide_without_labels_trains_nothing_and_counts_nowhere() -> None:
    model, batch = segmenter("tumor"), batch_of(2)
    unlabelled = torch.where(batch.coords[:, 0] == 0, -1, batch.patch_labels)
    batch = SlideBatch(batch.coords, batch.features, batch.labels, batch.indices, patch_labels=unlabelled)
    model.train()
    model._trainer = SimpleNamespace(datamodule=SimpleNamespace(slides_per_step=2.0))
    losses = model._batch_step(batch).losses
    assert losses[0] == 0
    losses.sum().backward()
    assert all(torch.isfinite(one.grad).all() for one in model.parameters() if one.grad is not None)
    assert model.eval()._batch_step(batch).losses.isnan().tolist() == [True, False]
