from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

from span_sparse.datasets import ClassificationTask, SegmentationTask
from span_sparse.heatmaps import read_scores
from span_sparse.models import SpanMilConfig, SpanUnetConfig
from span_sparse.store import FeatureStore
from span_sparse.store.scores import read_scores as read_stored
from span_sparse.training import PatchSegmenter, SlideClassifier
from span_sparse.training.checkpoint import load_model
from span_sparse.wsi.geojson import read_geojson

FILES = {"scores.csv", "heatmap.png", "heatmap.tif", "patches.geojson", "meta.json"}


def write_checkpoint(path: Path, model) -> Path:
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    torch.save({**content, "pytorch-lightning_version": "2.6.6"}, path)
    return path


def classifier(store: Path, seed: int = 0) -> SlideClassifier:
    torch.manual_seed(seed)
    task = ClassificationTask(class_names=("a", "b")).on(*FeatureStore(store).common_identity())
    return SlideClassifier(SpanMilConfig(stages="11", head_channels=8, window_size=2), task=task.as_dict())


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def checkpoint(tiny_cohort, tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "c.ckpt", classifier(tiny_cohort.store))


@pytest.fixture
def heatmap(command, tiny_cohort, checkpoint, tmp_path: Path):
    def run(*words: object, checkpoint: Path = checkpoint) -> int:
        fixed = ("--checkpoint", checkpoint, "--store", tiny_cohort.store, "--output", tmp_path / "out")
        return command("span", "heatmap", *fixed, "--device", "cpu", *words)

    return run


def index_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "out" / "heatmaps.csv", dtype=str, keep_default_na=False)


def times_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted((folder / "out").glob("*/*"))}


def test_folders_resume_and_overwrite(heatmap, tiny_cohort, tmp_path, capsys) -> None:
    assert heatmap("--limit", 3) == 0
    out = tmp_path / "out"
    index = index_of(tmp_path)
    assert index["slide_id"].tolist() == index["folder"].tolist() == ["s00", "s01", "s02"]
    assert set(index["status"]) == {"done"}
    assert all({path.name for path in (out / name).iterdir()} == FILES for name in index["folder"])
    shown = capsys.readouterr()
    assert "3 of 3 slides have heatmaps" in shown.out
    assert "no --slides: heatmaps on white" in shown.err
    record = FeatureStore(tiny_cohort.store).read("s02")
    names, grid, values = read_scores(out / "s02")
    np.testing.assert_array_equal(grid, record.grid)
    assert (names[0], names[-1], values.shape) == ("attention", "gradient_x_input", (len(grid), len(names)))
    meta = json.loads((out / "s02" / "meta.json").read_text())
    model = classifier(tiny_cohort.store).eval()
    coords = torch.cat([torch.zeros(len(grid), 1), torch.from_numpy(record.grid)], dim=1).int()
    with torch.no_grad():
        probability = model.network(torch.from_numpy(record.features), coords, 1).softmax(1)[0, 1].item()
    assert meta["predicted"]["prob_b"] == pytest.approx(probability, abs=1e-6)
    assert meta["predicted"]["y_pred"] == "ab"[round(probability)]
    assert (meta["case_id"], meta["dimensions_px0"], meta["slide_path"]) == ("p02", [330, 330], None)

    before = times_of(tmp_path)
    assert heatmap("--limit", 4) == 0
    assert "(3 were there already)" in capsys.readouterr().out
    after = times_of(tmp_path)
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + len(FILES)
    assert heatmap("--limit", 1, "--overwrite") == 0
    assert all(times_of(tmp_path)[path] != before[path] for path in before if path.parent.name == "s00")


def test_what_another_checkpoint_or_a_killed_run_left_is_done_again(heatmap, tiny_cohort, tmp_path, capsys) -> None:
    assert heatmap("--limit", 2) == 0
    first = read_scores(tmp_path / "out" / "s00")[2]
    (tmp_path / "out" / "s01" / "heatmap.png").unlink()
    assert heatmap("--limit", 2) == 0
    assert "(1 were there already)" in capsys.readouterr().out
    other = write_checkpoint(tmp_path / "other.ckpt", classifier(tiny_cohort.store, seed=1))
    assert heatmap("--limit", 2, checkpoint=other) == 0
    assert "(0 were there already)" in capsys.readouterr().out
    assert np.abs(read_scores(tmp_path / "out" / "s00")[2] - first).max() > 1e-4


def test_a_slide_that_fails_stops_nobody_else(heatmap, tiny_cohort, tmp_path, capsys) -> None:
    frame = tiny_cohort.frame.iloc[:3]
    pd.concat([frame, frame.iloc[:1].assign(slide_id="x/y", case_id="p9")]).to_csv(tiny_cohort.csv, index=False)
    shard = tiny_cohort.store / "s01" / "features" / "c" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-9])
    assert heatmap("--cohort", tiny_cohort.csv) == 1
    index = index_of(tmp_path).set_index("slide_id")
    assert index["status"].tolist() == ["done", "failed", "done", "failed"]
    assert index["folder"].tolist() == ["s00", "", "s02", ""]
    assert "truncated" in index.loc["s01", "error"]
    assert "does not exist" in index.loc["x/y", "error"]
    assert "2 of 4 slides" in capsys.readouterr().out


def test_one_scale_for_all(heatmap, tiny_cohort, tmp_path, capsys) -> None:
    assert heatmap("--limit", 2) == 0
    own = (tmp_path / "out" / "s00" / "heatmap.tif").read_bytes()
    assert heatmap("--limit", 3, "--one-scale") == 0
    scale = json.loads((tmp_path / "out" / "scale.json").read_text())
    values = np.concatenate([read_scores(tmp_path / "out" / name)[2][:, 0] for name in ("s00", "s01", "s02")])
    assert (scale["low"], scale["high"]) == pytest.approx(tuple(np.percentile(values, (1, 99))))
    assert (scale["score"], scale["num_slides"], scale["cohort"]) == ("attention", 3, True)
    assert (tmp_path / "out" / "s00" / "heatmap.tif").read_bytes() != own
    capsys.readouterr()
    assert heatmap("--limit", 3, "--one-scale") == 0
    assert "(3 were there already)" in capsys.readouterr().out
    assert heatmap("--limit", 2) == 0
    assert (tmp_path / "out" / "s00" / "heatmap.tif").read_bytes() == own
    assert not (tmp_path / "out" / "scale.json").exists()


def test_the_worst_errors_first(heatmap, tiny_cohort, checkpoint, tmp_path, capsys) -> None:
    assert heatmap("--cohort", tiny_cohort.csv, "--split", "test", "--top", 2) == 0
    model, store, losses = load_model(checkpoint), FeatureStore(tiny_cohort.store), {}
    for row in tiny_cohort.frame.itertuples():
        record = store.read(row.slide_id)
        coords = torch.cat([torch.zeros(len(record.grid), 1), torch.from_numpy(record.grid)], dim=1).int()
        with torch.no_grad():
            probabilities = model.network(torch.from_numpy(record.features), coords, 1).softmax(1)[0]
        losses[row.slide_id] = -math.log(probabilities["ab".index(row.label)])
    tests = tiny_cohort.frame.query("split == 'test'")["slide_id"]
    assert index_of(tmp_path)["slide_id"].tolist() == sorted(tests, key=lambda name: -losses[name])[:2]
    tiny_cohort.change(label="")
    assert heatmap("--cohort", tiny_cohort.csv, "--top", 2) == 1
    assert "no slide's loss is known" in capsys.readouterr().err


def test_with_slides(heatmap, tiny_cohort, tmp_path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    for name, edge in (("s00", 330), ("s01", 331)):
        picture = np.random.default_rng(0).integers(0, 255, (edge, 330, 3), dtype=np.uint8)
        tifffile.imwrite(slides / f"{name}.tiff", picture, tile=(64, 64), photometric="rgb", compression="zlib")
    assert heatmap("--slides", slides, "--limit", 3) == 1
    assert {path.name for path in (tmp_path / "out" / "s00").iterdir()} == FILES | {"gallery.png"}
    meta = json.loads((tmp_path / "out" / "s00" / "meta.json").read_text())
    assert meta["slide_path"] == str(slides / "s00.tiff")
    index = index_of(tmp_path)
    assert index["status"].tolist() == ["done", "failed", "failed"]
    assert "330 × 331 px, the slide of the features 330 × 330" in index.loc[1, "error"]
    assert "no file in" in index.loc[2, "error"]
    assert heatmap("--slides", tmp_path / "absent") == 1


def test_faithfulness_and_scores_in_the_store(heatmap, tiny_cohort, tmp_path, capsys) -> None:
    assert heatmap("--limit", 2, "--faithfulness", "--into-store", "run-1") == 0
    frame = pd.read_csv(tmp_path / "out" / "faithfulness.csv")
    assert frame["slide_id"].tolist() == ["s00", "s01"]
    meta = json.loads((tmp_path / "out" / "s00" / "meta.json").read_text())
    assert frame.loc[0, "answer"] == pytest.approx(
        max(meta["predicted"]["prob_a"], meta["predicted"]["prob_b"]), abs=1e-6
    )
    assert (tmp_path / "out" / "faithfulness.png").is_file()
    assert "mean gain over random order: deletion" in capsys.readouterr().out
    names, _, values = read_scores(tmp_path / "out" / "s01")
    stored = read_stored(FeatureStore(tiny_cohort.store), "s01", "run-1")
    assert stored.names == names
    np.testing.assert_allclose(stored.values, values, rtol=1e-6)


def test_a_segmenter_has_regions(command, tiny_cohort, tmp_path, capsys) -> None:
    torch.manual_seed(0)
    task = SegmentationTask(("tumor",)).on(*FeatureStore(tiny_cohort.store).common_identity())
    network = SpanUnetConfig(stages="11-1", head_channels=8, window_size=2)
    model = PatchSegmenter(network, task=task.as_dict())
    checkpoint = write_checkpoint(tmp_path / "unet.ckpt", model)
    words = ["span", "heatmap", "--checkpoint", checkpoint, "--store", tiny_cohort.store, "--output", tmp_path / "out"]
    assert command(*words, "--limit", 2) == 0
    folder = tmp_path / "out" / "s01"
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["default_score"] == "prob_tumor"
    names, _, values = read_scores(folder)
    is_tumor = values[:, names.index("prob_tumor")] >= model.decision_threshold.item()
    assert meta["predicted"] == {"share_tumor": pytest.approx(is_tumor.mean())}
    regions = read_geojson(folder / "regions.geojson")
    patch_mm2 = (meta["patch_px0"] * meta["mpp"] / 1000) ** 2
    assert sum(one.properties["area_mm2"] for one in regions) == pytest.approx(is_tumor.sum() * patch_mm2)
    assert command(*words, "--faithfulness") == 1
    assert "a segmenter answers for each patch" in capsys.readouterr().err


def test_odd_ids_have_folders(heatmap, tiny_cohort, tmp_path) -> None:
    store = FeatureStore(tiny_cohort.store)
    record = store.read("s00")
    store.write(dataclasses.replace(record, slide_id="../a b/ü"))
    tiny_cohort.frame.iloc[:1].assign(slide_id="../a b/ü").to_csv(tiny_cohort.csv, index=False)
    assert heatmap("--cohort", tiny_cohort.csv) == 0
    (folder,) = [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()]
    assert folder == index_of(tmp_path).loc[0, "folder"] == "%2E" + quote("../a b/ü", safe="")[1:]


@pytest.mark.parametrize("words", [[], ["--one-scale"], ["--limit", 3]])
def test_features_of_another_encoder_are_refused_once_and_nothing_is_written(
    heatmap, tiny_cohort, tmp_path, words, capsys
) -> None:
    model = classifier(tiny_cohort.store)
    encoder, lattice = FeatureStore(tiny_cohort.store).common_identity()
    other = ClassificationTask(class_names=("a", "b")).on(dataclasses.replace(encoder, name="another"), lattice)
    model.hparams["task"] = other.as_dict()
    checkpoint = write_checkpoint(tmp_path / "other.ckpt", model)
    assert heatmap(*words, checkpoint=checkpoint) == 1
    shown = capsys.readouterr()
    assert (shown.out + shown.err).count("do not match the checkpoint") == 1
    assert "encoder name: 'another'" in shown.err
    assert not (tmp_path / "out").exists()


def test_slides_of_two_encoders_are_refused(heatmap, tiny_cohort, tmp_path, capsys) -> None:
    store = FeatureStore(tiny_cohort.store)
    record = store.read("s00")
    encoder = dataclasses.replace(record.encoder, name="another")
    store.write(dataclasses.replace(record, slide_id="x", encoder=encoder))
    assert heatmap() == 1
    assert "keep one store per encoder and lattice" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("below", ["", "a/b"])
def test_an_output_that_cannot_be_made_is_refused_before_the_work(
    heatmap, tmp_path, below, capsys, monkeypatch
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("the checkpoint was read")

    monkeypatch.setattr("span_sparse.training.checkpoint.load_model", work)
    (tmp_path / "file").write_text("")
    assert heatmap("--output", tmp_path / "file" / below) == 1
    assert f"{tmp_path / 'file'} is not a folder" in capsys.readouterr().err
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)  # the tests may run as root
    assert heatmap("--output", tmp_path / "new" / below) == 1
    assert f"no right to write in {tmp_path};" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--limit", 0], "--limit 0: expected at least 1"),
        (["--split", "test"], "give --cohort"),
        (["--score", "beauty", "--limit", 1], "--score beauty: the model has no such score; it has attention"),
    ],
)
def test_wrong_options(heatmap, words, message, capsys) -> None:
    assert heatmap(*words) == 1
    assert message in " ".join(capsys.readouterr().err.split())
