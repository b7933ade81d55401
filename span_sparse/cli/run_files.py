"""What are the files of a run folder called, and how are they read? Without torch, so that listing runs is quick."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, Final

CONFIG_FILE: Final = "config.yaml"
RUN_FILE: Final = "run.json"
ENVIRONMENT_FILE: Final = "environment.json"
HISTORY_FILE: Final = "history.csv"

METRICS_FILE: Final = "metrics.json"
"""Written last: its presence says that the test is complete."""

HEADLINES: Final = {
    "auc": "AUC",
    "c_index": "C-index",
    "pooled_dice": "Dice over all patches",
    "mae": "mean absolute error",
}
"""The one figure of a task that a run ends with, the first that it has."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a run folder; empty when the file is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_history(path: Path) -> list[dict[str, str]]:
    """Rows of `history.csv`; empty when the file is missing or damaged."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, ValueError, csv.Error):
        return []
    return [row for row in rows if (row.get("epoch") or "").isdecimal() and None not in row]
