"""Which texts name a device, and that commands leave TF32 off for whoever comes after them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from span_sparse.cli import fit
from span_sparse.cli.device_option import device_of
from span_sparse.errors import ConfigError
from span_sparse.float32 import switches


@pytest.fixture(autouse=True)
def _torchs_default() -> Iterator[None]:
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32 = True


def test_a_device_here(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_of("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert (device_of("auto"), device_of("cuda"), device_of("cuda:1")) == ("cuda", "cuda", "cuda:1")
    assert current[-1] == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="--device cuda:2: found 2 GPUs here, counted from 0"):
        device_of("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "mps", "meta", "cuda:x", ""])
def test_other_words_are_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match="expected auto, cpu, cuda or cuda:N"):
        device_of(name)


def test_commands_turn_tf32_off_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert switches()["cudnn"] is True
    device_of("cpu")
    assert switches()["cudnn"] is False

    torch.backends.cudnn.allow_tf32 = True
    seen: list[bool] = []

    def a_class_of_the_user_turns_it_on(*words: Any, **options: Any) -> None:
        seen.append(switches()["cudnn"])
        torch.backends.cudnn.allow_tf32 = True

    monkeypatch.setattr(fit, "SpanCLI", a_class_of_the_user_turns_it_on)
    assert fit.main(["fit"]) == 0
    assert seen == [False]
    assert switches()["cudnn"] is True
