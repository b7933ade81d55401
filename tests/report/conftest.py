from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest


class Page(HTMLParser):
    """Elements of a page and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.pieces)


@pytest.fixture(scope="session")
def parse() -> Callable[[str], Page]:
    return Page


@pytest.fixture
def tables(_tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """A table of each task: 24 slides of 12 patients; a copy of its own for every test."""
    return {kind: frame.copy() for kind, frame in _tables.items()}


@pytest.fixture(scope="session")
def _tables() -> dict[str, pd.DataFrame]:
    random = np.random.default_rng(3)
    count = 24
    base = pd.DataFrame(
        {
            "slide_id": [f"s{number:02d}" for number in range(count)],
            "case_id": [f"p{number // 2:02d}" for number in range(count)],
            "fold": "0",
            "split": ["test"] * 16 + ["val"] * 8,
        }
    )
    true = np.arange(count) // 2 % 2
    probability = np.clip(0.3 + 0.4 * true + 0.25 * random.normal(size=count), 0.01, 0.99)
    counts = {
        f"{kind}_{name}": random.integers(0, 30, count).astype(float)
        for name in ("tumour", "stroma")
        for kind in ("hits", "false_alarms", "misses")
    }
    return {
        "classification": base.assign(
            y_true=np.array(["benign", "tumour"])[true],
            y_pred=np.array(["benign", "tumour"])[(probability > 0.5).astype(int)],
            prob_benign=1 - probability,
            prob_tumour=probability,
        ),
        "survival": base.assign(
            risk=random.normal(size=count), time=random.exponential(20, count), event=random.integers(0, 2, count)
        ),
        "regression": base.assign(y_true=random.normal(size=count), y_pred=random.normal(size=count)),
        "multi_label": base.assign(
            true_a=true.astype(float), prob_a=probability, true_b=1.0 - true, prob_b=probability
        ),
        "segmentation": base.assign(**counts),
    }
