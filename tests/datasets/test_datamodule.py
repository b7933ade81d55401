from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import LightningDataModule

from span_sparse.datasets import MultiLabelTask, RegressionTask, SegmentationTask, SurvivalTask
from span_sparse.datasets.datamodule import SlideDataModule
from span_sparse.datasets.loaders import SlideLoader, TrainingLoader
from span_sparse.errors import CohortError, ConfigError, SpanError, StoreError
from span_sparse.store import FeatureStore


def module(cohort, **settings) -> SlideDataModule:
    return SlideDataModule(str(cohort.store), str(cohort.csv), **settings)


def test_splits_labels_and_task(tiny_cohort) -> None:
    data = module(tiny_cohort, batch_size=4)
    data.setup("fit")
    assert [len(data.items(split)) for split in ("train", "val", "test")] == [6, 4, 7]
    assert [(item.slide_id, item.case_id, item.label) for item in data.items("val")] == [
        ("s06", "p06", 0), ("s07", "p07", 1), ("s08", "p08", 0), ("s09", "p09", 1),
    ]  # fmt: skip
    assert data.task.class_names == ("a", "b")
    assert (data.task.encoder.name, data.task.num_features) == ("stain-texture", 16)
    assert data.task.lattice.patch_size_px == 32
    indices = [index for batch in data.train_dataloader() for index in batch.indices.tolist()]
    assert sorted(indices) == list(range(6))
    assert [batch.num_slides for batch in data.test_dataloader()] == [4, 3]
    assert [index for batch in data.test_dataloader() for index in batch.indices.tolist()] == list(range(7))


def test_workers_see_what_the_training_process_sees(tiny_cohort) -> None:
    alone, with_workers = module(tiny_cohort, batch_size=2), module(tiny_cohort, batch_size=2, num_workers=2)
    for data in (alone, with_workers):
        data.setup()
    for ours, theirs in zip(alone.train_dataloader(), with_workers.train_dataloader(), strict=True):
        assert ours.indices.tolist() == theirs.indices.tolist()
        assert ours.coords.tolist() == theirs.coords.tolist()


def test_the_order_of_the_classes_can_be_chosen(tiny_cohort) -> None:
    data = module(tiny_cohort, class_names=["b", "a"])
    data.setup()
    assert [item.label for item in data.items("val")] == [1, 0, 1, 0]


def test_unlabelled_test_slides_are_kept_others_refused(tiny_cohort) -> None:
    labels = tiny_cohort.frame["label"].tolist()
    labels[-1] = ""
    tiny_cohort.change(label=labels)
    data = module(tiny_cohort)
    data.setup()
    assert data.items("test")[-1].label == -1
    labels[0] = ""
    tiny_cohort.change(label=labels)
    with pytest.raises(CohortError, match=r"slide 's00' of split train has the label None .* one of \['a', 'b'\]"):
        module(tiny_cohort).setup()


def test_slides_without_a_split_are_left_out(tiny_cohort) -> None:
    splits = tiny_cohort.frame["split"].tolist()
    splits[0] = splits[-1] = ""
    tiny_cohort.change(split=splits)
    data = module(tiny_cohort)
    data.setup()
    assert [len(data.items(split)) for split in ("train", "val", "test")] == [5, 4, 6]


def another_encoder(cohort) -> None:
    store = FeatureStore(cohort.store)
    record = store.read("s09")
    store.write(dataclasses.replace(record, encoder=dataclasses.replace(record.encoder, revision="2")), overwrite=True)


def with_values(column: str, **replacements: str) -> Callable:
    """Changes single cells, given as `s00="value"`."""

    def change(cohort) -> None:
        frame = cohort.frame
        for slide, value in replacements.items():
            frame.loc[frame["slide_id"] == slide, column] = value
        frame.to_csv(cohort.csv, index=False)

    return change


@pytest.mark.parametrize(
    ("break_it", "settings", "error", "message"),
    [
        (with_values("case_id", s00="p09"), {}, CohortError, r"(?s)p09.*(train.*val|val.*train)"),
        (with_values("label", s01="a", s03="a", s05="a"), {}, CohortError, r"at least two classes; found \['a'\]"),
        (with_values("label", s01="a", s03="a", s05="a"), {"class_names": ["a", "b"]}, CohortError, r"none of \['b'\]"),
        (with_values("label", s07="c"), {}, CohortError, r"slide 's07' of split val has the label 'c'"),
        (with_values("slide_id", s04="absent"), {}, StoreError, r"1 of 17 slides .* first 'absent'; run `span ext"),
        (lambda cohort: None, {"split": "fold_1"}, CohortError, r"fold_1"),
        (lambda cohort: None, {"label": "grade"}, CohortError, r"grade"),
        (lambda cohort: cohort.change(split="train"), {}, CohortError, r"into train and val, found \['train'\]"),
        (with_values("split", s00="training"), {}, CohortError, r"training"),
        (another_encoder, {}, StoreError, r"(?s)revision.*"),
        (lambda cohort: cohort.csv.unlink(), {}, CohortError, r"cohort\.csv"),
    ],
    ids=[
        "leakage", "one class", "a class without slides", "unknown label", "missing slide", "no split column",
        "no label column", "no validation", "unknown split", "two encoders", "no table",
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_data_is_said_before_training(
    tiny_cohort, monkeypatch, break_it, settings: dict[str, str], error: type[SpanError], message: str
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    break_it(tiny_cohort)
    with pytest.raises(error, match=message):
        module(tiny_cohort, **settings).setup()


def test_settings_that_cannot_work(tiny_cohort) -> None:
    with pytest.raises(ConfigError, match="batch_size 0 must be at least 1"):
        module(tiny_cohort, batch_size=0)
    tiny_cohort.change(split=["train"] * 10 + ["val"] * 7)
    data = module(tiny_cohort)
    data.setup()
    with pytest.raises(CohortError, match="puts no slide into test"):
        data.test_dataloader()


def test_survival_reaches_the_batch(tiny_cohort) -> None:
    tiny_cohort.change(time=[number / 2 for number in range(16)] + [""], event=["1", "0"] * 8 + [""])
    data = module(tiny_cohort, task=SurvivalTask(), batch_size=3)
    data.setup("fit")
    assert (data.task.kind, data.task.num_features) == ("survival", 16)
    for batch in data.train_dataloader():
        assert batch.targets.tolist() == [[index / 2, (index + 1) % 2] for index in batch.indices.tolist()]
        assert batch.labels.tolist() == [-1] * 3
        assert batch.patch_labels is None
    last = [batch.targets for batch in data.test_dataloader()][-1]
    assert last.isnan().tolist() == [[True, True]]


def annotate(cohort, slides, classes=("tumor", "stroma")) -> None:
    store = FeatureStore(cohort.store)
    for slide in slides:
        record = store.read(slide)
        ratios = np.full((len(record.grid), len(classes)), 0.25, np.float32)
        ratios[0, 0] = 0.75
        store.write(dataclasses.replace(record, ratios=ratios, ratio_classes=classes), overwrite=True)


def test_segmentation_reaches_the_batch_and_test_slides_may_lack_it(tiny_cohort, monkeypatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    annotate(tiny_cohort, [f"s{number:02d}" for number in range(11)])
    data = module(tiny_cohort, task=SegmentationTask(("tumor",)), augment=False)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.patch_labels.tolist() == [1] + [0] * (len(batch.coords) - 1)
    assert batch.patch_ratios.flatten().tolist() == [0.75] + [0.25] * (len(batch.coords) - 1)
    first, second, *_ = data.test_dataloader()
    assert first.patch_labels.tolist()[:2] == [1, 0]
    assert set(second.patch_labels.tolist()) == {-1}
    with pytest.raises(
        StoreError, match=r"'s00' of split train is annotated with \['tumor', 'stroma'\], without \['fat'\]"
    ):
        module(tiny_cohort, task=SegmentationTask(("fat",))).setup()
    splits = tiny_cohort.frame["split"].tolist()
    tiny_cohort.change(split=[*splits[:11], "val", *splits[12:]])
    with pytest.raises(StoreError, match=r"slide 's11' of split val is annotated not at all; run `span annotate`"):
        module(tiny_cohort, task=SegmentationTask(("tumor",))).setup()


def test_a_class_without_a_training_patch_is_refused_before_training(tiny_cohort, monkeypatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    annotate(tiny_cohort, [f"s{number:02d}" for number in range(11)])
    module(tiny_cohort, task=SegmentationTask(("tumor",), threshold=0.75)).setup()
    with pytest.raises(StoreError, match=r"no patch of the 6 training slides has the class 'tumor' .* threshold 0\.8"):
        module(tiny_cohort, task=SegmentationTask(("tumor",), threshold=0.8)).setup()
    with pytest.raises(StoreError, match="has the class 'stroma'"):
        module(tiny_cohort, task=SegmentationTask(("tumor", "stroma"))).setup()


def test_classes_are_drawn_equally_often_on_request(tiny_cohort) -> None:
    tiny_cohort.change(label=["a", "b", *"aaaa", *tiny_cohort.frame["label"][6:]])
    data = module(tiny_cohort, balance_classes=True, batch_size=6)
    data.setup()
    (batch,) = data.train_dataloader()
    assert sorted(batch.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    for settings in ({"max_tokens": 100}, {"task": SurvivalTask()}):
        with pytest.raises(ConfigError, match="needs a classification task and batch_size"):
            module(tiny_cohort, balance_classes=True, **settings)


def test_tasks_are_checked_before_anything_is_read(tiny_cohort) -> None:
    with pytest.raises(ConfigError, match="threshold is 3"):
        module(tiny_cohort, task=SegmentationTask(("tumor",), threshold=3.0)).setup()
    with pytest.raises(ConfigError, match="label 'grade' and class_names None belong to the task"):
        module(tiny_cohort, label="grade", task=SurvivalTask())


@pytest.mark.parametrize(
    ("name", "settings", "task"),
    [
        ("RegressionTask", {"column": "age"}, RegressionTask("age")),  # ClassificationTask takes `column` too
        ("SurvivalTask", {}, SurvivalTask()),
        ("MultiLabelTask", {"columns": ["a", "b"]}, MultiLabelTask(("a", "b"))),
        ("SegmentationTask", {"classes": ["t"], "background": None}, SegmentationTask(("t",), background=None)),
    ],
)
def test_a_yaml_chooses_the_task_by_its_class(name, settings, task) -> None:
    from span_sparse.cli.fit import enable_network_classes

    enable_network_classes()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    chosen = {"class_path": f"span_sparse.datasets.{name}", "init_args": settings}
    arguments = {"store": "s", "cohort": "c", "task": chosen}
    data = {"class_path": "span_sparse.datasets.datamodule.SlideDataModule", "init_args": arguments}
    assert parser.instantiate(parser.parse_object({"data": data})).data.wanted_task == task


def test_a_class_that_a_side_lacks_is_refused_before_training_and_told_of_the_test_side(tiny_cohort, caplog) -> None:
    labels = tiny_cohort.frame["label"].tolist()
    tiny_cohort.change(label=[*labels[:6], *"aaaa", *labels[10:]])
    with pytest.raises(CohortError, match=r"column 'split': class 'b' has no slide on side val; put patients"):
        module(tiny_cohort).setup()
    tiny_cohort.change(label=[*labels[:10], *"a" * 7])
    data = module(tiny_cohort)
    with caplog.at_level("INFO"):
        data.setup()
    assert "warning: " in caplog.text
    assert "class 'b' has no slide on side test" in caplog.text
    tiny_cohort.change(label=labels, split=["train"] * 6 + ["val"] * 4 + ["test", *[""] * 6])
    caplog.clear()
    with caplog.at_level("INFO"):
        module(tiny_cohort, class_names=["a", "b"]).setup()
    assert caplog.records[0].getMessage() == (
        f"note: {tiny_cohort.csv}: 6 of 17 slides have no value in column 'split' and take no part"
    )


def test_a_site_that_gives_the_class_away_is_refused_or_told(tiny_cohort, caplog) -> None:
    tiny_cohort.change(site=["north" if label == "a" else "south" for label in tiny_cohort.frame["label"]])
    with pytest.raises(
        CohortError, match=r"class 'a' comes from one site only, 'north' .*allow_confounding: true .*\(an"
    ):
        module(tiny_cohort).setup()
    with caplog.at_level("INFO"):
        module(tiny_cohort, allow_confounding=True).setup()
    assert "comes from one site only" in caplog.text
    caplog.clear()
    tiny_cohort.change(site=["north", "north", "south", "south"] * 4 + ["north"])
    with caplog.at_level("INFO"):
        module(tiny_cohort).setup()
    assert not caplog.records
    with pytest.raises(CohortError, match="scanner"):
        module(tiny_cohort, site_column="scanner").setup()


def test_slides_are_copied_to_the_node_s_disk(tiny_cohort, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setenv("FAST_DISK", str(tmp_path / "fast"))
    plain, data = module(tiny_cohort), module(tiny_cohort, cache_dir="$FAST_DISK/features")
    for one in (plain, data):
        one.setup()
    for ours, theirs in zip(plain.val_dataloader(), data.val_dataloader(), strict=True):
        assert torch.equal(ours.features, theirs.features)
    (copies,) = (tmp_path / "fast" / "features").iterdir()
    assert FeatureStore(copies).slide_ids == ("s06", "s07", "s08", "s09")
    with pytest.raises(ConfigError, match=r"cache_dir '\$SLURM_TMPDIR_X' names a variable that is not set"):
        module(tiny_cohort, cache_dir="$SLURM_TMPDIR_X")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StoreError, match=r"13 slides of .* need .*; name a larger disk"):
        module(tiny_cohort, cache_dir="$FAST_DISK/features").setup()


def test_a_loss_is_weighted_by_the_slides_a_step_has(tiny_cohort) -> None:
    data = module(tiny_cohort, max_tokens=60, batch_size=2)
    data.setup()
    assert data.slides_per_step == 2
    steps = len(data.train_dataloader())
    assert data.slides_per_step == 6 / steps


def on_gpu(data: SlideDataModule) -> SlideDataModule:
    """With a trainer that says it trains on a GPU; its loaders are looked at and not iterated."""
    data.setup()
    data.trainer = SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
        max_epochs=2, global_rank=0, world_size=1, lightning_module=SimpleNamespace(network=torch.nn.Linear(1, 1)),
        fit_loop=SimpleNamespace(epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=0))),
        strategy=SimpleNamespace(root_device=torch.device("cuda", 0)),
    )  # fmt: skip
    return data


@pytest.mark.parametrize(
    ("settings", "in_training", "in_validation"),
    [
        ({}, 100_000, 200_000),  # neither is given
        ({"batch_size": 1}, None, 200_000),
        ({"batch_size": 3}, None, 200_000),
        ({"max_tokens": 40}, 40, 40),
        ({"balance_classes": True}, None, 200_000),
    ],
)
def test_on_a_gpu_slides_are_grouped_by_tokens_unless_a_step_was_chosen(
    tiny_cohort, settings, in_training, in_validation
) -> None:
    data = on_gpu(module(tiny_cohort, **settings))
    training, validation = data.train_dataloader(), data.val_dataloader()
    assert isinstance(training, TrainingLoader)
    assert isinstance(validation, SlideLoader)
    assert training.order["max_tokens"] == in_training
    sizes = [len(batch) for batch in training.batch_sampler]
    expected = {100_000: [6], 40: None}.get(in_training, [3, 3] if data.batch_size == 3 else [1] * 6)
    assert expected is None or sizes == expected
    # 30, 33, 36 and 39 patches, in order
    assert list(validation.batch_sampler) == ([[0, 1, 2, 3]] if in_validation == 200_000 else [[0], [1], [2], [3]])
    assert {training.placement.device, validation.placement.device} == {torch.device("cuda", 0)}


def test_validation_on_a_gpu_counts_whole_slides(tiny_cohort) -> None:
    """Training takes five patches of each; validation sees all 30, 33, 36 and 39 of them."""
    data = on_gpu(module(tiny_cohort, max_tokens=70, max_tokens_per_slide=5))
    assert list(data.val_dataloader().batch_sampler) == [[0, 1], [2], [3]]


def test_on_the_cpu_a_step_is_one_slide_and_nothing_is_placed(tiny_cohort) -> None:
    data = module(tiny_cohort)
    data.setup()
    loader = data.train_dataloader()
    assert [len(batch) for batch in loader.batch_sampler] == [1] * 6
    assert (loader.order["batch_size"], loader.order["max_tokens"], loader.placement) == (1, None, None)
