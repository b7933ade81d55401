"""Checks every annotated axis while the tests run, and gives all tests the same small helpers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

PACKAGES = [
    "span_sparse.sparse",
    "span_sparse.nn",
    "span_sparse.models",
    "span_sparse.datasets",
    "span_sparse.training",
]
_hook = install_import_hook(PACKAGES, "beartype.beartype")

REFERENCE = Path(__file__).parents[1] / ".." / "shared" / "reference"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
