"""From the store to the logits: what must not change a slide's answer, and one process against two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch

from span_sparse.datasets import SlideBatch, SlideDataset, SlideSample, collate
from span_sparse.datasets.slide_dataset import SlideItem
from span_sparse.datasets.task import ClassificationTask
from span_sparse.models import SpanMilConfig
from span_sparse.store import FeatureStore
from span_sparse.training import SlideClassifier

TOLERANCE = 1e-5


@pytest.fixture
def samples(tiny_cohort) -> list[SlideSample]:
    store = FeatureStore(tiny_cohort.store)
    data = SlideDataset(store, [SlideItem(slide, slide, 0) for slide in store.slide_ids])
    return [data[index] for index in range(len(data))]


@pytest.fixture(params=["multi_addition", "pyramid_pooling"])
def model(request, tiny_cohort) -> SlideClassifier:
    """As in training, with weights large enough that every path matters."""
    network = SpanMilConfig(stages="111", head_channels=8, window_size=2, input_norm=True, head=request.param)
    task = ClassificationTask(class_names=("a", "b")).on(*FeatureStore(tiny_cohort.store).common_identity())
    classifier = SlideClassifier(network, task=task.as_dict()).eval()
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return classifier


@torch.no_grad()
def logits(model: SlideClassifier, samples: list[SlideSample]) -> torch.Tensor:
    return model(collate(samples))


def test_batch_mates_do_not_matter(model, samples) -> None:
    alone = torch.cat([logits(model, [sample]) for sample in samples])
    assert alone.std() > 0.05
    torch.testing.assert_close(logits(model, samples), alone, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(logits(model, samples[::-1]).flip(0), alone, rtol=0, atol=TOLERANCE)


def test_the_order_of_rows_does_not_matter(model, samples) -> None:
    shuffled = []
    for sample in samples:
        order = torch.randperm(len(sample.grid))
        shuffled.append(replace(sample, features=sample.features[order], grid=sample.grid[order]))
    torch.testing.assert_close(logits(model, shuffled), logits(model, samples), rtol=0, atol=TOLERANCE)
    batch = collate(samples)
    order = torch.randperm(len(batch.coords))
    with torch.no_grad():
        mixed = model(SlideBatch(batch.coords[order], batch.features[order], batch.labels, batch.indices))
    torch.testing.assert_close(mixed, logits(model, samples), rtol=0, atol=TOLERANCE)


def test_a_far_patch_of_one_slide_does_not_change_the_others(model, samples) -> None:
    before = logits(model, samples)
    far = torch.tensor([[9001, 7000]], dtype=torch.int32)
    first = replace(
        samples[0],
        features=torch.cat([samples[0].features, torch.randn(1, 16)]),
        grid=torch.cat([samples[0].grid, far]),
    )
    after = logits(model, [first, *samples[1:]])
    torch.testing.assert_close(after[1:], before[1:], rtol=0, atol=TOLERANCE)
    assert (after[0] - before[0]).abs().max() > TOLERANCE  # its own slide has one patch more


@pytest.mark.slow
@pytest.mark.parametrize("model", ["pyramid_pooling"], indirect=True)
def test_two_processes_say_what_one_says(command, fit_yaml, tmp_path, model) -> None:
    """7 slides on 2 processes are uneven shares."""
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    checkpoint = tmp_path / "c.ckpt"
    torch.save({**content, "epoch": 0, "global_step": 0, "pytorch-lightning_version": "2.6.6"}, checkpoint)
    settings = json.loads(fit_yaml.read_text())
    settings["model"]["init_args"]["network"]["init_args"] = model.settings.as_dict()
    fit_yaml.write_text(json.dumps(settings))
    words = ["test", "--config", str(fit_yaml), "--ckpt_path", str(checkpoint), "--data.init_args.batch_size=2"]

    def options(name: str, processes: int, strategy: str) -> list[str]:
        run_dir = f"--trainer.default_root_dir={tmp_path / name}"
        return [run_dir, f"--trainer.devices={processes}", f"--trainer.strategy={strategy}"]

    assert command("span", *words, *options("one", 1, "auto")) == 0
    two = [sys.executable, "-m", "span_sparse", *words, *options("two", 2, "ddp")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(two, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "MEMBER: 2/2" in done.stderr
    first, second = (pd.read_csv(tmp_path / name / "predictions.csv") for name in ("one", "two"))
    assert second["slide_id"].tolist() == first["slide_id"].tolist()
    assert len(first) == 7
    assert (first["prob_b"] - second["prob_b"]).abs().max() < 1e-6
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text())["test"] for name in ("one", "two"))
    assert one.keys() == two.keys()
    ranked = [key for key in one if not key.startswith(("brier", "ece"))]  # these two hold the probabilities themselves
    assert {key: one[key] for key in ranked} == {key: two[key] for key in ranked}
    for key in ("brier", "ece"):
        assert one[key] == pytest.approx(two[key], abs=1e-6)
