"""Do heatmaps of the demo show what the model had to find? From slides to `scores.csv`, as a user goes.

Pointing game: the share of slides whose patch with the highest score lies inside a true focus, against the share of
patches that do (Zhang et al., Top-down Neural Attention, IJCV 2018).
"""

from __future__ import annotations

import csv
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import pytest

from span_sparse.cohort import read_cohort
from span_sparse.datasets.datamodule import SlideDataModule
from span_sparse.datasets.demo import DEMO_SPEC, SplitPlan, make_demo_cohort
from span_sparse.extract import StainTextureEncoder, extract_cohort
from span_sparse.heatmaps import read_scores
from span_sparse.models import SpanMilConfig
from span_sparse.training import SlideClassifier

PLAN = (SplitPlan("train", 0, 19), SplitPlan("val", 0, 1), SplitPlan("test", 0, 6))
"""38 slides to train, 12 to test; fewer do not teach the network what the classes are."""


def trained(root: Path) -> Path:
    """A checkpoint of the demo's network after few epochs."""
    cohort = make_demo_cohort(root, num_processes=2, progress=False, plan=PLAN)
    encoder = StainTextureEncoder(input_size_px=DEMO_SPEC.patch_size_px, mpp=DEMO_SPEC.target_mpp)
    store = root / "features.zarr"
    extract_cohort(read_cohort(cohort), root / "slides", store, spec=DEMO_SPEC, encoder=encoder, workers=2)
    lightning.seed_everything(0, verbose=False)
    network = SpanMilConfig(stages="111", embed_dim_div=2, input_norm=True, head_channels=32, head="pyramid_pooling")
    model = SlideClassifier(network, learning_rate=1e-3, weight_decay=1e-2, warm_up_epochs=2)
    trainer = lightning.Trainer(
        max_epochs=16, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0, gradient_clip_val=1.0,
    )  # fmt: skip
    trainer.fit(model, datamodule=SlideDataModule(store=str(store), cohort=str(cohort), batch_size=8))
    trainer.save_checkpoint(root / "c.ckpt", weights_only=True)
    return root / "c.ckpt"


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::lightning.fabric.utilities.warnings.PossibleUserWarning",  # advice about workers
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",  # lightning 2.6's use of torch
)
def test_the_highest_scores_lie_in_true_foci(command, tmp_path, capsys) -> None:
    root = tmp_path / "demo"
    checkpoint = trained(root)
    words = ["--checkpoint", checkpoint, "--store", root / "features.zarr", "--cohort", root / "cohort.csv"]
    output = tmp_path / "out"
    assert command("span", "heatmap", *words, "--split", "test", "--output", output) == 0
    foci: dict[str, set[tuple[int, int]]] = {}
    with (root / "foci.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            foci.setdefault(row["slide_id"], set()).add((int(row["row"]), int(row["col"])))
    label_of = read_cohort(root / "cohort.csv").labels("label")
    hits, chances = [], []
    for slide_id in pd.read_csv(output / "heatmaps.csv", dtype=str)["slide_id"]:
        if label_of[slide_id] != "clustered":
            continue
        names, grid, values = read_scores(output / slide_id)
        is_focus = np.array([tuple(cell) in foci[slide_id] for cell in grid.tolist()])
        hits.append(is_focus[values[:, names.index("attention")].argmax()])
        chances.append(is_focus.mean())
    with capsys.disabled():
        print(f"\npointing game: {np.mean(hits):.2f} of {len(hits)} slides, chance {np.mean(chances):.3f}")
    assert len(hits) == 6
    assert np.mean(chances) < 0.1
    assert np.mean(hits) >= 0.8
