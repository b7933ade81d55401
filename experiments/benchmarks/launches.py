"""Kernel launches and synchronisations of one forward pass along the path a GPU takes, counted on any machine.

The network runs on CPU tensors that are treated as a GPU's (`simulated_device`), on a batch that was validated where it
was collated, and everything that reaches torch's dispatcher is counted:

* an operation of torch is a launch, unless it only looks at a tensor in another way or allocates one;
* an operator of ours is as many launches as it declares;
* operations whose result the host must see before it goes on are synchronisations;
* spconv's calls for maps, which wait for the device by themselves, are counted apart.

What is counted is what this code asks for: a sort is one operation here and several kernels on a GPU, and under
autocast the casts of weights come on top where its cache does not hold them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from span_sparse.sparse import indice_maps, windows
from span_sparse.sparse.operators import NAMESPACE, OPERATORS, simulated_device

SYNCHRONISING = frozenset(
    {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "unique_consecutive", "unique_dim",
     "equal", "is_nonzero", "bincount", "repeat_interleave"}
)  # fmt: skip
"""Operations that wait for the device, `item` and boolean indices among them."""

HOST_COPIES = frozenset({"tolist", "cpu", "numpy", "__array__", "new_tensor", "tensor", "as_tensor"})
"""Calls that wait for the device, but of CPU tensors ask nothing of the dispatcher: copies to the host, and from it."""

GEOMETRY = frozenset({"pair_table", "seen_tokens"})
"""Operators whose results later calls depend on."""

ALLOCATING = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"})


class LaunchCounter(TorchDispatchMode):
    """Counts what a GPU would be asked to do.

    Attributes:
        launches: by operation.
        synchronisations: by operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.synchronisations: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func.name().partition("::")
        name = name.partition(".")[0]
        if namespace == NAMESPACE:
            self.launches[name] += OPERATORS[name].launches
            if name not in GEOMETRY:  # values do not matter
                return OPERATORS[name].fake(*args, **(kwargs or {}))
        elif _synchronises(name, args):
            self.synchronisations[name] += 1
        elif not func.is_view and name not in ALLOCATING:
            self.launches[name] += 1
        with torch._C.DisableTorchFunction():
            return func(*args, **(kwargs or {}))


class HostCopies(TorchFunctionMode):
    """Counts `HOST_COPIES` in `synchronisations`."""

    def __init__(self, synchronisations: Counter[str]) -> None:
        super().__init__()
        self.synchronisations = synchronisations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in HOST_COPIES:
            self.synchronisations[name] += 1
        return func(*args, **(kwargs or {}))


def _synchronises(name: str, args: Any) -> bool:
    if name in ("index", "index_put", "index_put_"):
        return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return name in SYNCHRONISING


@contextmanager
def spconv_calls() -> Iterator[Counter[str]]:
    """Counts the calls that ask spconv for a map, inside a block; what they launch by themselves is not seen."""
    calls: Counter[str] = Counter()

    def counted(function: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            calls[kind] += 1
            with _disable_current_modes(), torch._C.DisableTorchFunction():
                return function(*args)

        return call

    strided, submanifold = indice_maps._strided_pairs, windows.neighbour_map
    with (
        mock.patch.object(indice_maps, "_strided_pairs", counted(strided, "strided")),
        mock.patch.object(windows, "neighbour_map", counted(submanifold, "submanifold 3 × 3")),
    ):
        yield calls


def count(run: Callable[[], Any]) -> dict[str, Any]:
    """What one call of `run` asks of a GPU.

    Returns:
        `launches` and `synchronisations`, how they add up (`by_operation`), and `spconv_map_calls` by kind.
    """
    counter = LaunchCounter()
    with simulated_device(), torch.no_grad(), spconv_calls() as calls, HostCopies(counter.synchronisations), counter:
        run()
    return {
        "launches": counter.launches.total(),
        "synchronisations": counter.synchronisations.total(),
        "spconv_map_calls": dict(calls),
        "by_operation": dict(counter.launches.most_common()) | dict(counter.synchronisations),
    }
