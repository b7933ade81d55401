from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

from span_sparse.datasets import ClassificationTask, MultiLabelTask, RegressionTask, SegmentationTask, SurvivalTask
from span_sparse.extract import StainTextureEncoder
from span_sparse.grid import LatticeSpec
from span_sparse.heatmaps import read_scores
from span_sparse.models import MeanPoolingConfig, SpanMilConfig, SpanUnetConfig
from span_sparse.store import FeatureStore
from span_sparse.training import (
    MultiLabelClassifier,
    PatchSegmenter,
    SlideClassifier,
    SlideRegressor,
    SurvivalModel,
)

SPEC = LatticeSpec(32, 1.0)
ENCODER = StainTextureEncoder(32, 1.0).identity
NETWORK = SpanMilConfig(stages="11", head_channels=8, window_size=2, input_norm=True)


def save(path: Path, model) -> Path:
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    torch.save({**content, "pytorch-lightning_version": "2.6.6"}, path)
    return path


def of_task(task, kind=SlideClassifier, network=NETWORK, encoder=ENCODER, **settings):
    torch.manual_seed(0)
    return kind(network, task=task.on(encoder, SPEC).as_dict(), **settings)


def classifier(**settings) -> SlideClassifier:
    return of_task(ClassificationTask(class_names=("benign", "malignant")), **settings)


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """Pink tissue of about 8 × 6 patches on white, 0.5 µm per pixel."""
    random = np.random.default_rng(0)
    picture = np.full((611, 743, 3), 245, dtype=np.uint8)
    picture[70:500, 64:640] = random.normal((205, 120, 170), 15, (430, 576, 3)).clip(0, 255)
    (tmp_path / "slides").mkdir()
    path = tmp_path / "slides" / "case 7.tiff"
    tifffile.imwrite(path, picture, tile=(64, 64), photometric="rgb", compression="zlib", resolution=(20_000, 20_000),
                     resolutionunit="CENTIMETER")  # fmt: skip
    return path


@pytest.fixture
def predict(command, tmp_path: Path):
    def run(slide: Path, model, *words: object) -> int:
        checkpoint = save(tmp_path / "c.ckpt", model)
        fixed = ("--checkpoint", checkpoint, "--output", tmp_path / "out", "--device", "cpu")
        return command("span", "predict", slide, *fixed, "--tissue.min_object_mm2", 0.001, *words)

    return run


def test_one_slide_in_one_command(predict, slide, tmp_path, capsys) -> None:
    assert predict(slide, classifier()) == 0
    shown = capsys.readouterr().out
    folder = tmp_path / "out" / "case%207"
    assert {path.name for path in folder.iterdir()} == {
        "scores.csv", "meta.json", "heatmap.png", "heatmap.tif", "patches.geojson", "gallery.png",
    }  # fmt: skip
    record = FeatureStore(tmp_path / "out" / "store").read("case 7")
    assert (record.encoder, record.lattice.spec, record.lattice.step_px0) == (ENCODER, SPEC, 64)
    coords = torch.cat([torch.zeros(len(record.grid), 1), torch.from_numpy(record.grid)], dim=1).int()
    with torch.no_grad():
        probabilities = classifier().eval().network(torch.from_numpy(record.features), coords, 1).softmax(1)[0]
    best = ("benign", "malignant")[int(probabilities.argmax())]
    assert f"case 7: {best} (probability {probabilities.max():.3f}" in shown
    assert str(folder) in shown
    names, grid, _ = read_scores(folder)
    assert names[0] == "attention"
    np.testing.assert_array_equal(grid, record.grid)
    assert 30 < len(grid) < 70
    index = pd.read_csv(tmp_path / "out" / "heatmaps.csv", dtype=str)
    assert index[["slide_id", "folder", "status"]].to_numpy().tolist() == [["case 7", "case%207", "done"]]


def test_the_same_command_again_and_a_second_slide(predict, slide, tmp_path) -> None:
    assert predict(slide, classifier()) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    before = {path: time for path, time in before.items() if path.suffix in (".png", ".tif") or "store/" in str(path)}
    assert predict(slide, classifier()) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    other = shutil.copy(slide, slide.with_name("b.tiff"))
    assert predict(other, classifier()) == 0
    index = pd.read_csv(tmp_path / "out" / "heatmaps.csv", dtype=str)
    assert index["slide_id"].tolist() == ["b", "case 7"]
    first, second = (read_scores(tmp_path / "out" / name)[2] for name in ("case%207", "b"))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("task", "kind", "network", "words"),
    [
        (MultiLabelTask(("msi", "braf")), MultiLabelClassifier, NETWORK, ["probabilities: msi 0.", ", braf 0."]),
        (RegressionTask("age"), SlideRegressor, MeanPoolingConfig(hidden=8), ["age "]),
        (SurvivalTask(), SurvivalModel, NETWORK, ["risk -", "to outlive 10, 0.", "to outlive 30)"]),
        (
            SegmentationTask(("tumor",)), PatchSegmenter,
            SpanUnetConfig(stages="11-1", head_channels=8, window_size=2, input_norm=True),
            ["tumor ", "% of the patches (about 0.", " mm²), decision threshold 0.50"],
        ),
    ],
)  # fmt: skip
def test_every_task_has_a_verdict(predict, slide, task, kind, network, words, tmp_path, capsys) -> None:
    settings = {"num_bins": 3, "bin_edges": [10.0, 30.0]} if kind is SurvivalModel else {}
    assert predict(slide, of_task(task, kind, network, **settings)) == 0
    shown = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("case 7: "))
    assert all(word in shown for word in words), shown
    meta = json.loads((tmp_path / "out" / "case%207" / "meta.json").read_text())
    assert "time" not in meta["predicted"]
    assert ("regions" in meta["files"]) == (kind is PatchSegmenter)


def test_other_encoders_are_refused(predict, slide, tmp_path, capsys) -> None:
    for changes, message in [
        (
            {"name": "uni_v2", "dimension": 1536},
            "was trained on features of uni_v2 (32 px at 1 µm/px), which cannot be",
        ),
        ({"name": "nobodys"}, "there is no encoder of this name"),
        ({"revision": "0"}, "another encoder (checkpoint != here): revision: '0' != '1'"),
    ]:
        model = classifier(encoder=dataclasses.replace(ENCODER, **changes))
        assert predict(slide, model) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_slides_that_cannot_be_used(predict, slide, tmp_path, capsys) -> None:
    assert predict(tmp_path / "absent.tiff", classifier()) == 1
    assert "absent.tiff: no such file" in capsys.readouterr().err
    (tmp_path / "slides" / "x.tiff").write_bytes(b"no slide")
    assert predict(tmp_path / "slides" / "x.tiff", classifier()) == 1
    assert "x.tiff: not a slide" in " ".join(capsys.readouterr().err.split())
    assert predict(slide, classifier(), "--mpp", "-1") == 1
    assert "--mpp -1.0: expected a positive number" in capsys.readouterr().err
    assert predict(shutil.copy(slide, slide.with_name("store.tiff")), classifier()) == 1
    assert "a slide of this name would lie where the features are" in capsys.readouterr().err
    assert not (tmp_path / "out" / "heatmaps.csv").exists()
