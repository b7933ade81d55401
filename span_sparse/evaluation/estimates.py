"""How is a figure with its interval made of a table of any kind?

Every kind of table becomes `Measures`: the cases of its rows, and one function from weights of rows to figures. The
sample is the row of ones; drawings of cases are further rows; two models on the same cases get the same drawings. So
values, intervals, subgroups and comparisons rest on one definition of each figure.

What cannot be computed is `None`, with the reason in the notes: a fold with one class is an ordinary thing in a rare
disease and must not end a report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from span_sparse.evaluation import bootstrap
from span_sparse.evaluation.bootstrap import Compute

DEFAULT_RESAMPLES: Final = 2000
MIN_USABLE_SHARE: Final = 0.5
"""A figure that fewer drawings than this have gets no interval: the others are no sample of what could have been."""

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Measures:
    """What can be computed of the rows of a table.

    Attributes:
        names: of the figures, also of those that these rows do not allow.
        compute: the figures by name; without those that no drawing allows.
        case_index: case of each row, `[rows]`.
        true_index: class of each row that every drawing must have, `[rows]`; zeros without classes.
        notes: on figures, by name.
    """

    names: tuple[str, ...]
    compute: Compute
    case_index: NDArray[np.int64]
    true_index: NDArray[np.int64]
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Estimates:
    """Figures with intervals.

    Attributes:
        values: of each name, or None with a note.
        intervals: of each name, or None with a note under `<name>_ci`.
        notes: why something is None, or what to mind.
        resamples: drawings behind the intervals, 0 when there are none.
        num_redrawn: further drawings that lacked a class.
    """

    values: dict[str, float | None]
    intervals: dict[str, Interval | None]
    notes: dict[str, str]
    resamples: int
    num_redrawn: int

    def as_dict(self) -> dict[str, Any]:
        """`<name>` and `<name>_ci` of every figure, as plain JSON."""
        flat: dict[str, Any] = {}
        for name, value in self.values.items():
            interval = self.intervals[name]
            flat |= {name: value, f"{name}_ci": None if interval is None else list(interval)}
        return flat


def estimate(
    measures: Measures, *, resamples: int = DEFAULT_RESAMPLES, seed: int = 0, level: float = 0.95
) -> Estimates:
    """Figures of the sample, and percentile intervals over drawings of cases.

    Args:
        measures: of the table.
        resamples: drawings of cases; 0 for no intervals.
        seed: of the drawings.
        level: share of the drawings inside an interval, between 0 and 1.

    Raises:
        ValueError: `resamples` negative or `level` not between 0 and 1.
    """
    check_settings(resamples, level)
    notes = dict(measures.notes)
    values = sample_values(measures)
    for name in measures.names:
        if values[name] is None:
            notes.setdefault(name, "cannot be computed of these slides")
    num_rows = len(measures.case_index)
    reason = "no intervals were asked for" if resamples == 0 else "no labelled slides"
    drawings: dict[str, NDArray[np.float64]] = {}
    num_redrawn = used = 0
    if resamples and num_rows:
        reason = bootstrap.why_not(measures.true_index, measures.case_index)
    if reason is None:
        drawn = bootstrap.draw_cases(measures.true_index, measures.case_index, resamples=resamples, seed=seed)
        num_redrawn, used = drawn.num_redrawn, resamples
        drawings = bootstrap.of_all(measures.compute, drawn.slide_weights)
    intervals: dict[str, Interval | None] = {}
    for name in measures.names:
        intervals[name] = None
        if reason is not None or values[name] is None:
            notes[f"{name}_ci"] = reason or notes[name]
            continue
        intervals[name], note = interval_of(drawings[name], level)
        if note:
            notes[f"{name}_ci"] = note
    return Estimates(values, intervals, notes, used, num_redrawn)


def sample_values(measures: Measures) -> dict[str, float | None]:
    """Each figure of the sample itself, None where it cannot be computed."""
    num_rows = len(measures.case_index)
    found = measures.compute(np.ones((1, num_rows))) if num_rows else {}
    values = {name: float(found[name][0]) if name in found else np.nan for name in measures.names}
    return {name: None if np.isnan(value) else value for name, value in values.items()}


def interval_of(drawings: NDArray[np.float64], level: float) -> tuple[Interval | None, str | None]:
    """The interval, or why there is none, or what to mind."""
    usable = drawings[~np.isnan(drawings)]
    if len(usable) < MIN_USABLE_SHARE * len(drawings):
        return None, f"only {len(usable)} of {len(drawings)} drawings have this figure"
    interval = bootstrap.percentile_interval(usable, level)
    flat = interval[0] == interval[1]
    return interval, "every drawing gave the same value: the interval has no width and says too much" if flat else None


def check_settings(resamples: int, level: float) -> None:
    """Refuse settings that cannot be meant.

    Raises:
        ValueError: `resamples` negative or `level` not between 0 and 1.
    """
    if resamples < 0 or not 0 < level < 1:
        raise ValueError(f"expected resamples >= 0 and 0 < level < 1, got {resamples} and {level}")
