"""Is one model better than another, or was it lucky with these cases?

1. The tables must hold the same slides, of the same cases, with the same labels; anything else is refused, because a
   difference between two cohorts says nothing about two models.
2. Cases are drawn with replacement, the same ones for all models; the difference of each figure is computed in every
   drawing. What makes a case hard makes it hard for both, so differences vary far less than the figures do, and two
   overlapping intervals say nothing against a difference.
3. The interval is that of the percentiles; p is twice the smaller share of drawings on either side of zero, one drawing
   added (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 4.4): never 0, at least
   2 / (drawings + 1).
4. For the AUC of two classes also the test of DeLong, which takes rows for independent: with several slides of a case
   it is done on the mean probability of each case. Its variance is one of many cases: with so few that they give no
   interval by drawing either, it is not done.

Figures that describe one model alone (at its own decision threshold) are not compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from span_sparse.errors import PredictionTableError
from span_sparse.evaluation import bootstrap
from span_sparse.evaluation.any_table import read_any_predictions
from span_sparse.evaluation.estimates import (
    DEFAULT_RESAMPLES,
    Measures,
    check_settings,
    interval_of,
    sample_values,
)
from span_sparse.evaluation.measures import MEASURES, is_labelled, suffixes
from span_sparse.evaluation.predictions import CASE_ID, SLIDE_ID, SPLIT, PredictionTable, parse_predictions
from span_sparse.evaluation.scores import CLASSIFICATION
from span_sparse.evaluation.statistics import classification_measures
from span_sparse.metrics import delong_test

_TRUTH: Final = {
    CLASSIFICATION: ("y_true",),
    "regression": ("y_true",),
    "survival": ("time", "event"),
    "multi_label": ("true_",),
    "segmentation": (),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same cases.

    Attributes:
        first: file of the one model.
        second: file of the other.
        figures: by name `first, second, difference` (second minus first), `difference_ci` and `p`, None where they
            cannot be computed.
        delong: `auc_first, auc_second, difference, standard_error, z, p, unit, num_cases` for two classes with enough
            cases (`bootstrap.why_not`), else None.
        num_drawings: of cases, behind the intervals and p of `figures`; 0 where none were made.
        notes: what was left out and why, or what to mind.
    """

    first: str
    second: str
    figures: dict[str, dict[str, Any]]
    delong: dict[str, Any] | None
    num_drawings: int
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "first": self.first,
            "second": self.second,
            "figures": self.figures,
            "delong": self.delong,
            "num_drawings": self.num_drawings,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class ComparedTables:
    """Tables of several models with the same slides in the same order.

    Attributes:
        paths: of the tables.
        frames: their labelled rows of one split.
        kind: of the task.
        split: which.
    """

    paths: tuple[Path, ...]
    frames: tuple[pd.DataFrame, ...]
    kind: str
    split: str


def read_compared(paths: Sequence[Path], split: str | None = None) -> ComparedTables:
    """Read tables that can be compared.

    Args:
        paths: two or more files.
        split: which split; by default `test`, or the only one there is.

    Raises:
        PredictionTableError: a table cannot be used, or they differ in kind, classes, slides, cases or labels.
    """
    tables = [read_any_predictions(path) for path in paths]
    (first, kind), source = tables[0], paths[0]
    chosen = _split(first, source, split)
    rows = [_rows(frame, path, chosen) for (frame, _), path in zip(tables, paths, strict=True)]
    for (_, other_kind), path, frame in zip(tables[1:], paths[1:], rows[1:], strict=True):
        if other_kind != kind:
            raise PredictionTableError(f"{path} is of a {other_kind} task, {source} of a {kind} task; they must agree")
        _refuse_differences(rows[0], source, frame, path, kind)
    frames = [frame.loc[rows[0].index].reset_index() for frame in rows]
    known = is_labelled(frames[0], kind) if kind != CLASSIFICATION else (frames[0]["y_true"] != "").to_numpy()
    if not known.any():
        raise PredictionTableError(f"{source}: split {chosen} has no labels; there is nothing to compare")
    kept = tuple(frame.loc[known].reset_index(drop=True) for frame in frames)
    return ComparedTables(tuple(paths), kept, kind, chosen)


def compare(
    tables: ComparedTables, *, resamples: int = DEFAULT_RESAMPLES, seed: int = 0, level: float = 0.95
) -> list[Comparison]:
    """Every further model against the first.

    Args:
        tables: of two models or more.
        resamples: drawings of cases.
        seed: of the drawings.
        level: of the intervals.

    Raises:
        ValueError: `resamples` negative or `level` not between 0 and 1.
    """
    check_settings(resamples, level)
    measures = [_measures(frame, tables.kind) for frame in tables.frames]
    reason = bootstrap.why_not(measures[0].true_index, measures[0].case_index) if resamples else "not asked for"
    drawings: list[dict[str, NDArray[np.float64]]] = []
    if reason is None:
        drawn = bootstrap.draw_cases(measures[0].true_index, measures[0].case_index, resamples=resamples, seed=seed)
        drawings = [bootstrap.of_all(one.compute, drawn.slide_weights) for one in measures]
    notes = [] if reason is None else [f"no intervals and no p: {reason}"]
    values = [sample_values(one) for one in measures]
    found = []
    for number in range(1, len(measures)):
        figures = {}
        for name in (name for name in measures[0].names if name in measures[number].names):
            pair = (values[0][name], values[number][name])
            figures[name] = _difference(*pair, _minus(drawings, number, name), level)
        delong, remarks = _delong(tables.frames[0], tables.frames[number], tables.kind)
        first, second = str(tables.paths[0]), str(tables.paths[number])
        num_drawings = resamples if reason is None else 0
        found.append(Comparison(first, second, figures, delong, num_drawings, (*notes, *remarks)))
    return found


def _split(frame: pd.DataFrame, source: Path, asked: str | None) -> str:
    there = list(dict.fromkeys(frame[SPLIT]))
    chosen = asked or ("test" if "test" in there else there[0] if len(there) == 1 else None)
    if chosen not in there:
        raise PredictionTableError(
            f"{source}: no split {asked or 'test'!r}; choose with --split one of {', '.join(there)}"
        )
    return str(chosen)


def _rows(frame: pd.DataFrame, path: Path, split: str) -> pd.DataFrame:
    rows = frame.loc[frame[SPLIT] == split]
    if rows.empty:
        raise PredictionTableError(f"{path}: no split {split!r}, found {', '.join(sorted(set(frame[SPLIT])))}")
    return rows.set_index(SLIDE_ID)


def _refuse_differences(first: pd.DataFrame, source: Path, other: pd.DataFrame, path: Path, kind: str) -> None:
    only_first, only_other = first.index.difference(other.index), other.index.difference(first.index)
    if len(only_first) or len(only_other):
        example = f"{only_first[0]!r} only in {source}" if len(only_first) else f"{only_other[0]!r} only in {path}"
        raise PredictionTableError(
            f"{path}: its slides differ from those of {source}: {len(only_first)} are missing and {len(only_other)} "
            f"are new ({example}); compare models on the same slides"
        )
    own = [name for name in first.columns if name.startswith(("prob_", "true_", "hits_"))]
    theirs = [name for name in other.columns if name.startswith(("prob_", "true_", "hits_"))]
    if own != theirs:
        raise PredictionTableError(f"{path}: has the columns {theirs}, {source} has {own}; the classes must agree")
    ours, known = _truth(first, kind), _truth(other.loc[first.index], kind)
    for name in ours.columns:
        differs = np.flatnonzero((ours[name].fillna("") != known[name].fillna("")).to_numpy())
        if len(differs):
            row = int(differs[0])
            pair = f"{ours[name].iloc[row]!r} and {known[name].iloc[row]!r}"
            raise PredictionTableError(
                f"{path}: column {name} differs from that of {source} for {len(differs)} slides, first "
                f"{first.index[row]!r}: {pair}; labels and cases must agree"
            )


def _truth(rows: pd.DataFrame, kind: str) -> pd.DataFrame:
    """What does not depend on the model: the case, and the labels or the number of annotated patches."""
    truth = [name for name in rows.columns if _TRUTH[kind] and name.startswith(_TRUTH[kind])]
    columns = {name: rows[name] for name in (CASE_ID, *truth)}
    if kind == "segmentation":
        annotated = {name: rows[f"hits_{name}"] + rows[f"misses_{name}"] for name in suffixes(rows, "hits_")}
        columns |= {f"hits_{name} + misses_{name}": values for name, values in annotated.items()}
    return pd.DataFrame(columns)


def _measures(frame: pd.DataFrame, kind: str) -> Measures:
    if kind == CLASSIFICATION:
        return classification_measures(parse_predictions(frame))
    return MEASURES[kind](frame)


def _minus(drawings: list[dict[str, NDArray[np.float64]]], number: int, name: str) -> NDArray[np.float64] | None:
    if not drawings or name not in drawings[0] or name not in drawings[number]:
        return None
    return drawings[number][name] - drawings[0][name]


def _difference(
    first: float | None, second: float | None, drawings: NDArray[np.float64] | None, level: float
) -> dict[str, Any]:
    difference = None if first is None or second is None else second - first
    found = {"first": first, "second": second, "difference": difference, "difference_ci": None, "p": None}
    if difference is None or drawings is None:
        return found
    interval, _ = interval_of(drawings, level)
    if interval is None:
        return found
    usable = drawings[~np.isnan(drawings)]
    side = min(int((usable <= 1e-12).sum()), int((usable >= -1e-12).sum()))  # models that agree differ by rounding
    return found | {"difference_ci": list(interval), "p": min(1.0, 2 * (side + 1) / (len(usable) + 1))}


def _delong(first: pd.DataFrame, second: pd.DataFrame, kind: str) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    if kind != CLASSIFICATION:
        return None, ()
    tables = parse_predictions(first), parse_predictions(second)
    if len(tables[0].class_names) != 2:
        return None, ("no DeLong test: it is for two classes",)
    positive, scores = _by_case(tables)
    several = len(positive) < tables[0].num_slides
    notes = ("DeLong takes rows for independent: done on the mean probability of each case",) if several else ()
    if not np.isin(positive, (0.0, 1.0)).all():
        return None, ("no DeLong test: slides of a case have different labels, and it takes rows for independent",)
    if len(np.unique(positive)) < 2:
        return None, ("no DeLong test: cases of one class only",)
    reason = bootstrap.why_not(positive.astype(np.int64), np.arange(len(positive)))
    if reason is not None:
        return None, (f"no DeLong test: {reason}",)
    test = delong_test(positive == 1, *scores)
    z = None if test.z != test.z else test.z
    return {
        "auc_first": test.aucs[0],
        "auc_second": test.aucs[1],
        "difference": test.difference,
        "standard_error": test.standard_error,
        "z": z,
        "p": test.p,
        "unit": "case" if several else "slide",
        "num_cases": len(positive),
    }, notes


def _by_case(tables: tuple[PredictionTable, PredictionTable]) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Mean label, and mean probability of the second class by each model, of every case."""
    case = tables[0].case_index
    slides = np.bincount(case)
    labels = np.bincount(case, weights=tables[0].true_index) / slides
    return labels, [np.bincount(case, weights=table.probabilities[:, 1]) / slides for table in tables]
