"""Checks every annotated axis while the tests run, and gives all tests the same small helpers."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import install_import_hook

# not `training`: a checkpoint calls its constructors with plain values instead of settings objects
PACKAGES = ["span_sparse.sparse", "span_sparse.nn", "span_sparse.models", "span_sparse.datasets"]
_hook = install_import_hook(PACKAGES, "beartype.beartype")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
