"""`span heatmap`: which patches did a checkpoint look at, and where do they lie on the slide?

For each slide a folder with the scores of all patches as a table, the default one over the slide as PNG and as
pyramidal TIFF, all of them as GeoJSON for QuPath, and a gallery of the patches with the highest scores. A folder that
is complete, from the same checkpoint, slide and settings, is left as it is. A slide that fails is a row of
`heatmaps.csv` and makes the exit code 1; the others are drawn all the same.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from span_sparse.cli.heatmap_job import HeatmapJob
    from span_sparse.datasets.slide_dataset import SlideItem
    from span_sparse.heatmaps import ColourScale, IndexRow, SlideHeatmap

DESCRIPTION = "Show where a model looked: scores of patches as tables, pictures over the slides, GeoJSON for QuPath."


def build_parser() -> ArgumentParser:
    """The options of `span heatmap`."""
    parser = ArgumentParser(prog="span heatmap", description=DESCRIPTION)
    add = parser.add_argument
    add("--config", action="config", help="YAML file with these options")
    add("--checkpoint", type=Path, required=True, help="checkpoint written by `lightning fit`")
    add("--store", type=Path, required=True, help="feature store written by `span extract`")
    add("--slides", type=Path | None, default=None, help="folder of the slide files; without it pictures are on white")
    add("--cohort", type=Path | None, default=None, help="CSV of the slides; default: the whole store")
    add("--output", type=Path, required=True, help="folder of the heatmaps, one folder a slide in it")
    add("--score", type=str | None, default=None, help="score that is drawn (default: attention, of segmenters prob)")
    add("--one-scale", action="store_true", help="the same colours for all slides instead of a scale for each")
    add("--split", type=str | None, default=None, help="only slides of this split of the cohort")
    add("--split-column", type=str, default="split", help="column of the splits")
    add("--label", type=str, default="label", help="column of the class names, for --top")
    add("--limit", type=int | None, default=None, help="only the first N slides")
    add("--top", type=int | None, default=None, help="only the N slides with the largest loss, worst first")
    add("--faithfulness", action="store_true", help="measure whether the answer hangs on the patches with high scores")
    add("--into-store", type=str | None, default=None, help="also keep the scores in the store, under this name")
    add("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    add("--overwrite", action="store_true", help="do again what is there")
    return parser


def run(args: Namespace) -> int:
    """Draws; 0 when every slide has its folder, 1 when one failed.

    Raises:
        SpanError: bad input that concerns all slides.
        OSError: the output folder cannot be written.
    """
    from rich.console import Console

    from span_sparse.cli.device_option import device_of
    from span_sparse.cli.heatmap_job import HeatmapJob
    from span_sparse.cli.heatmap_slides import chosen_slides
    from span_sparse.errors import ConfigError, SlideError
    from span_sparse.heatmaps import FAILED, INDEX_FILE
    from span_sparse.store import FeatureStore
    from span_sparse.training.checkpoint import load_model

    for name in ("limit", "top"):
        if args[name] is not None and args[name] < 1:
            raise ConfigError(f"--{name} {args[name]}: expected at least 1")
    if args.slides is not None and not args.slides.is_dir():
        raise SlideError(f"{args.slides}: no such folder of slides; leave --slides out for pictures on white")
    _check_output(args.output)
    model = load_model(args.checkpoint)
    if args.faithfulness and model.task.kind == "segmentation":
        raise ConfigError("--faithfulness: a segmenter answers for each patch, there is no answer of the slide")
    model = model.to(device_of(args.device))
    store = FeatureStore(args.store)
    cohort, items = chosen_slides(args, store, model)
    present = [item.slide_id for item in items if store.has(item.slide_id)]
    if present:
        model.task.check_features(*store.common_identity(present), where=str(store.path))
    job = HeatmapJob(model, args.checkpoint, store, args.output, cohort, args.slides, args.score, args.overwrite)
    console = Console(stderr=True, highlight=False)
    if args.slides is None:
        console.print("no --slides: heatmaps on white, without a gallery of patches", markup=False)
    work = _Work(job, items)
    work.compute_and_draw(one_scale=args.one_scale)
    if args.into_store is not None:
        work.keep_in_store(args.into_store)
    if args.faithfulness:
        work.measure_faithfulness()
    rows = work.write_index()
    failed = [row for row in rows if row.status == FAILED]
    for row in failed:
        console.print(f"failed: {row.slide_id}: {row.error}", markup=False, soft_wrap=True)
    print(
        f"{len(rows) - len(failed)} of {len(rows)} slides have heatmaps in {args.output} "
        f"({work.num_resumed} were there already); index: {args.output / INDEX_FILE}"
    )
    return int(bool(failed))


def _check_output(folder: Path) -> None:
    """Refuse what cannot be written before hours of work; makes nothing, so that a refused run leaves nothing."""
    from span_sparse.errors import ConfigError

    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise ConfigError(f"--output {folder}: {there} is not a folder; choose another one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"--output {folder}: no right to write in {there}; choose another folder")


class _Work:
    """The slides of a run and what became of each."""

    def __init__(self, job: HeatmapJob, items: Sequence[SlideItem]) -> None:
        self.job, self.items = job, items
        self.errors: dict[str, str] = {}
        self.num_resumed = 0

    def compute_and_draw(self, *, one_scale: bool) -> None:
        """Scores and pictures; with one scale, the scores of all slides first."""
        from span_sparse.heatmaps import SCALE_FILE, ColourScale

        self.job.expect(self.items)
        if not one_scale:
            (self.job.output / SCALE_FILE).unlink(missing_ok=True)

            def both(item: SlideItem) -> None:
                heatmap = self.job.scores(item)
                self._draw(item, heatmap, ColourScale.of(heatmap.default_score, heatmap.score()))

            self._each("drawing", both)
            return
        scale = self._cohort_scale()
        if scale is not None:
            self._each("drawing", lambda item: self._draw(item, self.job.scores(item), scale))

    def _draw(self, item: SlideItem, heatmap: SlideHeatmap, scale: ColourScale) -> None:
        if self.job.is_done(item, scale):
            self.num_resumed += 1
            return
        self.job.draw(item, heatmap, scale)

    def _cohort_scale(self) -> ColourScale | None:
        """The scale of all slides that have scores; written to `scale.json`."""
        import numpy as np

        from span_sparse.files import write_atomically
        from span_sparse.heatmaps import SCALE_FILE, ColourScale

        parts: dict[str, list[np.ndarray]] = {}

        def collect(item: SlideItem) -> None:
            heatmap = self.job.scores(item)
            parts.setdefault(heatmap.default_score, []).append(heatmap.score())

        self._each("scores", collect)
        if not parts:
            return None
        ((score, values),) = parts.items()
        scale = ColourScale.of(score, np.concatenate(values), cohort=True)
        content = json.dumps({**scale.as_dict(), "num_slides": len(values)}, indent=1)
        write_atomically(self.job.output / SCALE_FILE, f"{content}\n".encode())
        return scale

    def keep_in_store(self, name: str) -> None:
        """Write every slide's scores into the store."""
        from span_sparse.store.scores import write_scores

        def write(item: SlideItem) -> None:
            heatmap = self.job.scores(item)
            about = {"checkpoint": heatmap.checkpoint, "default_score": heatmap.default_score}
            write_scores(self.job.store, item.slide_id, name, heatmap.names, heatmap.values, about)

        self._each("into the store", write)

    def measure_faithfulness(self) -> None:
        """Write `faithfulness.csv` and its picture."""
        import torch

        from span_sparse.heatmaps.faithfulness import Curves, removal_curves, write_faithfulness
        from span_sparse.training.explain import subset_answer

        rows: list[tuple[str, str, Curves]] = []

        def measure(item: SlideItem) -> None:
            heatmap, record = self.job.scores(item), self.job.store.read(item.slide_id)
            features = torch.from_numpy(record.features).float()
            answer = subset_answer(self.job.model, features, torch.from_numpy(record.grid))
            rows.append((item.slide_id, heatmap.default_score, removal_curves(answer, heatmap.score())))

        self._each("faithfulness", measure)
        if rows:
            write_faithfulness(self.job.output, rows)
            gains = [
                sum(curves.figures()[name] for _, _, curves in rows) / len(rows)
                for name in ("deletion_gain", "insertion_gain")
            ]
            print(f"faithfulness, mean gain over random order: deletion {gains[0]:.3f}, insertion {gains[1]:.3f}")

    def write_index(self) -> list[IndexRow]:
        """Write `heatmaps.csv` and return its rows."""
        from span_sparse.heatmaps import DONE, FAILED, IndexRow, folder_name, write_index

        rows = []
        for item in self.items:
            error = self.errors.get(item.slide_id, "")
            folder = "" if error else folder_name(item.slide_id)
            rows.append(IndexRow(item.slide_id, item.case_id, folder, FAILED if error else DONE, error))
        write_index(self.job.output, rows)
        return rows

    def _each(self, what: str, do: Callable[[SlideItem], None]) -> None:
        """Do something for every slide that has not failed; a failure is noted and stops nobody else."""
        import torch
        from rich.progress import track

        from span_sparse.errors import SpanError

        alive = [item for item in self.items if item.slide_id not in self.errors]
        for item in track(alive, description=what):
            try:
                do(item)
            except (SpanError, OSError) as error:
                self.errors[item.slide_id] = str(error)
            except (MemoryError, torch.OutOfMemoryError):
                self.errors[item.slide_id] = "not enough memory for this slide; use another --device"
