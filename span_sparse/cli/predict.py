"""`span predict SLIDE`: what does a checkpoint say of one slide, and because of which patches?

The checkpoint says which encoder and which patches it was trained on, and the slide is cut and encoded in just that
way, by the engine of `span extract`; features of any other encoder are refused. Then the verdict is printed, and drawn
as `span heatmap` does. Store and heatmaps lie in the output folder; the same command again does only what is missing,
and several slides may share the folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from span_sparse.cli.tissue_option import TISSUE_HELP, tissue_settings

if TYPE_CHECKING:
    from span_sparse.cohort import CohortTable
    from span_sparse.extract.encoder import PatchEncoder
    from span_sparse.heatmaps import SlideHeatmap
    from span_sparse.training import TaskModule

DESCRIPTION = "Apply a checkpoint to one slide file: extraction, verdict, heatmap and GeoJSON in one command."


STORE = "store"
"""Of the features, below the output folder."""


def build_parser() -> ArgumentParser:
    """The options of `span predict`."""
    parser = ArgumentParser(prog="span predict", description=DESCRIPTION)
    add = parser.add_argument
    add("slide", type=Path, help="slide file")
    add("--checkpoint", type=Path, required=True, help="checkpoint written by `lightning fit`")
    add("--output", type=Path, required=True, help="folder for features, heatmap, GeoJSON")
    add("--mpp", type=float | None, default=None, help="µm per pixel of level 0, where the slide does not say it")
    add("--encoder", type=str | None, default=None, help="program *.pt2, *.ts, if the features were made by one")
    add("--encoder-weights", type=Path | None, default=None, help="file or folder of its weights (default: the cache)")
    add("--trust-program", action="store_true", help="load an --encoder *.pt2 or *.ts, which can run its author's code")
    add("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N, for encoder and model")
    add("--workers", type=int, default=1, help="processes that read the slide")
    tissue_help = f"{TISSUE_HELP}; take those of the training"
    add("--tissue", type=dict[str, bool | float | str], default={}, help=tissue_help)
    add("--min-tissue", type=float, default=0.5, help="least share of tissue of a patch, in (0, 1]")
    add("--allow-upsampling", action="store_true", help="take a slide coarser than the target resolution")
    add("--score", type=str | None, default=None, help="score that is drawn (default: attention, of segmenters prob)")
    add("--overwrite", action="store_true", help="do again what is there")
    return parser


def run(args: Namespace) -> int:
    """Predicts; 0.

    Raises:
        SpanError: bad input.
        OSError: the output folder cannot be written.
    """
    from span_sparse.cli.checkpoint_encoder import checkpoint_encoder
    from span_sparse.cli.device_option import device_of
    from span_sparse.cli.heatmap_job import HeatmapJob
    from span_sparse.datasets.slide_dataset import SlideItem
    from span_sparse.errors import SlideError
    from span_sparse.heatmaps import DONE, ColourScale, IndexRow, folder_name, write_index
    from span_sparse.store import FeatureStore
    from span_sparse.training.checkpoint import load_model

    if not args.slide.is_file():
        raise SlideError(f"{args.slide}: no such file")
    if folder_name(args.slide.stem).split(".")[0] == STORE:  # beside it lie STORE.tissue and STORE.qc
        raise SlideError(f"{args.slide}: a slide of this name would lie where the features are; rename the file")
    model = load_model(args.checkpoint)
    device = device_of(args.device)
    encoder = checkpoint_encoder(
        model.task, args.checkpoint, encoder=args.encoder, weights=args.encoder_weights,
        trust_program=args.trust_program, device=device,
    )  # fmt: skip
    cohort = _cohort_of_one(args.slide, args.mpp)
    store = args.output / STORE
    _extract(args, cohort, store, model, encoder)
    (slide_id,) = cohort.slide_ids
    job = HeatmapJob(
        model.to(device), args.checkpoint, FeatureStore(store), args.output, cohort, args.slide.parent, args.score,
        args.overwrite,
    )  # fmt: skip
    item = SlideItem(slide_id, cohort.case_of(slide_id), targets=(float("nan"),) * len(model.task.target_names))
    heatmap = job.scores(item)
    scale = ColourScale.of(heatmap.default_score, heatmap.score())
    if not job.is_done(item, scale):
        job.draw(item, heatmap, scale)
    others = [one for one in job.complete_slides() if one.slide_id != slide_id]
    write_index(args.output, [IndexRow(slide_id, item.case_id, folder_name(slide_id), DONE), *others])
    print(f"{slide_id}: {verdict(model, heatmap)}")
    print(f"{len(heatmap.grid)} patches; heatmap, GeoJSON and scores: {job.folder(item)}")
    return 0


def verdict(model: TaskModule, heatmap: SlideHeatmap) -> str:
    """What the model says of a slide, in words with numbers."""
    predicted = dict(heatmap.predicted)
    kind = model.task.kind
    if kind == "classification":
        name = predicted["y_pred"]
        others = ", ".join(
            f"{key.removeprefix('prob_')} {value:.3f}" for key, value in predicted.items() if key != "y_pred"
        )
        return f"{name} (probability {predicted[f'prob_{name}']:.3f}, the largest of {others})"
    if kind == "multi_label":
        answers = (f"{key.removeprefix('prob_')} {value:.3f}" for key, value in predicted.items())
        return f"probabilities: {', '.join(answers)}"
    if kind == "regression":
        return f"{model.task.column} {predicted['y_pred']:.4g}"
    if kind == "survival":
        survival = ", ".join(
            f"{value:.3f} to outlive {key.removeprefix('survival_')}"
            for key, value in predicted.items()
            if key.startswith("survival_")
        )
        return f"risk {predicted['risk']:.4g}" + (f" (probability {survival})" if survival else "")
    lattice = heatmap.lattice
    all_mm2 = len(heatmap.grid) * (lattice.patch_px0 * lattice.slide_mpp / 1000) ** 2
    shares = ", ".join(
        f"{key.removeprefix('share_')} {value:.1%} of the patches (about {value * all_mm2:.3g} mm²)"
        for key, value in predicted.items()
    )
    threshold = getattr(model, "decision_threshold", None)
    at = f", decision threshold {float(threshold):.2f}" if threshold is not None and model.task.num_classes == 2 else ""
    return f"{shares}{at}"


def _cohort_of_one(slide: Path, mpp: float | None) -> CohortTable:
    """A table of one slide, named by the file's stem."""
    import math

    import pandas as pd

    from span_sparse.cohort import CASE_ID, MPP, PATH, SLIDE_ID, CohortTable
    from span_sparse.errors import ConfigError

    if mpp is not None and not 0 < mpp < math.inf:
        raise ConfigError(f"--mpp {mpp}: expected a positive number of µm per pixel such as 0.25")
    columns = {SLIDE_ID: slide.stem, CASE_ID: slide.stem, PATH: slide.name}
    frame = pd.DataFrame({name: pd.Series([value], dtype=object) for name, value in columns.items()})
    frame[MPP] = math.nan if mpp is None else mpp
    return CohortTable(slide, frame)


def _extract(args: Namespace, cohort: CohortTable, store: Path, model: TaskModule, encoder: PatchEncoder) -> None:
    """The slide's features into the store.

    Raises:
        SlideError: the slide cannot be used.
    """
    from rich.console import Console

    from span_sparse.errors import SlideError
    from span_sparse.extract.pipeline import extract_cohort
    from span_sparse.extract.process_list import FAILED

    (status,) = extract_cohort(
        cohort,
        args.slide.parent,
        store,
        spec=model.task.lattice,
        encoder=encoder,
        workers=args.workers,
        overwrite=args.overwrite,
        tissue=tissue_settings(args.tissue),
        min_tissue_fraction=args.min_tissue,
        allow_upsampling=args.allow_upsampling,
        console=Console(stderr=True, highlight=False),
    )
    if status.status == FAILED:
        raise SlideError(status.error)
