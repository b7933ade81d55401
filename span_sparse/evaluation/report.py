"""Which files does an evaluation leave behind?

    predictions.csv     always
    metrics.json        with labels: `{"<split>": {...}}`, and what the caller adds; `subgroups` where asked for
    subgroups.csv       the same subgroups as a table
    roc, confusion, calibration (.png, .svg), reliability.csv     of a classification with labels
    kaplan_meier (.png, .svg)                                     of a survival table, where there is a cut for risks

Pictures show one split. Files of an earlier evaluation in the same folder that this one does not write are removed: a
stale ROC curve beside new predictions is worse than none. `metrics.json` comes last, so that its presence says the
folder is complete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd
from matplotlib.figure import Figure

from span_sparse.errors import PredictionTableError
from span_sparse.evaluation.calibration_figure import calibration_figure
from span_sparse.evaluation.estimates import DEFAULT_RESAMPLES
from span_sparse.evaluation.figures import confusion_figure, roc_figure, write_figure
from span_sparse.evaluation.measures import is_labelled
from span_sparse.evaluation.predictions import PredictionTable, parse_predictions
from span_sparse.evaluation.scores import CLASSIFICATION, score_table
from span_sparse.evaluation.statistics import reliability_table
from span_sparse.evaluation.subgroups import check_column, subgroup_scores, subgroup_table
from span_sparse.evaluation.survival_figure import kaplan_meier_figure, risk_groups
from span_sparse.evaluation.thresholds import choose_risk_cut, choose_threshold
from span_sparse.files import write_atomically

PREDICTIONS: Final = "predictions.csv"
METRICS_FILE: Final = "metrics.json"
ROC: Final = "roc.png"
CONFUSION: Final = "confusion.png"
CALIBRATION: Final = "calibration.png"
KAPLAN_MEIER: Final = "kaplan_meier.png"
RELIABILITY: Final = "reliability.csv"
SUBGROUPS: Final = "subgroups.csv"
_PICTURES: Final = (ROC, CONFUSION, CALIBRATION, KAPLAN_MEIER)


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


def write_evaluation(output_dir: Path, table: PredictionTable, **settings: Any) -> EvaluationFiles:
    """`write_results` of the predictions of a classification.

    Args:
        output_dir: created when absent; files of an earlier evaluation are replaced.
        table: predictions, with labels or without.
        settings: of `write_results`.
    """
    return write_results(output_dir, table.frame, CLASSIFICATION, **settings)


def write_results(
    output_dir: Path,
    frame: pd.DataFrame,
    kind: str,
    *,
    figure_split: str | None = None,
    by: Sequence[str] = (),
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
    about: Mapping[str, Any] | None = None,
) -> EvaluationFiles:
    """Write the predictions of a task of any kind, their figures and pictures.

    Args:
        output_dir: created when absent; files of an earlier evaluation are replaced.
        frame: the columns of its kind (`predictions.py`, `measures.py`), and those of `by`.
        kind: of the task.
        figure_split: the split the pictures show; by default `test`, else `val`, else the first with labels.
        by: columns whose values are subgroups.
        resamples: drawings of patients behind the intervals.
        seed: of the drawings.
        level: of the intervals.
        about: further entries of `metrics.json`, for example which checkpoint was evaluated.

    Raises:
        PredictionTableError: the table breaks its contract, `figure_split` is not a split with labels, or a column of
            `by` is missing or cannot be used.
        OSError: the folder cannot be written.
    """
    source = str(output_dir / PREDICTIONS)
    for column in by:
        check_column(column, source)
    table = parse_predictions(frame, source=source) if kind == CLASSIFICATION else None
    frame = frame if table is None else table.frame
    known = is_labelled(frame, kind) if table is None else table.true_index >= 0
    splits = list(dict.fromkeys(frame["split"]))
    labelled = list(dict.fromkeys(frame.loc[known, "split"]))
    shown = _figure_split(source, labelled, figure_split)
    notes = [f"split {split}: no labels, so no metrics" for split in splits if split not in labelled]
    settings: dict[str, Any] = {"resamples": resamples, "seed": seed, "level": level}
    if table is not None:
        settings["threshold"] = choose_threshold(table)
    rows = {split: frame.loc[frame["split"] == split].reset_index(drop=True) for split in labelled}
    metrics = {split: score_table(rows[split], kind, **settings) for split in labelled}
    subgroups = {split: subgroup_scores(rows[split], kind, by, **settings) for split in labelled if by}
    pictures: list[tuple[str, Figure | None, str]] = []
    if kind == "survival":
        pictures += _survival(frame, rows, shown, metrics, notes)
    elif table is not None and shown is not None:
        pictures += _classification(table.of_split(shown), shown, metrics, resamples, seed, level)

    (output_dir / METRICS_FILE).unlink(missing_ok=True)
    written = [output_dir / PREDICTIONS]
    write_atomically(written[0], frame.to_csv(index=False, lineterminator="\n").encode())
    for name, figure, reason in pictures:
        if figure is None:
            notes.append(f"split {shown}: {reason}, so no {name}")
        else:
            written.extend(write_figure(figure, output_dir / name))
    if table is not None and labelled:
        written.append(_write(output_dir / RELIABILITY, _reliability(table, labelled)))
    if subgroups:
        written.append(_write(output_dir / SUBGROUPS, subgroup_table(subgroups)))
    remove_stale(output_dir, written)
    if metrics:
        content = {**metrics, **({"subgroups": subgroups} if subgroups else {}), **(about or {})}
        text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
        written.append(_write(output_dir / METRICS_FILE, f"{text}\n".encode()))
    return EvaluationFiles(output_dir, tuple(written), metrics, tuple(notes))


def _classification(
    slides: PredictionTable, split: str, metrics: dict[str, Any], resamples: int, seed: int, level: float
) -> list[tuple[str, Figure | None, str]]:
    """Name, picture, and why there is none."""
    reason = metrics[split]["notes"].get("auc", "")
    return [
        (ROC, roc_figure(slides, title=f"ROC, {split} split", resamples=resamples, seed=seed, level=level), reason),
        (CONFUSION, confusion_figure(slides, title=f"Confusion, {split} split"), reason),
        (CALIBRATION, calibration_figure(slides, title=f"Calibration, {split} split", level=level), reason),
    ]


def _survival(
    frame: pd.DataFrame, rows: dict[str, pd.DataFrame], shown: str | None, metrics: dict[str, Any], notes: list[str]
) -> list[tuple[str, Figure | None, str]]:
    """Adds the groups of risk to the metrics; name, picture, and why there is none."""
    cut = choose_risk_cut(frame)
    if cut is None:
        if rows:
            notes.append("no labelled cases of split val or train to take the median risk of, so no groups of risk")
        return []
    for split, members in rows.items():
        metrics[split]["risk_groups"] = risk_groups(members, cut)
    if shown is None:
        return []
    title = f"Groups of predicted risk, {shown} split"
    reason = "all cases are on one side of the median risk"
    return [(KAPLAN_MEIER, kaplan_meier_figure(rows[shown], cut, title=title), reason)]


def _reliability(table: PredictionTable, splits: Sequence[str]) -> bytes:
    parts = []
    for split in splits:
        bins = reliability_table(table.of_split(split))
        bins.insert(0, "split", split)
        parts.append(bins)
    return pd.concat(parts, ignore_index=True).to_csv(index=False, lineterminator="\n").encode()


def _figure_split(source: str, labelled_splits: Sequence[str], asked: str | None) -> str | None:
    if asked is not None and asked not in labelled_splits:
        found = ", ".join(labelled_splits) or "none"
        raise PredictionTableError(f"{source}: no split {asked!r} with labels to draw; splits with labels: {found}")
    preferred = [split for split in (asked, "test", "val") if split in labelled_splits]
    return next(iter((*preferred, *labelled_splits)), None)


def _write(path: Path, content: bytes) -> Path:
    write_atomically(path, content)
    return path


def remove_stale(output_dir: Path, written: Sequence[Path]) -> None:
    """Remove the files of an earlier evaluation that this one has not written."""
    pictures = [(output_dir / name).with_suffix(suffix) for name in _PICTURES for suffix in (".png", ".svg")]
    for path in (*pictures, output_dir / RELIABILITY, output_dir / SUBGROUPS):
        if path not in written:
            path.unlink(missing_ok=True)
