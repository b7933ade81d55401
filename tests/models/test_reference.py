"""The authors' code's own numbers: outputs, every stage and gradients, through `span convert-weights`' code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from span_sparse.models.verify import verify_reference

REFERENCE = Path(__file__).parents[2] / ".." / "shared" / "reference"
CASES = sorted(path.stem for path in REFERENCE.glob("*.npz"))

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not CASES, reason="the reference outputs lie beside the project only where it is built"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_authors_code(case: str, dtype: torch.dtype) -> None:
    comparisons = verify_reference(REFERENCE / f"{case}.npz", dtype)
    assert {"out/logits", "enc0/feats", "grad_feats_rownorm"} <= {one.quantity for one in comparisons}
    assert [(one.quantity, one.error) for one in comparisons if not one.passed] == []
