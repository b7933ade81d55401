from __future__ import annotations

import sys
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
import torchmil.models

from span_sparse.datasets import ClassificationTask, SlideBatch
from span_sparse.errors import ConfigError
from span_sparse.grid import LatticeSpec
from span_sparse.models import TorchmilConfig, build_network
from span_sparse.models.config import TorchmilName
from span_sparse.models.torchmil_network import TorchmilNetwork
from span_sparse.training import SlideClassifier
from span_sparse.types import EncoderIdentity

NAMES = get_args(TorchmilName)


@pytest.fixture
def batch() -> SlideBatch:
    """Slides of 9, 1 and 30 patches, their rows mixed."""
    generator = torch.Generator().manual_seed(0)
    slides = torch.arange(3, dtype=torch.int32).repeat_interleave(torch.tensor([9, 1, 30]))
    coords = torch.stack([slides, torch.arange(40).int(), torch.zeros(40).int()], dim=1)
    mixed = torch.randperm(40, generator=generator)
    features = torch.randn(40, 16, generator=generator)
    return SlideBatch(coords[mixed], features, torch.tensor([1, 0, 1]), torch.arange(3))


def network(name: str) -> TorchmilNetwork:
    torch.manual_seed(0)
    return build_network(TorchmilConfig(name, hidden=16), num_features=16, num_classes=2)


@pytest.mark.parametrize("name", NAMES)
def test_every_slide_gets_what_torchmil_says_of_it_alone(name, batch) -> None:
    net = network(name).eval()
    logits = net(batch.features, batch.coords, 3)
    assert logits.shape == (3, 2)
    for slide in range(3):
        bag = batch.features[batch.coords[:, 0] == slide][None]
        answer = net.model.predict(bag) if name == "dsmil" else net.model(bag)
        torch.testing.assert_close(logits[slide].softmax(0)[1], answer.squeeze().sigmoid())


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_a_training_step_is_torchmil_s(name, batch) -> None:
    """Cross-entropy of (0, z) is binary cross-entropy of z; CLAM and DSMIL add their own."""
    net = network(name).train()
    loss = F.cross_entropy(net(batch.features, batch.coords, 3), batch.labels, reduction="none")
    loss = loss + net.own_losses(batch.features, batch.coords, batch.labels)
    for slide in range(3):
        bag = batch.features[batch.coords[:, 0] == slide][None]
        _, parts = net.model.compute_loss(batch.labels[slide][None].float(), bag)
        torch.testing.assert_close(loss[slide], sum(torch.as_tensor(part).squeeze() for part in parts.values()))
    loss.sum().backward()
    assert all(value.grad is not None for value in net.parameters() if value.requires_grad)  # DDP waits for all


def test_the_classifier_trains_with_the_model_s_own_loss(batch) -> None:
    encoder = EncoderIdentity("stain-texture", "1", "descriptor", 16, 32, 1.0, "float32")
    task = ClassificationTask(class_names=("a", "b")).on(encoder, LatticeSpec(32, 1.0))
    module = SlideClassifier(TorchmilConfig("dsmil", hidden=16), task=task.as_dict())
    assert isinstance(module.network, TorchmilNetwork)
    own = module.network.own_losses(batch.features, batch.coords, batch.labels)
    trained = module.train()._batch_step(batch).losses
    answer = F.cross_entropy(module(batch), batch.labels, reduction="none")
    torch.testing.assert_close(trained, answer + own)
    assert (own > 0).all()
    torch.testing.assert_close(
        module.eval()._batch_step(batch).losses, F.cross_entropy(module(batch), batch.labels, reduction="none")
    )
    three = ClassificationTask(class_names=("a", "b", "c")).on(encoder, LatticeSpec(32, 1.0))
    with pytest.raises(ConfigError, match="answer for two classes, the task has 3"):
        SlideClassifier(TorchmilConfig("dsmil"), task=three.as_dict())


def test_clam_trains_also_when_it_is_sure_of_its_instances(batch) -> None:
    net = network("clam_sb").train()
    for classifier in net.model.inst_classifiers:
        for value in classifier.parameters():
            value.data *= 1000
    losses = net.own_losses(batch.features, batch.coords, batch.labels)
    assert losses.shape == (3,)
    assert losses.isfinite().all()


def test_the_models_are_those_of_the_library() -> None:
    kinds = {name: type(network(name).model) for name in NAMES}
    library = torchmil.models
    assert list(kinds.values()) == [library.ABMIL, library.CLAM_SB, library.DSMIL, library.TransMIL]


def test_without_torchmil_the_message_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmil.models", None)
    with pytest.raises(ConfigError, match=r"pip install 'span-sparse\[baselines\]'"):
        network("abmil")


@pytest.mark.parametrize("settings", [{"hidden": 4}, {"hidden": 20}])
def test_settings_that_cannot_work(settings) -> None:
    with pytest.raises(ConfigError, match=r"hidden (4|20) a multiple of 8"):
        TorchmilConfig(**settings)
