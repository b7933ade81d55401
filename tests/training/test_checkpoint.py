from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from span_sparse.errors import CheckpointError
from span_sparse.training.checkpoint import checked_checkpoint, load_model


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def good(model) -> dict:
    return {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": "2.6.6",
    }


def test_a_checkpoint_is_opened_for_evaluation(make_classifier, batch, tmp_path) -> None:
    model = make_classifier().eval()
    torch.save(good(model), tmp_path / "c.ckpt")
    again = load_model(tmp_path / "c.ckpt")
    assert not again.training
    assert torch.equal(again(batch), model(batch))


@pytest.mark.parametrize("forced", [None, "1"])
@pytest.mark.parametrize("place", ["state_dict", "hyper_parameters", "beside"])
def test_a_pickled_command_is_refused_and_not_run(make_classifier, tmp_path, monkeypatch, forced, place) -> None:
    """The variable turns torch's own default off, on machines where something else needs that."""
    if forced is not None:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)
    content = good(make_classifier())
    (content if place == "beside" else content[place])["x"] = Malicious(tmp_path / "trace")
    torch.save(content, tmp_path / "c.ckpt")
    for attempt in (load_model, checked_checkpoint):
        with pytest.raises(CheckpointError, match=r"c\.ckpt: refused, it holds objects other than tensors"):
            attempt(tmp_path / "c.ckpt")
    assert not (tmp_path / "trace").exists()
    torch.load(tmp_path / "c.ckpt", weights_only=False)  # the file is what it is meant to be
    assert (tmp_path / "trace").exists()


def test_damaged_and_foreign_files_are_one_error(make_classifier, tmp_path) -> None:
    path = tmp_path / "c.ckpt"
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        load_model(path)
    torch.save(good(make_classifier()), path)
    whole = path.read_bytes()
    for content in (b"", b"GIF89a", whole[:200], whole[: len(whole) // 2], whole[:-100]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"c\.ckpt: "):
            load_model(path)
    for foreign in (torch.zeros(3), {"weight": torch.zeros(3)}, {"state_dict": {}, "hyper_parameters": {}}):
        torch.save(foreign, path)
        with pytest.raises(CheckpointError, match=r"c\.ckpt: "):
            load_model(path)


def test_wrong_weights_and_settings_are_one_error(make_classifier, tmp_path) -> None:
    path = tmp_path / "c.ckpt"

    def refused(message: str, **changes) -> None:
        content = good(make_classifier())
        for place, change in changes.items():
            change(content[place])
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=message):
            load_model(path)

    refused("Error", state_dict=lambda weights: weights.popitem())
    refused("unknown network 'resnet'", hyper_parameters=lambda values: values["network"].update(kind="resnet"))
    refused("do not fit this version", hyper_parameters=lambda values: values["network"].update(colour="red"))
    refused("task is incomplete", hyper_parameters=lambda values: values["task"].pop("encoder"))
    refused("which network, classes and features", hyper_parameters=lambda values: values.update(task=None))
