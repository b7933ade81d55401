"""Switches of TF32: the old and the newer ones of torch, whichever the user touched, without a warning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from span_sparse.float32 import exact_convolutions, off_by_default, switches

CUDNN: Any = torch.backends.cudnn
NEWER = pytest.mark.skipif(not hasattr(CUDNN, "conv"), reason="torch before 2.9 has the old switches alone")


@pytest.fixture(autouse=True)
def _switches_as_torch_starts() -> Iterator[None]:
    """Before each test too: a command that ran in this process has turned some off."""
    _reset()
    yield
    _reset()


def _reset() -> None:
    torch.set_float32_matmul_precision("highest")
    if hasattr(CUDNN, "conv"):
        for level in (torch.backends, CUDNN, torch.backends.cuda.matmul):
            level.fp32_precision = "none"
    CUDNN.allow_tf32 = True
    assert switches() == {"matmul": False, "cudnn": True}


def set_precision(*levels: Any, precision: str) -> Callable[[], None]:
    return lambda: [setattr(level, "fp32_precision", precision) for level in levels].clear()


SETTINGS = {
    "torch's defaults": (lambda: None, {"matmul": False, "cudnn": True}),
    "old, off": (lambda: setattr(CUDNN, "allow_tf32", False), {"matmul": False, "cudnn": False}),
    "old, products": (lambda: torch.set_float32_matmul_precision("high"), {"matmul": True, "cudnn": True}),
}
NEWER_SETTINGS = {
    "products": (set_precision(torch.backends.cuda.matmul, precision="tf32"), {"matmul": True, "cudnn": True}),
    "everything": (set_precision(torch.backends, precision="tf32"), {"matmul": True, "cudnn": True}),
}
if hasattr(CUDNN, "conv"):
    exact = {"matmul": False, "cudnn": False}
    NEWER_SETTINGS["one exact"] = (set_precision(CUDNN.conv, precision="ieee"), exact)
    NEWER_SETTINGS["both exact"] = (set_precision(CUDNN.conv, CUDNN.rnn, precision="ieee"), exact)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        *(pytest.param(*value, id=name) for name, value in SETTINGS.items()),
        *(pytest.param(*value, id=name, marks=NEWER) for name, value in NEWER_SETTINGS.items()),
    ],
)
def test_exact_within_and_as_before_afterwards(setting: Callable[[], None], expected: dict[str, bool]) -> None:
    setting()
    assert switches() == expected
    with exact_convolutions():
        assert switches()["cudnn"] is False
        with exact_convolutions():
            assert switches()["cudnn"] is False
        assert switches()["cudnn"] is False
    assert switches() == expected
    with pytest.raises(KeyError), exact_convolutions():
        raise KeyError
    assert switches() == expected


def test_off_by_default_and_on_when_asked_for_afterwards() -> None:
    off_by_default()
    assert switches() == {"matmul": False, "cudnn": False}
    CUDNN.allow_tf32 = True
    assert switches()["cudnn"] is True


@NEWER
def test_what_was_asked_for_through_the_newer_switches_stays() -> None:
    torch.backends.fp32_precision = "tf32"
    off_by_default()
    assert switches() == {"matmul": True, "cudnn": True}
    torch.backends.fp32_precision = "none"
    off_by_default()
    CUDNN.conv.fp32_precision = "tf32"
    assert switches()["cudnn"] is True
