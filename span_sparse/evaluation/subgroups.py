"""Is a model as good at one hospital as at another?

Every figure with its interval, for the slides of each value of a column (site, scanner, stage, …), split by split. The
cuts are those of the whole table. Groups are small as a rule, and the best and worst of ten small groups differ even
when the model treats all alike: groups of few cases are marked, and intervals say how far a figure can be trusted.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, Final

import pandas as pd

from span_sparse.errors import PredictionTableError
from span_sparse.evaluation.predictions import COLUMNS, PROBABILITY_PREFIX
from span_sparse.evaluation.scores import score_table

MIN_GROUP_CASES: Final = 20
"""A group of fewer cases is marked as small."""

MAX_GROUPS: Final = 100
MISSING: Final = "(missing)"
_OWN_COLUMNS: Final = (*COLUMNS, "risk", "time", "event")
_OWN_PREFIXES: Final = (PROBABILITY_PREFIX, "true_", "survival_", "hits_", "false_alarms_", "misses_", "dice_")


def check_column(column: str, source: str) -> None:
    """Refuse a column of groups whose name the prediction table needs for itself.

    Args:
        column: its name.
        source: what to call the table in messages.

    Raises:
        PredictionTableError: the name is taken.
    """
    if column in _OWN_COLUMNS or column.startswith(_OWN_PREFIXES):
        raise PredictionTableError(
            f"{source}: column {column!r} cannot be a column of subgroups: predictions have one of that name; rename it"
        )


def subgroup_scores(frame: pd.DataFrame, kind: str, by: Sequence[str], **settings: Any) -> dict[str, Any]:
    """`{column: {value: figures}}` of the slides of one split; figures as in `score_table`, with `small`.

    Args:
        frame: predictions of one split, with the columns.
        kind: of the task.
        by: the columns.
        settings: of `score_table`.

    Raises:
        PredictionTableError: no such column, or one with a value for nearly every slide.
    """
    found: dict[str, Any] = {}
    for column in by:
        if column not in frame:
            known = ", ".join(map(str, frame.columns))
            raise PredictionTableError(f"there is no column {column!r} for subgroups; the predictions have {known}")
        values = frame[column].where(frame[column].notna(), "").astype(str).replace("", MISSING)
        names = sorted(values.unique())
        if len(names) > MAX_GROUPS:
            raise PredictionTableError(
                f"column {column!r} has {len(names)} different values, more than the {MAX_GROUPS} that can be told "
                "apart; put them into classes"
            )
        found[column] = {name: _of_group(frame.loc[values == name], kind, settings) for name in names}
    return found


def _of_group(rows: pd.DataFrame, kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    scores = score_table(rows.reset_index(drop=True), kind, **settings)
    return {"small": scores["num_cases"] < MIN_GROUP_CASES, **scores}


def subgroup_table(subgroups: dict[str, dict[str, Any]]) -> bytes:
    """All figures as one CSV table, a row for each.

    Args:
        subgroups: `{split: {column: {value: figures}}}`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["split", "column", "value", "figure", "estimate", "low", "high", "num_slides", "num_cases", "small", "note"]
    )
    for split, columns in subgroups.items():
        for column, groups in columns.items():
            for value, scores in groups.items():
                counts = (scores["num_slides"], scores["num_cases"], "yes" if scores["small"] else "no")
                for name in (key.removesuffix("_ci") for key in scores if key.endswith("_ci")):
                    low, high = scores[f"{name}_ci"] or ("", "")
                    known = "" if scores[name] is None else scores[name]
                    note = scores["notes"].get(name, scores["notes"].get(f"{name}_ci", ""))
                    writer.writerow([split, column, value, name, known, low, high, *counts, note])
    return text.getvalue().encode()
