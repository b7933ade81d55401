"""How good is a model over all folds and seeds?

`summary.csv`            one row per run: state, best epoch, figures
`summary.json`           mean, standard deviation (n - 1) and number of runs of each figure; pooled figures by seed
`pooled_seed<seed>/`     test predictions of all folds in one table, their figures with intervals by patient, pictures

The mean over folds says how a training of this size does on average; its sd is no interval, because the folds share
training patients. The pooled table has every patient's prediction by a model that had not seen him, and its bootstrap
over patients is one. It needs folds whose test sides do not overlap: a slide must not count twice. Its scores come from
several models; where these are calibrated differently a pooled AUC or C-index is lower than the mean of the folds.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from span_sparse.cli.run_summary import FINISHED, RunSummary, read_run
from span_sparse.errors import PredictionTableError
from span_sparse.evaluation import write_results
from span_sparse.files import write_atomically

if TYPE_CHECKING:
    from span_sparse.cli.crossval import Plan

SUMMARY_TABLE: Final = "summary.csv"
SUMMARY_FILE: Final = "summary.json"
_TEXT_COLUMNS: Final = ("slide_id", "case_id", "fold", "split")
_NUM_NAMED: Final = 3


def summarise(plan: Plan, *, resamples: int) -> int:
    """Writes the summary of the finished runs and prints it; 1 if a run is not finished.

    Raises:
        ConfigError: a run was trained on another split than the table's of today.
    """
    from span_sparse.cli.crossval import is_finished

    finished = {pair: is_finished(plan, *pair) for pair in plan.runs}
    runs = {pair: read_run(plan.folder(*pair)) for pair in plan.runs}
    done = {pair: one for pair, one in runs.items() if finished[pair]}
    notes = _unfinished(runs)
    pooled: dict[str, Any] = {}
    for seed in plan.seeds:
        figures, note = _pool(plan, seed, done, resamples)
        notes += [note] if note else []
        pooled |= {str(seed): figures} if figures else {}
    means = {side: _means([getattr(one, side) for one in done.values()]) for side in ("val", "test")}
    content = {
        "folds": list(plan.folds),
        "seeds": list(plan.seeds),
        "num_runs": len(runs),
        "num_finished": len(done),
        "mean_over_runs": means,
        "pooled_by_seed": pooled,
        "notes": notes,
    }
    _write_table(plan.output / SUMMARY_TABLE, runs)
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(plan.output / SUMMARY_FILE, f"{text}\n".encode())
    _print(plan, done, means["test"], pooled, notes)
    return 0 if len(done) == len(runs) else 1


def _unfinished(runs: dict[tuple[str, int], RunSummary]) -> list[str]:
    missing = [f"{one.path.name} ({one.status})" for one in runs.values() if one.status != FINISHED]
    if not missing:
        return []
    named = ", ".join(missing[:_NUM_NAMED]) + (", ..." if len(missing) > _NUM_NAMED else "")
    return [
        f"{len(missing)} of {len(runs)} runs are not finished: {named}; the same command without --summarise goes on"
    ]


def _pool(
    plan: Plan, seed: int, done: dict[tuple[str, int], RunSummary], resamples: int
) -> tuple[dict[str, Any], str | None]:
    """Figures of all folds' test predictions together, or why there are none."""
    runs = [done[fold, seed] for fold in plan.folds if (fold, seed) in done]
    if len(runs) < len(plan.folds):
        return {}, f"seed {seed}: not pooled, {len(plan.folds) - len(runs)} of its folds are not finished"
    kinds = {one.task for one in runs}
    paths = [one.path / "predictions.csv" for one in runs]
    absent = [path for path in paths if not path.exists()]
    if absent or len(kinds) != 1:
        return {}, f"seed {seed}: not pooled, {f'{absent[0]} is missing' if absent else 'the folds differ in task'}"
    kind = kinds.pop()
    try:
        frames = [_read(path, kind) for path in paths]
        if any(list(frame.columns) != list(frames[0].columns) for frame in frames):
            raise PredictionTableError("the folds' predictions.csv have different columns (other classes?)")
        table = pd.concat(frames, ignore_index=True)
        repeated = table.loc[table["slide_id"].duplicated(), "slide_id"]
        if len(repeated):
            folds = ", ".join(table.loc[table["slide_id"] == repeated.iloc[0], "fold"])
            return {}, f"seed {seed}: not pooled, slide {repeated.iloc[0]!r} is tested in several folds ({folds})"
        about = {"pooled": {"seed": seed, "folds": list(plan.folds)}}
        folder = plan.output / f"pooled_seed{seed}"
        written = write_results(folder, table, kind, resamples=resamples, about=about)
    except PredictionTableError as error:
        return {}, f"seed {seed}: not pooled, {error}"
    return written.metrics.get("test", {}), None


def _read(path: Path, kind: str) -> pd.DataFrame:
    """The test side of a prediction table; ids stay text."""
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        frame = frame.loc[frame["split"] == "test"]
        if kind != "classification":
            for column in frame.columns.difference(list(_TEXT_COLUMNS)):
                frame[column] = pd.to_numeric(frame[column])
    except (OSError, ValueError, KeyError) as error:
        raise PredictionTableError(f"{path} is damaged: {error}") from error
    return frame


def _means(figures: Sequence[Any]) -> dict[str, dict[str, float | int | None]]:
    names = dict.fromkeys(name for one in figures for name in one)
    values = {name: [one[name] for one in figures if name in one] for name in names}
    return {
        name: {
            "mean": statistics.fmean(numbers),
            "sd": statistics.stdev(numbers) if len(numbers) > 1 else None,
            "num_runs": len(numbers),
        }
        for name, numbers in values.items()
    }


def _write_table(path: Path, runs: dict[tuple[str, int], RunSummary]) -> None:
    rows: list[dict[str, Any]] = []
    for (fold, seed), one in runs.items():
        figures = {f"{side}_{name}": value for side in ("val", "test") for name, value in getattr(one, side).items()}
        facts = {"fold": fold, "seed": seed, "status": one.status, "best_epoch": one.best_epoch}
        rows.append({**facts, **(figures if one.status == FINISHED else {})})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def _print(
    plan: Plan,
    done: dict[tuple[str, int], RunSummary],
    means: dict[str, Any],
    pooled: dict[str, Any],
    notes: Sequence[str],
) -> None:
    for name, entry in means.items():
        spread = "" if entry["sd"] is None else f" ± {entry['sd']:.3f}"
        print(f"test {name}: {entry['mean']:.3f}{spread} (mean ± sd of {entry['num_runs']} runs)")
    name = next((one.headline for one in done.values() if one.headline), None)
    for seed, figures in pooled.items():
        if figures.get(name) is not None:
            interval = figures.get(f"{name}_ci")
            between = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
            counts = f"{figures['num_slides']} slides, {figures['num_cases']} cases"
            print(f"pooled test {name}, seed {seed}: {figures[name]:.3f}{between} ({counts})")
    for note in notes:
        print(f"note: {note}")
    print(f"written: {SUMMARY_TABLE}, {SUMMARY_FILE} in {plan.output}")
