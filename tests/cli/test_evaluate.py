from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pandas as pd
import pytest
import torch

from span_sparse.datasets import ClassificationTask
from span_sparse.grid import LatticeSpec
from span_sparse.models import SpanMilConfig
from span_sparse.store import FeatureStore
from span_sparse.training import SlideClassifier


@pytest.fixture
def checkpoint(tiny_cohort, tmp_path: Path) -> Path:
    """A classifier with random weights for the classes a and b of the tiny cohort."""
    encoder, lattice = FeatureStore(tiny_cohort.store).common_identity()
    network = SpanMilConfig(stages="11", head_channels=8, window_size=2)
    model = SlideClassifier(network, task=ClassificationTask(class_names=("a", "b")).on(encoder, lattice).as_dict())
    path = tmp_path / "c.ckpt"
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    torch.save({**content, "pytorch-lightning_version": "2.6.6"}, path)
    return path


@pytest.fixture
def evaluate(command, tiny_cohort, checkpoint, tmp_path: Path):
    def run(*words: object) -> int:
        fixed = ("--checkpoint", checkpoint, "--store", tiny_cohort.store, "--output", tmp_path / "out")
        return command("span", "evaluate", *fixed, "--device", "cpu", "--resamples", 50, *words)

    return run


def table_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "out" / "predictions.csv", dtype={"y_true": str}, keep_default_na=False)


def probabilities_of(folder: Path) -> pd.Series:
    return table_of(folder).set_index("slide_id")["prob_b"]


def test_with_labels(evaluate, tiny_cohort, tmp_path, capsys) -> None:
    assert evaluate("--cohort", tiny_cohort.csv) == 0
    out = tmp_path / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics) == {"train", "val", "test", "run"}
    assert (metrics["test"]["num_slides"], metrics["val"]["num_slides"]) == (7, 4)
    table = table_of(tmp_path)
    assert list(table.columns) == ["slide_id", "case_id", "fold", "split", "y_true", "y_pred", "prob_a", "prob_b"]
    assert table["slide_id"].tolist() == tiny_cohort.frame["slide_id"].tolist()
    assert table["y_true"].tolist() == tiny_cohort.frame["label"].tolist()
    assert {"roc.png", "roc.svg", "confusion.png", "confusion.svg"} <= {path.name for path in out.iterdir()}
    shown = capsys.readouterr().out
    assert f"test: AUC {metrics['test']['auc']:.3f}" in shown
    assert "17 slides; written" in shown


def test_the_logits_are_those_of_the_network_and_the_batch_size_does_not_matter(
    evaluate, tiny_cohort, checkpoint, tmp_path
) -> None:
    assert evaluate("--cohort", tiny_cohort.csv) == 0
    alone = probabilities_of(tmp_path)
    assert evaluate("--cohort", tiny_cohort.csv, "--batch-size", 5, "--num-workers", 1) == 0
    assert (probabilities_of(tmp_path) - alone).abs().max() < 1e-6
    model = SlideClassifier.load_from_checkpoint(checkpoint, weights_only=True).eval()
    record = FeatureStore(tiny_cohort.store).read("s12")
    coords = torch.cat([torch.zeros(len(record.grid), 1), torch.from_numpy(record.grid)], dim=1).int()
    with torch.no_grad():
        expected = model.network(torch.from_numpy(record.features), coords, 1).softmax(1)[0, 1]
    assert alone["s12"] == pytest.approx(expected.item(), abs=1e-6)


def test_one_split(evaluate, tiny_cohort, tmp_path, capsys) -> None:
    assert evaluate("--cohort", tiny_cohort.csv, "--split", "val") == 0
    assert table_of(tmp_path)["slide_id"].tolist() == ["s06", "s07", "s08", "s09"]
    assert evaluate("--cohort", tiny_cohort.csv, "--split", "training") == 1
    assert "no slide has 'training' in column 'split', found ['test', 'train', 'val']" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["no cohort", "no label column", "empty labels"])
def test_without_labels_there_are_predictions_only(evaluate, tiny_cohort, tmp_path, how) -> None:
    words: list[object] = ["--cohort", tiny_cohort.csv]
    if how == "no cohort":
        assert evaluate(*words) == 0  # leaves metrics and pictures, which must not stay
        words = []
    elif how == "no label column":
        tiny_cohort.change(label=None, split=None)
    elif how == "empty labels":
        tiny_cohort.change(label="")
    assert evaluate(*words) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"predictions.csv", "parts"}
    table = table_of(tmp_path)
    assert len(table) == 17
    assert set(table["y_true"]) == {""}


def change_store(cohort, monkeypatch, slide: str = "s12", **changes) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    store = FeatureStore(cohort.store)
    for name in store.slide_ids if slide == "all" else [slide]:
        record = store.read(name)
        if "mpp" in changes:
            lattice = LatticeSpec(32, changes["mpp"]).on_slide(1.0)
            encoder = dataclasses.replace(record.encoder, mpp=changes["mpp"])
            record = dataclasses.replace(record, lattice=lattice, coords=lattice.to_px0(record.grid), encoder=encoder,
                                         width_px0=10_000, height_px0=10_000)  # fmt: skip
        else:
            record = dataclasses.replace(record, encoder=dataclasses.replace(record.encoder, **changes))
        store.write(record, overwrite=True)


@pytest.mark.parametrize(
    ("slide", "changes", "messages"),
    [
        ("all", {"name": "uni_v1"}, ["do not match the checkpoint", "name: 'stain-texture' != 'uni_v1'"]),
        ("all", {"revision": "2"}, ["do not match the checkpoint", "revision: '1' != '2'"]),
        ("all", {"mpp": 2.0}, ["do not match the checkpoint", "lattice target_mpp: 1.0 != 2.0"]),
        ("s12", {"revision": "2"}, ["s12", "revision"]),
    ],
)
def test_other_features_are_refused(
    evaluate, tiny_cohort, tmp_path, monkeypatch, capsys, slide, changes, messages
) -> None:
    change_store(tiny_cohort, monkeypatch, slide, **changes)
    assert evaluate("--cohort", tiny_cohort.csv) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    for message in messages:
        assert message in line
    assert not (tmp_path / "out").exists()


def test_slides_that_are_not_in_the_store(evaluate, tiny_cohort, tmp_path, capsys) -> None:
    names = tiny_cohort.frame["slide_id"].tolist()
    tiny_cohort.change(slide_id=["absent", *names[1:]])
    assert evaluate("--cohort", tiny_cohort.csv) == 1
    assert "1 of 17 slides are not in the store, first 'absent'" in capsys.readouterr().err
    assert evaluate("--cohort", tiny_cohort.csv, "--skip-missing") == 0
    assert table_of(tmp_path)["slide_id"].tolist() == names[1:]
    tiny_cohort.change(slide_id=[f"absent-{name}" for name in names])
    assert evaluate("--cohort", tiny_cohort.csv, "--skip-missing") == 1
    assert "17 of 17 slides are not in the store" in capsys.readouterr().err


def test_wrong_files_and_columns_are_one_line(evaluate, tiny_cohort, tmp_path, capsys) -> None:
    tiny_cohort.change(grade="high")
    for words, message in (
        (["--cohort", tiny_cohort.csv, "--label", "grade"], "column 'grade' holds ['high'], the checkpoint knows"),
        (["--cohort", tmp_path / "absent.csv"], "absent.csv"),
        (["--store", tmp_path / "absent"], "absent"),
        (["--checkpoint", tmp_path / "absent.ckpt"], "no such checkpoint"),
        (["--checkpoint", tiny_cohort.csv], "cohort.csv: "),
        (["--device", "toaster"], "--device 'toaster'"),
        (["--batch-size", 0], "--batch-size 0"),
        (["--split", "test"], "give --cohort"),
    ):
        assert evaluate(*words) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert message in line
