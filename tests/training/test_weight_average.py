from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch

from span_sparse.errors import ConfigError
from span_sparse.training import TaskModule, WeightAverage
from span_sparse.training.checkpoint import load_model

DECAY = 0.6


@pytest.fixture
def averaged_yaml(fit_yaml: Path) -> Path:
    """Three epochs of three steps with the average, and a checkpoint of the last epoch."""
    config = json.loads(fit_yaml.read_text())
    config["data"]["init_args"]["batch_size"] = 2
    config["trainer"] |= {"max_epochs": 3}
    config["trainer"]["callbacks"] += [
        {"class_path": "span_sparse.training.WeightAverage", "init_args": {"decay": DECAY}},
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"filename": "final", "enable_version_counter": False},
        },
    ]
    fit_yaml.write_text(json.dumps(config))
    return fit_yaml


def state(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_checkpoint_holds_the_average_of_the_steps_and_the_test_is_of_it(
    command, averaged_yaml, tmp_path, monkeypatch
) -> None:
    steps: list[dict[str, torch.Tensor]] = []
    before = WeightAverage.on_train_batch_end

    def remember(self, trainer, pl_module, *args):
        steps.append({name: value.detach().clone() for name, value in pl_module.named_parameters()})
        before(self, trainer, pl_module, *args)

    monkeypatch.setattr(WeightAverage, "on_train_batch_end", remember)
    assert command("span", "fit", "--config", averaged_yaml) == 0
    assert len(steps) == 9
    checkpoints = tmp_path / "run" / "checkpoints"
    saved = state(checkpoints / "final.ckpt")
    for name, value in steps[0].items():
        expected = value  # the first update takes the weights as they are
        for step in steps[1:]:
            expected = DECAY * expected + (1 - DECAY) * step[name]
        torch.testing.assert_close(saved[name], expected, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(saved[name], value) for name, value in steps[-1].items())

    model = load_model(checkpoints / "best.ckpt")
    best = state(checkpoints / "best.ckpt")
    assert all(torch.equal(value, best[name]) for name, value in model.state_dict().items())
    evaluated = tmp_path / "evaluated"
    config = json.loads(averaged_yaml.read_text())["data"]["init_args"]
    words = ("--store", config["store"], "--cohort", config["cohort"], "--split", "test", "--output", evaluated)
    assert command("span", "evaluate", "--checkpoint", checkpoints / "best.ckpt", *words) == 0
    tables = [
        pd.read_csv(folder / "predictions.csv").set_index("slide_id").filter(like="prob_")
        for folder in (tmp_path / "run", evaluated)
    ]
    pd.testing.assert_frame_equal(tables[0].loc[tables[1].index], tables[1], atol=1e-6)


def test_a_stopped_training_goes_on_with_its_average(command, averaged_yaml, tmp_path, monkeypatch) -> None:
    step_of_training, count = TaskModule.training_step, 0

    def step(self, batch, batch_index):
        nonlocal count
        if count == 13:  # the fifth step of the second run
            os.kill(os.getpid(), signal.SIGTERM)
        count += 1
        return step_of_training(self, batch, batch_index)

    monkeypatch.setattr(TaskModule, "training_step", step)
    runs = [tmp_path / name for name in ("whole", "stopped")]
    words = ("span", "fit", "--config", averaged_yaml, "--trainer.default_root_dir")
    assert command(*words, runs[0]) == 0
    assert command(*words, runs[1]) == 143
    assert command(*words, runs[1]) == 0
    for name in ("final", "best"):
        ours, theirs = (state(run / "checkpoints" / f"{name}.ckpt") for run in runs)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_what_validation_chose_reaches_the_average() -> None:
    model = torch.nn.Linear(2, 1)
    model.register_buffer("decision_threshold", torch.tensor(0.5))
    callback = WeightAverage(0.9)
    callback._average_model = torch.optim.swa_utils.AveragedModel(model)
    model.decision_threshold.fill_(0.3)
    callback.on_validation_end(None, model)
    assert callback._average_model.module.decision_threshold == model.decision_threshold


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0])
def test_a_decay_that_averages_nothing(decay) -> None:
    with pytest.raises(ConfigError, match=r"must be between 0 and 1, for example 0\.999"):
        WeightAverage(decay)
