"""`span report`: what does an evaluation say, in one file that can be mailed, printed and opened in ten years?

Reads the folder that `span evaluate` (or a training run) wrote, and, where they are, the heatmaps of `span heatmap` and
the facts of the run that the checkpoint comes from. Needs neither the slides nor the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

DESCRIPTION = "Write an evaluation as one HTML file: figures with intervals, curves, the most wrong slides."

RUN_FOLDER_DEPTH = 3
"""Folders above a checkpoint in which its run may lie: `RUN/checkpoints/best.ckpt` and what loggers put between."""


def build_parser() -> ArgumentParser:
    """The options of `span report`."""
    parser = ArgumentParser(prog="span report", description=DESCRIPTION)
    parser.add_argument("--evaluation", type=Path, required=True, help="folder that `span evaluate --output` wrote")
    parser.add_argument("--heatmaps", type=Path | None, default=None, help="folder that `span heatmap --output` wrote")
    parser.add_argument("--output", type=Path | None, default=None, help="default: report.html in the evaluation")
    parser.add_argument("--pictures", type=int, default=24, help="slides shown as most wrong (default: 24)")
    return parser


def run(args: Namespace) -> int:
    """Writes the report; returns 0.

    Raises:
        SpanError: a folder cannot be shown.
    """
    from span_sparse.cli.run_files import ENVIRONMENT_FILE, RUN_FILE, read_json
    from span_sparse.errors import ConfigError
    from span_sparse.report import read_evaluation, read_heatmap_folder, write_report

    if args.pictures < 0:
        raise ConfigError(f"--pictures {args.pictures}: must be at least 0")
    evaluation = read_evaluation(args.evaluation)
    heatmaps = None if args.heatmaps is None else read_heatmap_folder(args.heatmaps)
    run_dir = _run_folder(args.evaluation, evaluation.metrics)
    output = args.output or args.evaluation / "report.html"
    num_bytes = write_report(
        output,
        evaluation,
        heatmaps,
        run=read_json(run_dir / RUN_FILE),
        environment=read_json(run_dir / ENVIRONMENT_FILE),
        num_pictures=args.pictures,
    )
    for remark in heatmaps.remarks if heatmaps else ():
        print(f"note: {remark}")
    print(f"{len(evaluation.frame)} slides; written: {output} ({num_bytes / 1e6:.1f} MB)")
    return 0


def _run_folder(evaluation: Path, metrics: dict[str, Any]) -> Path:
    """The evaluation itself when it is a run, else the run that the checkpoint lies in; need not have a `run.json`."""
    from span_sparse.cli.run_files import RUN_FILE

    about = metrics.get("run")
    checkpoint = about.get("checkpoint") if isinstance(about, dict) else None
    above = list(Path(checkpoint).parents)[:RUN_FOLDER_DEPTH] if isinstance(checkpoint, str) else []
    return next((folder for folder in (evaluation, *above) if (folder / RUN_FILE).is_file()), evaluation)
