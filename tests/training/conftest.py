from __future__ import annotations

import pytest
import torch

from span_sparse.datasets import ClassificationTask, SlideBatch
from span_sparse.grid import LatticeSpec
from span_sparse.models import SpanMilConfig
from span_sparse.training import SlideClassifier
from span_sparse.types import EncoderIdentity

ENCODER = EncoderIdentity("stain-texture", "1", "descriptor", 16, 32, 1.0, "float32")
TASK = ClassificationTask(class_names=("a", "b", "c")).on(ENCODER, LatticeSpec(32, 1.0))


def _classifier(task: ClassificationTask = TASK, **settings) -> SlideClassifier:
    network = settings.pop("network", SpanMilConfig(stages="11", head_channels=8, window_size=2))
    return SlideClassifier(network, task=task.as_dict(), **settings)


@pytest.fixture
def make_classifier():
    return _classifier


@pytest.fixture
def task() -> ClassificationTask:
    return TASK


@pytest.fixture
def batch() -> SlideBatch:
    """Three slides of 9, 4 and 20 patches with the labels 2, unknown, 0."""
    counts = torch.tensor([9, 4, 20])
    slides = torch.arange(3, dtype=torch.int32).repeat_interleave(counts)
    cells = torch.cat([torch.randperm(64)[:count] for count in counts]).int()
    return SlideBatch(
        coords=torch.stack([slides, cells // 8, cells % 8], dim=1),
        features=torch.randn(33, 16),
        labels=torch.tensor([2, -1, 0]),
        indices=torch.tensor([0, 1, 2]),
    )
