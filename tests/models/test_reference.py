"""The authors' code's own numbers: outputs, every stage and gradients, through `span convert-weights`' code.

Five cases are always there; all of them where they lie beside the project.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from span_sparse.models.verify import verify_reference

HERE = Path(__file__).parents[1] / "reference"
BESIDE = Path(__file__).parents[2] / ".." / "shared" / "reference"
CASES = {path.stem: path for folder in (HERE, BESIDE) for path in sorted(folder.glob("*.npz"))}


def test_there_are_cases() -> None:
    assert len(CASES) >= 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_authors_code(case: str, dtype: torch.dtype) -> None:
    comparisons = verify_reference(CASES[case], dtype)
    assert {"out/logits", "enc0/feats", "grad_feats_rownorm"} <= {one.quantity for one in comparisons}
    assert [(one.quantity, one.error) for one in comparisons if not one.passed] == []
