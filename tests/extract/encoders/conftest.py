"""Small encoders with random weights, and what timm needs where torchvision cannot be imported."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from span_sparse.extract.encoders import catalogue
from span_sparse.extract.encoders.catalogue import EncoderSpec

_SMALL_VIT = {"depth": 2, "embed_dim": 24, "num_heads": 3, "img_size": 56}
SMALL: dict[str, tuple[int, dict[str, Any]]] = {
    "uni_v1": (24, _SMALL_VIT | {"img_size": 64}),
    "uni_v2": (24, _SMALL_VIT),
    "conch_v1": (16, _SMALL_VIT | {"img_size": 64, "dimension": 16, "heads": 2}),
    "virchow2": (48, _SMALL_VIT),
    "virchow2-cls": (24, _SMALL_VIT),
    "hoptimus0": (24, _SMALL_VIT),
    "hoptimus1": (24, _SMALL_VIT),
    "h0-mini": (24, _SMALL_VIT),
    "h0-mini-cls-mean": (48, _SMALL_VIT),
    "gigapath": (24, _SMALL_VIT | {"img_size": 64}),
    "phikon_v2": (24, _SMALL_VIT | {"img_size": 64}),
    "ctranspath": (64, {"img_size": 64, "embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}),
    "resnet50": (1024, {}),
    "resnet50-full": (2048, {}),
}
"""Dimension and replaced arguments of a small network, by name."""


def _shim() -> Any:
    # tests are imported by path, so that a helper beside them is as well
    name = "span_sparse_tests_torchvision_shim"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("torchvision_shim.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def torchvision_like() -> Any:
    """Pillow and numpy under the names of torchvision's transforms."""
    return _shim()


@pytest.fixture(scope="session")
def timm() -> Any:
    try:
        return _shim().import_timm()
    except ImportError:
        pytest.skip("timm is not installed: pip install --no-deps timm, or pip install 'span-sparse[encoders]'")


@pytest.fixture
def small(timm: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], EncoderSpec]:
    """Replaces a row of the table by one with a small network of the same classes; gives that row."""

    def make(name: str) -> EncoderSpec:
        spec = catalogue.SPECS[name]
        dimension, settings = SMALL[name]
        edge = settings.get("img_size", 64)
        resize = edge if spec.transform.resize_px == spec.transform.crop_px else edge + 8
        row = replace(
            spec,
            build=partial(spec.build, **settings),
            dimension=dimension,
            transform=replace(spec.transform, resize_px=resize, crop_px=edge),
            input_size_px=72,
        )
        monkeypatch.setitem(catalogue.SPECS, name, row)
        return row

    return make


def random_network(spec: EncoderSpec, seed: int = 0) -> torch.nn.Module:
    """A network of a row with weights of a size that lets every part of it show in the vector."""
    torch.manual_seed(seed)
    network = spec.build()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith(("running_mean", "bias", "pos_embed", "query", "token")):
                tensor.normal_(0, 0.2)
            elif name.endswith("gamma"):
                tensor.uniform_(0.5, 1.0)
    return network.eval()


@pytest.fixture
def random_weights() -> Callable[[EncoderSpec], torch.nn.Module]:
    return random_network


def noise(batch: int, edge: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    fine = rng.integers(0, 60, (batch, edge, edge, 3))
    quarter = -(-edge // 4)
    coarse = rng.integers(20, 190, (batch, quarter, quarter, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return (fine + coarse[:, :edge, :edge]).astype(np.uint8)


@pytest.fixture
def patches() -> Callable[..., np.ndarray]:
    """Patches whose neighbouring pixels are correlated: `patches(batch, edge, seed)`."""
    return noise
