"""Which files does an evaluation leave behind?

`predictions.csv` always. With labels also `metrics.json` (`{"<split>": {...}}`, and what the caller adds), and for one
split `roc` and `confusion` as PNG and SVG. Files of an earlier evaluation in the same folder that this one does not
write are removed: a stale ROC curve beside new predictions is worse than none. `metrics.json` comes last, so that its
presence says the folder is complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from span_sparse.errors import PredictionTableError
from span_sparse.evaluation.figures import confusion_figure, roc_figure, write_figure
from span_sparse.evaluation.predictions import PredictionTable, write_predictions
from span_sparse.evaluation.statistics import DEFAULT_RESAMPLES, metrics_by_split
from span_sparse.files import write_atomically

PREDICTIONS: Final = "predictions.csv"
METRICS_FILE: Final = "metrics.json"
ROC: Final = "roc.png"
CONFUSION: Final = "confusion.png"


@dataclass(frozen=True, slots=True)
class EvaluationFiles:
    """What an evaluation wrote.

    Attributes:
        output_dir: the folder.
        paths: the files, in the order in which they were written.
        metrics: `{split: {...}}` of the splits with labels, as in `metrics.json`; empty without labels.
        notes: what was left out and why, one sentence each.
    """

    output_dir: Path
    paths: tuple[Path, ...]
    metrics: dict[str, dict[str, Any]]
    notes: tuple[str, ...]


def write_evaluation(
    output_dir: Path,
    table: PredictionTable,
    *,
    figure_split: str | None = None,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
    about: Mapping[str, Any] | None = None,
) -> EvaluationFiles:
    """Write predictions, metrics and pictures of a table.

    Args:
        output_dir: created when absent; files of an earlier evaluation are replaced.
        table: predictions, with labels or without.
        figure_split: the split the pictures show; by default `test`, else `val`, else the first with labels.
        resamples: drawings of patients behind the intervals.
        seed: of the drawings.
        level: of the intervals.
        about: further entries of `metrics.json`, for example which checkpoint was evaluated.

    Raises:
        PredictionTableError: `figure_split` is not a split of the table with labels.
        OSError: the folder cannot be written.
    """
    labelled_splits = table.labelled().splits
    shown = _figure_split(table, labelled_splits, figure_split)
    notes = [f"split {split}: no labels, so no metrics" for split in table.splits if split not in labelled_splits]
    metrics = metrics_by_split(_only(table, labelled_splits), resamples=resamples, seed=seed, level=level)
    written = [output_dir / PREDICTIONS]
    write_predictions(written[0], table.frame)
    (output_dir / METRICS_FILE).unlink(missing_ok=True)
    if shown is not None:
        slides = table.of_split(shown)
        roc = roc_figure(slides, title=f"ROC, {shown} split", resamples=resamples, seed=seed, level=level)
        confusion = confusion_figure(slides, title=f"Confusion, {shown} split")
        for figure, name in ((roc, ROC), (confusion, CONFUSION)):
            if figure is None:
                notes.append(f"split {shown}: {metrics[shown]['notes']['auc']}, so no {name}")
            else:
                written.extend(write_figure(figure, output_dir / name))
    remove_stale(output_dir, written)
    if metrics:
        text = json.dumps({**metrics, **(about or {})}, indent=2, allow_nan=False, ensure_ascii=False)
        write_atomically(output_dir / METRICS_FILE, f"{text}\n".encode())
        written.append(output_dir / METRICS_FILE)
    return EvaluationFiles(output_dir, tuple(written), metrics, tuple(notes))


def _figure_split(table: PredictionTable, labelled_splits: tuple[str, ...], asked: str | None) -> str | None:
    if asked is not None and asked not in labelled_splits:
        found = ", ".join(labelled_splits) or "none"
        raise PredictionTableError(
            f"{table.source}: no split {asked!r} with labels to draw; splits with labels: {found}"
        )
    preferred = [split for split in (asked, "test", "val") if split in labelled_splits]
    return next(iter((*preferred, *labelled_splits)), None)


def _only(table: PredictionTable, splits: Iterable[str]) -> PredictionTable:
    rows = table.frame["split"].isin(list(splits))
    return PredictionTable(table.frame.loc[rows].reset_index(drop=True), table.class_names, table.source)


def remove_stale(output_dir: Path, written: list[Path]) -> None:
    """Remove the pictures of an earlier evaluation that this one has not written."""
    for name in (ROC, CONFUSION):
        for path in ((output_dir / name).with_suffix(suffix) for suffix in (".png", ".svg")):
            if path not in written:
                path.unlink(missing_ok=True)
