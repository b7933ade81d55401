"""Execution settings: how a network is computed, apart from what it computes.

They depend on the device and change results by rounding at most, so no checkpoint holds or compares them. Overridden in
one place, for everything inside a block:

    with execution(attention="merged"):
        logits = network(features, coords, num_slides)

In a configuration `model.init_args.execution` holds the same settings (`TaskModule`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal

import torch

from span_sparse.errors import ConfigError
from span_sparse.sparse.operators import is_device

AttentionImplementation = Literal["fused", "merged", "gathered"]


@dataclass(frozen=True, slots=True)
class Execution:
    """How a network is computed on one device.

    Attributes:
        attention: implementation of the window attention where it can take the tokens; None chooses by device and size.
        score_elements: scores at once in the merged implementation (windows · heads · slots²).
        gradient_rows: tokens whose products with a gradient are held at once there.
        rows_at_once: rows of wide linear maps at once, without gradients.
        head_groups: groups of heads that are attended to one after the other, without gradients.
        recompute: whether the backward pass computes the layers again instead of finding in memory what they computed.
        keep_attention: whether the weights of the global tokens' attention are needed afterwards (`StageOutput`).
        operators: whether sums over the slides of a batch are operators of ours, or loops over the slides.
    """

    attention: AttentionImplementation | None = None
    score_elements: int = 2**26
    gradient_rows: int = 2**30
    rows_at_once: int = 2**30
    head_groups: int = 1
    recompute: bool = False
    operators: bool = True
    keep_attention: bool = True


DEVICE: Final = Execution()
"""GPUs want few, large launches."""

CPU: Final = Execution(score_elements=2**17, gradient_rows=2**10, rows_at_once=2**11, head_groups=4, operators=False)
"""Half a megabyte of scores, 8 MB of 1,024 channels: what is worked on stays in a CPU's cache."""

_overrides: ContextVar[tuple[tuple[str, Any], ...]] = ContextVar("execution overrides", default=())


@functools.cache
def _settings(is_cpu: bool, overrides: tuple[tuple[str, Any], ...]) -> Execution:
    return replace(CPU if is_cpu else DEVICE, **dict(overrides))


def kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under the settings of now, whenever it is called: a layer is computed again in the backward pass."""
    overrides = _overrides.get()

    def call(*arguments: Any, **keywords: Any) -> Any:
        token = _overrides.set(overrides)
        try:
            return function(*arguments, **keywords)
        finally:
            _overrides.reset(token)

    return call


def current_execution(device: torch.device) -> Execution:
    """The settings for a device, with what the innermost `execution` blocks override."""
    return _settings(not is_device(device), _overrides.get())


@contextmanager
def execution(**settings: Any) -> Iterator[None]:
    """Overrides some settings inside a block, on every device.

    Raises:
        ConfigError: a setting of another name.
    """
    known = [field.name for field in fields(Execution)]
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ConfigError(f"execution: unknown setting {unknown[0]!r}; expected one of {', '.join(known)}")
    token = _overrides.set(tuple((dict(_overrides.get()) | settings).items()))
    try:
        yield
    finally:
        _overrides.reset(token)
