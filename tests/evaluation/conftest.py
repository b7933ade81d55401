from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from span_sparse.evaluation.predictions import PredictionTable, parse_predictions


@pytest.fixture
def make_frame() -> Callable[..., pd.DataFrame]:
    """A frame of `num_cases` cases; scores carry signal and a part shared by the slides of a case."""

    def make(
        *, num_cases: int = 20, slides_per_case: int = 2, classes: tuple[str, ...] = ("benign", "tumour"), seed: int = 0
    ) -> pd.DataFrame:
        generator = np.random.default_rng(seed)
        case = np.repeat(np.arange(num_cases), slides_per_case)
        true = (np.arange(num_cases) % len(classes))[case]
        noise = generator.normal(size=(num_cases, len(classes)))[case]
        noise = noise + 0.3 * generator.normal(size=(len(case), len(classes)))
        logits = noise + 0.6 * (true[:, None] == np.arange(len(classes)))
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return pd.DataFrame(
            {
                "slide_id": [f"s{index:04d}" for index in range(len(case))],
                "case_id": [f"p{index}" for index in case],
                "fold": "0",
                "split": "test",
                "y_true": [classes[label] for label in true],
                "y_pred": [classes[label] for label in probabilities.argmax(axis=1)],
                **{f"prob_{name}": probabilities[:, label] for label, name in enumerate(classes)},
            }
        )

    return make


@pytest.fixture
def make_table(make_frame: Callable[..., pd.DataFrame]) -> Callable[..., PredictionTable]:
    return lambda **settings: parse_predictions(make_frame(**settings))


@pytest.fixture
def run_python() -> Callable[[str], str]:
    """Runs code in a fresh interpreter and returns what it printed."""

    def run(code: str) -> str:
        return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

    return run
