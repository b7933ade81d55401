"""Ensembles, shards, resuming, subgroups and slides of `span evaluate`."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

from span_sparse.datasets import ClassificationTask, RegressionTask, SegmentationTask, SurvivalTask, Task
from span_sparse.evaluation.parts import PartWriter, read_parts
from span_sparse.extract.stain_texture import StainTextureEncoder
from span_sparse.grid import LatticeSpec
from span_sparse.models import SpanMilConfig, SpanUnetConfig
from span_sparse.store import FeatureStore
from span_sparse.training import PatchSegmenter, SlideClassifier, SlideRegressor, SurvivalModel
from span_sparse.training.checkpoint import load_model
from span_sparse.training.prediction import predict_slides

NETWORK = SpanMilConfig(stages="11", head_channels=8, window_size=2)


def save(model: Any, path: Path) -> Path:
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    torch.save({**content, "pytorch-lightning_version": "2.6.6"}, path)
    return path


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch) -> None:
    """Other tests look at pictures, and writing one takes longer than everything else here."""

    def write_nothing(figure: object, path: Path) -> tuple[Path]:
        path.write_bytes(b"")
        return (path,)

    monkeypatch.setattr("span_sparse.evaluation.report.write_figure", write_nothing)


@pytest.fixture
def make_checkpoint(tiny_cohort, tmp_path: Path):
    """A model with random weights, others for every seed."""

    def make(seed: int, task: Task | None = None, kind: Any = SlideClassifier, **settings: Any) -> Path:
        features = FeatureStore(tiny_cohort.store).common_identity()
        torch.manual_seed(seed)
        task = (task or ClassificationTask(class_names=("a", "b"))).on(*features)
        model = kind(settings.pop("network", NETWORK), task=task.as_dict(), **settings)
        return save(model, tmp_path / f"{kind.__name__}{seed}.ckpt")

    return make


@pytest.fixture
def evaluate(command, tiny_cohort, tmp_path: Path):
    def run(checkpoints: Path | list[Path], *words: object, out: str = "out", store: bool = True) -> int:
        fixed: list[object] = ["--output", tmp_path / out, "--device", "cpu", "--resamples", 20]
        fixed += ["--store", tiny_cohort.store] if store else []
        paths = checkpoints if isinstance(checkpoints, list) else [checkpoints]
        return command("span", "evaluate", "--checkpoint", *paths, *fixed, *words)

    return run


def table(folder: Path, name: str = "predictions.csv") -> pd.DataFrame:
    return pd.read_csv(folder / name)


def test_an_ensemble_is_the_mean_of_its_members(evaluate, make_checkpoint, tiny_cohort, tmp_path) -> None:
    paths = [make_checkpoint(seed) for seed in range(3)]
    assert evaluate(paths, "--cohort", tiny_cohort.csv) == 0
    alone = []
    for number, path in enumerate(paths):
        assert evaluate(path, out=f"alone{number}") == 0
        alone.append(table(tmp_path / f"alone{number}"))
        member = table(tmp_path / "out", f"members/{number + 1}.csv")
        assert member[["slide_id", "prob_b"]].equals(alone[-1][["slide_id", "prob_b"]])
    found = table(tmp_path / "out")
    mean = np.mean([one["prob_b"] for one in alone], axis=0)
    np.testing.assert_allclose(found["prob_b"], mean, rtol=1e-12)
    assert found["y_pred"].tolist() == ["b" if one > 0.5 else "a" for one in mean]
    assert found["y_true"].tolist() == tiny_cohort.frame["label"].tolist()
    run = json.loads((tmp_path / "out" / "metrics.json").read_text())["run"]
    assert run["ensemble"] == "mean of the probabilities"
    assert [one["path"] for one in run["checkpoints"]] == list(map(str, paths))
    assert len({one["sha256"] for one in run["checkpoints"]}) == 3
    assert evaluate(paths[0]) == 0
    assert not list((tmp_path / "out" / "members").glob("*"))


def test_risks_and_numbers_are_averaged_too(evaluate, make_checkpoint, tiny_cohort, tmp_path) -> None:
    tiny_cohort.change(time=range(1, 18), event=[1] * 17, score=range(17))
    for name, task, kind, settings in (
        ("risk", SurvivalTask(), SurvivalModel, {"bin_edges": [3.0, 6.0, 9.0]}),
        ("y_pred", RegressionTask("score"), SlideRegressor, {"scale": [8.0, 5.0]}),
    ):
        paths = [make_checkpoint(seed, task, kind, **settings) for seed in range(2)]
        assert evaluate(paths, "--cohort", tiny_cohort.csv, out=name) == 0
        members = [table(tmp_path / name, f"members/{number}.csv") for number in (1, 2)]
        found = table(tmp_path / name)
        for column in [one for one in found.columns if one == name or one.startswith("survival_")]:
            np.testing.assert_allclose(found[column], (members[0][column] + members[1][column]) / 2)
    scores = json.loads((tmp_path / "risk" / "metrics.json").read_text())
    assert {"c_index", "c_index_uno", "auc_at_6", "integrated_brier", "risk_groups"} <= scores["test"].keys()
    assert scores["test"]["risk_groups"]["chosen_on"] == "val"
    assert (tmp_path / "risk" / "kaplan_meier.png").is_file()
    other = make_checkpoint(5, SurvivalTask(), SurvivalModel, bin_edges=[2.0, 6.0, 9.0])
    assert evaluate([paths_of(tmp_path, "SurvivalModel0"), other], "--cohort", tiny_cohort.csv, out="edges") == 0
    assert [one for one in table(tmp_path / "edges").columns if one.startswith("survival_")] == [
        "survival_6", "survival_9",
    ]  # fmt: skip


@pytest.mark.parametrize("classes", [("t",), ("t", "s")])
def test_segmenters_average_the_probabilities_of_patches(
    evaluate, make_checkpoint, tiny_cohort, tmp_path, monkeypatch, classes
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    store, random = FeatureStore(tiny_cohort.store), np.random.default_rng(0)
    for name in store.slide_ids:
        record = store.read(name)
        ratios = random.dirichlet(np.ones(len(classes) + 1), size=len(record.grid))[:, 1:].astype(np.float32)
        store.write(dataclasses.replace(record, ratios=ratios, ratio_classes=classes), overwrite=True)
    network = SpanUnetConfig(stages="11-1", head_channels=8, window_size=2)
    task = SegmentationTask(classes, threshold=0.4)
    paths = [make_checkpoint(seed, task, PatchSegmenter, network=network) for seed in range(2)]
    for path, threshold in zip(paths, (0.4, 0.45), strict=True):
        content = torch.load(path, weights_only=True)
        content["state_dict"]["decision_threshold"] = torch.tensor(threshold)
        torch.save(content, path)
    assert evaluate(paths) == 0
    found = table(tmp_path / "out").set_index("slide_id")
    assert sorted(path.name for path in (tmp_path / "out" / "members").iterdir()) == ["1.csv", "2.csv"]
    models = [load_model(path) for path in paths]
    record = store.read("s09")
    coords = torch.cat([torch.zeros(len(record.grid), 1), torch.from_numpy(record.grid)], dim=1).int()
    with torch.no_grad():
        logits = [model.network(torch.from_numpy(record.features), coords, 1) for model in models]
    labels = task.patch_labels(torch.from_numpy(record.ratios))
    if len(classes) == 1:
        chosen = (torch.stack(logits).sigmoid().mean(dim=0)[:, 0] >= 0.42).long()  # 0.425 to the next hundredth
    else:
        chosen = torch.stack([one.softmax(dim=1) for one in logits]).mean(dim=0).argmax(dim=1)
    for position, name in enumerate(classes, start=1):
        expected = [(chosen == position) & (labels == position), (chosen == position) & (labels != position)]
        assert found.loc["s09", [f"hits_{name}", f"false_alarms_{name}"]].tolist() == [one.sum() for one in expected]
    run = json.loads((tmp_path / "out" / "metrics.json").read_text())["run"]
    assert run["ensemble"].startswith("mean of the probabilities of each patch")
    assert run["decision_threshold"] == pytest.approx(0.42)


def paths_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.ckpt"


@pytest.mark.parametrize(
    ("task", "kind", "settings", "message"),
    [
        (ClassificationTask(class_names=("b", "a")), SlideClassifier, {}, "class names: ['a', 'b'] != ['b', 'a']"),
        (RegressionTask("x"), SlideRegressor, {"scale": [0.0, 1.0]}, "task: classification != regression"),
    ],
)
def test_models_that_do_not_belong_together(evaluate, make_checkpoint, capsys, task, kind, settings, message) -> None:
    assert evaluate([make_checkpoint(0), make_checkpoint(1, task, kind, **settings)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "cannot be averaged with" in error


def test_models_of_other_features_or_losses(evaluate, make_checkpoint, tiny_cohort, tmp_path, capsys) -> None:
    path = make_checkpoint(1)
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["task"]["encoder"]["revision"] = "2"
    torch.save(content, path)
    assert evaluate([make_checkpoint(0), path]) == 1
    assert "encoder revision: '1' != '2'" in capsys.readouterr().err
    pair = [make_checkpoint(seed, SurvivalTask(), SurvivalModel, loss=loss) for seed, loss in ((0, "cox"), (1, "nll"))]
    assert evaluate(pair) == 1
    assert "loss: cox != nll" in capsys.readouterr().err
    assert evaluate([path, path]) == 1
    assert "names a file twice" in capsys.readouterr().err


def test_shards_give_what_one_run_gives(evaluate, make_checkpoint, tiny_cohort, tmp_path, capsys) -> None:
    path = make_checkpoint(0)
    assert evaluate(path, "--cohort", tiny_cohort.csv, out="whole") == 0
    for number in (2, 3, 1):
        assert evaluate(path, "--cohort", tiny_cohort.csv, "--shard", f"{number}/3") == 0
        assert (tmp_path / "out" / "predictions.csv").exists() == (number == 1)
    assert "still to come from other shards" in capsys.readouterr().out
    for name in ("predictions.csv", "metrics.json", "reliability.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    parts = sorted((tmp_path / "out" / "parts").glob("*.jsonl"))
    assert [one.name for one in parts] == ["1-of-3.jsonl", "2-of-3.jsonl", "3-of-3.jsonl"]
    ids = [json.loads(line)["slide_id"] for one in parts for line in one.read_text().splitlines()[1:]]
    assert sorted(ids) == tiny_cohort.frame["slide_id"].tolist()
    assert evaluate(path, "--shard", "4/3") == 1


@pytest.fixture
def predicted(monkeypatch) -> list[int]:
    """Numbers of slides that models were shown, run by run."""
    from span_sparse.training import prediction

    shown: list[int] = []
    original = prediction.stream_outcomes

    def counted(models, dataset, **settings):
        shown.append(len(dataset))
        return original(models, dataset, **settings)

    monkeypatch.setattr(prediction, "stream_outcomes", counted)
    return shown


def test_what_has_not_changed_is_not_predicted_again(
    evaluate, make_checkpoint, tiny_cohort, tmp_path, predicted, monkeypatch
) -> None:
    path, words = make_checkpoint(0), ["--cohort", tiny_cohort.csv]
    assert evaluate(path, *words) == 0
    first = (tmp_path / "out" / "predictions.csv").read_bytes()
    assert evaluate(path, *words) == 0
    assert (tmp_path / "out" / "predictions.csv").read_bytes() == first
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    store = FeatureStore(tiny_cohort.store)
    record = store.read("s04")
    store.write(dataclasses.replace(record, features=record.features + 1), overwrite=True)
    assert evaluate(path, *words) == 0  # one slide has other features
    labels = tiny_cohort.frame["label"].tolist()
    tiny_cohort.change(label=["b", *labels[1:]])
    assert evaluate(path, *words) == 0  # one has another label
    assert table(tmp_path / "out")["y_true"][0] == "b"
    assert evaluate(make_checkpoint(1), *words) == 0
    assert evaluate(make_checkpoint(1), *words, "--overwrite") == 0
    assert predicted == [17, 0, 1, 1, 17, 17]


def test_a_killed_run_goes_on(command, make_checkpoint, tiny_cohort, tmp_path, capsys) -> None:
    """Killed in the middle of its slides: what it had written is kept, and the end is that of an undisturbed run."""
    path, out = make_checkpoint(0), tmp_path / "out"
    slow = (
        "import time\nfrom span_sparse.training.slide_classifier import SlideClassifier as C\nstep = C.predict_step\n"
        "def slowly(*words):\n    time.sleep(0.15)\n    return step(*words)\nC.predict_step = slowly\n"
        "from span_sparse.cli.main import span\nspan()"
    )
    words = ["evaluate", "--checkpoint", path, "--store", tiny_cohort.store, "--output", out]
    words += ["--device", "cpu", "--resamples", 20]
    process = subprocess.Popen([sys.executable, "-c", slow, *map(str, words)], stdout=subprocess.DEVNULL)
    part = out / "parts" / "all.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (part.exists() and part.read_bytes().count(b"\n") > 4):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = part.read_bytes().count(b"\n")
    assert 4 < lines < 18
    assert not (out / "predictions.csv").exists()
    with part.open("ab") as file:
        file.write(b'{"slide_id": "s16", "key": "x", "mem')  # as a machine that dies leaves it
    assert command("span", *words) == 0
    assert f"{lines - 1} slides were predicted before" in capsys.readouterr().out
    assert len(table(out)) == 17
    assert all(json.loads(line) for line in part.read_text().splitlines())


def test_parts_of_other_models_and_damaged_lines_are_ignored(tmp_path) -> None:
    for name, models in (("1-of-2", ["x"]), ("2-of-2", ["y"])):
        with PartWriter(tmp_path / f"{name}.jsonl", models) as writer:
            writer.add(f"slide {name}", "key", [{"risk": 0.1}])
    (tmp_path / "junk.jsonl").write_bytes(b"\xff\x00\n{}\n")
    with (tmp_path / "1-of-2.jsonl").open("a") as file:
        file.write('[1]\n{"slide_id": 3}\n{"slide_id": "q", "key": "k", "members": [1]}\n' + "[" * 9000 + "\n")
    assert list(read_parts(tmp_path, ["x"])) == ["slide 1-of-2"]
    assert read_parts(tmp_path, ["z"]) == read_parts(tmp_path / "absent", ["x"]) == {}
    with PartWriter(tmp_path / "2-of-2.jsonl", ["x"]) as writer:
        writer.add("new", "key", [{"risk": 1 / 3}])
    found = read_parts(tmp_path, ["x"])
    assert list(found) == ["slide 1-of-2", "new"]
    assert found["new"].members == ({"risk": 1 / 3},)


def test_figures_by_site(evaluate, make_checkpoint, tiny_cohort, tmp_path, capsys) -> None:
    tiny_cohort.change(site=["A", "B"] * 8 + [""])
    path = make_checkpoint(0)
    assert evaluate(path, "--cohort", tiny_cohort.csv, "--by", "site") == 0
    assert table(tmp_path / "out")["site"].tolist()[:2] == ["A", "B"]
    groups = json.loads((tmp_path / "out" / "metrics.json").read_text())["subgroups"]["test"]["site"]
    assert {name: one["num_slides"] for name, one in groups.items()} == {"(missing)": 1, "A": 3, "B": 3}
    with (tmp_path / "out" / "subgroups.csv").open(newline="") as file:
        assert {row["small"] for row in csv.DictReader(file)} == {"yes"}
    for words, message in (
        (["--cohort", tiny_cohort.csv, "--by", "stage"], "no column 'stage'"),
        (["--cohort", tiny_cohort.csv, "--by", "split"], "column 'split' cannot be a column of subgroups"),
        (["--by", "site"], "give --cohort"),
    ):
        assert evaluate(path, *words, out="other") == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "other" / "parts").exists()


def test_missing_slides_of_shards(evaluate, make_checkpoint, tiny_cohort, tmp_path, capsys) -> None:
    names = tiny_cohort.frame["slide_id"].tolist()
    tiny_cohort.change(slide_id=["absent", *names[1:]])
    path, words = make_checkpoint(0), ["--cohort", tiny_cohort.csv, "--skip-missing"]
    for number in (1, 2):
        assert evaluate(path, *words, "--shard", f"{number}/2") == 0
    assert table(tmp_path / "out")["slide_id"].tolist() == names[1:]
    assert "16 slides (1 are missing and left out)" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["run"]["num_missing"] == 1


def test_streams_hold_what_a_whole_prediction_holds(make_checkpoint, tiny_cohort) -> None:
    from span_sparse.datasets import SlideDataset
    from span_sparse.datasets.slide_dataset import SlideItem
    from span_sparse.training.ensemble import Ensemble
    from span_sparse.training.prediction import rows_of, stream_outcomes

    models = [load_model(make_checkpoint(seed)) for seed in range(2)]
    data = SlideDataset(FeatureStore(tiny_cohort.store), [SlideItem(f"s{number:02d}", "p") for number in range(5)])
    whole = [rows_of(model, predict_slides(model, data, batch_size=2)) for model in models]
    rows: list[list[dict[str, object]]] = [[], []]
    for parts in stream_outcomes(Ensemble(models), data, batch_size=2):
        for one, model, part in zip(rows, models, parts, strict=True):
            one += rows_of(model, part)
    assert rows == whole


def write_slide(path: Path, seed: int) -> None:
    """256 × 256 px of tissue at 1 µm per pixel."""
    random = np.random.default_rng(seed)
    picture = np.array([200, 90, 150]) + random.integers(-25, 25, size=(256, 256, 3))
    tifffile.imwrite(
        path, picture.astype(np.uint8), tile=(64, 64), photometric="rgb", compression="zlib",
        resolution=(10_000, 10_000), resolutionunit="CENTIMETER",
    )  # fmt: skip


@pytest.fixture
def slides(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """A folder of two slides, and a checkpoint for 32 px at 1 µm/px."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    folder = tmp_path / "slides"
    folder.mkdir()
    for number in range(2):
        write_slide(folder / f"x{number}.tif", number)
    encoder = StainTextureEncoder(32, 1.0)
    task = ClassificationTask(class_names=("a", "b")).on(encoder.identity, LatticeSpec(32, 1.0))
    return folder, save(SlideClassifier(NETWORK, task=task.as_dict()), tmp_path / "slides.ckpt")


def test_straight_from_slides(evaluate, slides, tmp_path, capsys) -> None:
    folder, path = slides
    assert evaluate(path, "--slides", folder, store=False) == 0
    found = table(tmp_path / "out")
    assert found["slide_id"].tolist() == ["x0", "x1"]
    assert FeatureStore(tmp_path / "out" / "store").slide_ids == ("x0", "x1")
    assert evaluate(path, "--store", tmp_path / "out" / "store", out="again", store=False) == 0
    assert table(tmp_path / "again")["prob_b"].tolist() == found["prob_b"].tolist()
    cohort = tmp_path / "two.csv"
    cohort.write_text("slide_id,label,split\nx0,a,train\nx1,b,test\nx2,b,test\n")
    words = ["--slides", folder, "--cohort", cohort, "--split", "test"]
    assert evaluate(path, *words, out="two", store=False) == 1
    assert "1 of 2 slides are not in the store, first 'x2'; their extraction failed" in capsys.readouterr().err
    assert FeatureStore(tmp_path / "two" / "store").slide_ids == ("x1",)
    assert evaluate(path, *words, "--skip-missing", out="two", store=False) == 0
    assert table(tmp_path / "two")[["slide_id", "y_true"]].to_numpy().tolist() == [["x1", "b"]]


def test_slides_in_shards(evaluate, slides, tmp_path) -> None:
    folder, path = slides
    for number in (1, 2):
        assert evaluate(path, "--slides", folder, "--shard", f"{number}/2", store=False) == 0
        assert len(FeatureStore(tmp_path / "out" / "store").slide_ids) == number
    assert table(tmp_path / "out")["slide_id"].tolist() == ["x0", "x1"]


def test_slides_without_the_encoder_or_a_slide_are_refused(evaluate, make_checkpoint, slides, tmp_path, capsys) -> None:
    folder, path = slides
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["task"]["encoder"]["name"] = "uni_v9"
    torch.save(content, path)
    assert evaluate(path, "--slides", folder, store=False) == 1
    assert "was trained on features of uni_v9 (32 px at 1 µm/px), which cannot be made here" in capsys.readouterr().err
    assert evaluate(make_checkpoint(0), "--slides", folder, store=False) == 1  # stain-texture of another revision
    assert "was trained on features of another encoder (checkpoint != here)" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    for words, message in (
        (["--slides", tmp_path / "empty"], "no slide in it"),
        (["--slides", tmp_path / "absent"], "no such folder"),
        ([], "name the features with --store, or the slides with --slides"),
    ):
        assert evaluate(path, *words, store=False) == 1
        assert message in capsys.readouterr().err
