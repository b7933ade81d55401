from __future__ import annotations

import dataclasses

import lightning
import pytest
import torch
import torch.nn.functional as F

from span_sparse.datasets import ClassificationTask, SlideBatch
from span_sparse.errors import CheckpointError, ConfigError
from span_sparse.models import AttentionPoolingConfig, MeanPoolingConfig, SpanMilConfig
from span_sparse.training import SlideClassifier


def single(batch: SlideBatch, slide: int) -> SlideBatch:
    """One slide of a batch, alone."""
    rows = batch.coords[:, 0] == slide
    coords = batch.coords[rows].clone()
    coords[:, 0] = 0
    chosen = slice(slide, slide + 1)
    return SlideBatch(coords, batch.features[rows], batch.labels[chosen], batch.indices[chosen])


def test_the_loss_is_the_mean_cross_entropy(make_classifier, batch) -> None:
    model = make_classifier().eval()
    labelled = dataclasses.replace(batch, labels=torch.tensor([2, 1, 0]))
    expected = F.cross_entropy(model(labelled), labelled.labels)
    torch.testing.assert_close(model._batch_step(labelled).losses.mean(), expected)


def test_unlabelled_slides_have_outcomes_but_no_loss(make_classifier, batch) -> None:
    rows = make_classifier().eval().predict_step(batch)
    assert rows["loss"].isnan().tolist() == [False, True, False]
    torch.testing.assert_close(rows["probabilities"].sum(dim=1), torch.ones(3))
    assert (rows["labels"].tolist(), rows.indices.tolist()) == ([2, -1, 0], [0, 1, 2])


def test_class_weights_act_on_a_slide_that_is_alone_in_its_batch(make_classifier, batch) -> None:
    """A weighted mean, as torch's cross-entropy takes it, would cancel the weight of a single slide."""
    plain, weighted = make_classifier().eval(), make_classifier(class_weights=[0.5, 1.0, 4.0]).eval()
    weighted.load_state_dict(plain.state_dict())
    for slide, factor in ((0, 4.0), (2, 0.5)):
        alone = single(batch, slide)
        torch.testing.assert_close(
            weighted._batch_step(alone).losses, factor * plain._batch_step(alone).losses, rtol=1e-6, atol=0
        )


def test_settings_that_cannot_work(make_classifier) -> None:
    with pytest.raises(ConfigError, match=r"class_weights has 2 entries, the task 3 classes: \['a', 'b', 'c'\]"):
        make_classifier(class_weights=[1.0, 2.0])
    with pytest.raises(ConfigError, match=r"learning_rate 0\.0 must be positive"):
        make_classifier(learning_rate=0.0)


@pytest.mark.parametrize(
    "network",
    [SpanMilConfig(stages="11", head_channels=8), MeanPoolingConfig(hidden=5), AttentionPoolingConfig(hidden=6)],
)
def test_a_checkpoint_alone_restores_the_same_logits(make_classifier, batch, tmp_path, network) -> None:
    model = make_classifier(network=network, learning_rate=0.02, class_weights=[1.0, 2.0, 3.0]).eval()
    trainer = lightning.Trainer(
        logger=False, enable_checkpointing=False, accelerator="cpu", default_root_dir=tmp_path, barebones=True
    )
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    again = SlideClassifier.load_from_checkpoint(tmp_path / "c.ckpt", weights_only=True).eval()
    assert again.settings == network
    assert again.task == model.task
    assert (again.learning_rate, again.class_weights) == (0.02, [1.0, 2.0, 3.0])
    assert torch.equal(again(batch), model(batch))


def saved_by(model: SlideClassifier) -> dict:
    return {"hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ("a", "b", "x")}, r"class names: \['a', 'b', 'c'\] != \['a', 'b', 'x'\]"),
        ({"encoder": {"revision": "2"}}, "encoder: .*revision='1'.* != .*revision='2'"),
        ({"lattice": {"target_mpp": 0.5}}, "lattice: .*1.0.* != .*0.5"),
    ],
)
def test_weights_of_another_task_are_refused(make_classifier, task, change, message) -> None:
    change = dict(change)
    encoder = dataclasses.replace(task.encoder, **change.pop("encoder", {}))
    lattice = dataclasses.replace(task.lattice, **change.pop("lattice", {}))
    other: ClassificationTask = dataclasses.replace(task, **change).on(encoder, lattice)
    with pytest.raises(CheckpointError, match=message):
        make_classifier().on_load_checkpoint(saved_by(make_classifier(other)))


def test_weights_of_another_network_are_refused(make_classifier) -> None:
    saved = saved_by(make_classifier(network=SpanMilConfig(stages="111", head_channels=8)))
    with pytest.raises(CheckpointError, match="network stages: '11' != '111'; network window_size: 2 != 3"):
        make_classifier().on_load_checkpoint(saved)
    make_classifier().on_load_checkpoint(saved_by(make_classifier(learning_rate=0.5)))
    with pytest.raises(CheckpointError, match="does not say which network"):
        make_classifier().on_load_checkpoint({"hyper_parameters": {"learning_rate": 1.0}})
