from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from span_sparse.datasets import (
    ClassificationTask,
    MultiLabelTask,
    RegressionTask,
    SegmentationTask,
    SurvivalTask,
    Task,
)
from span_sparse.errors import CheckpointError, ConfigError
from span_sparse.grid import LatticeSpec
from span_sparse.types import EncoderIdentity

ENCODER = EncoderIdentity("stain-texture", "1", "descriptor", 16, 32, 1.0, "float32")
LATTICE = LatticeSpec(32, 1.0)
TASKS = [
    ClassificationTask("grade", ("low", "high")),
    MultiLabelTask(("TP53", "KRAS")),
    RegressionTask("age"),
    SurvivalTask("os_months", "dead"),
    SegmentationTask(("tumor", "stroma"), 0.25, None),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_a_task_survives_a_checkpoint(task) -> None:
    bound = task.on(ENCODER, LATTICE)
    values = json.loads(json.dumps(bound.as_dict()))
    assert (bound.num_features, bound.lattice) == (16, LATTICE)
    assert type(task).from_dict(values) == bound != task
    assert Task.from_dict(values) == bound


def test_what_is_read_and_in_which_order() -> None:
    assert [task.target_names for task in TASKS] == [(), ("TP53", "KRAS"), ("age",), ("os_months", "dead"), ()]
    assert SurvivalTask().target_names == ("time", "event")


def test_the_first_checkpoints_say_no_kind() -> None:
    values = {"class_names": ["a", "b"], "encoder": ENCODER.as_dict(), "lattice": LATTICE.as_dict()}
    assert ClassificationTask.from_dict(values) == ClassificationTask("label", ("a", "b")).on(ENCODER, LATTICE)
    del values["class_names"]
    with pytest.raises(CheckpointError, match="incomplete: KeyError 'class_names'"):
        ClassificationTask.from_dict(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "regression"}, "task is 'regression', expected survival"),
        ({"kind": "guessing"}, "task is 'guessing', expected survival"),
        ({"kind": ["survival"]}, "expected survival"),
        ({"time_column": "dead"}, "incomplete: ConfigError .*different names"),
        ({"encoder": {}}, "incomplete: KeyError 'name'"),
    ],
)
def test_checkpoints_of_another_task_are_refused(change, message) -> None:
    values = SurvivalTask("os_months", "dead").on(ENCODER, LATTICE).as_dict() | change
    with pytest.raises(CheckpointError, match=message):
        SurvivalTask.from_dict(values)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (MultiLabelTask(()), r"columns must be different names, at least one, found \[\]"),
        (MultiLabelTask(("a", "a")), "different names"),
        (SurvivalTask("time", "time"), "time_column and event_column must be different"),
        (SegmentationTask(()), "not two classes or more"),
        (SegmentationTask(("tumor",), background=None), "not two classes or more"),
        (SegmentationTask(("background",)), "different names"),
        (SegmentationTask(("tumor",), threshold=0.0), r"threshold is 0.0, expected a share of the area in \(0, 1\]"),
        (SegmentationTask(("tumor",), threshold=50.0), "threshold is 50.0"),
    ],
)
def test_settings_that_cannot_be_meant(task, message) -> None:
    with pytest.raises(ConfigError, match=message):
        task.check()


def test_patch_labels_patch_by_patch() -> None:
    random = np.random.default_rng(0)
    ratios = random.random((101, 3)).astype(np.float32)
    ratios[::7] = np.nan
    for threshold, background in ((0.5, "background"), (0.9, None), (1.0, "none")):
        task = SegmentationTask(("a", "b", "c"), threshold, background)
        expected = []
        for row in ratios.tolist():
            known = [share for share in row if share == share]
            if not known:
                expected.append(-1)
            elif max(known) >= threshold:
                expected.append(task.class_names.index("abc"[row.index(max(known))]))
            else:
                expected.append(-1 if background is None else 0)
        assert task.patch_labels(torch.from_numpy(ratios)).tolist() == expected


def test_a_patch_exactly_at_the_threshold_belongs_to_the_class() -> None:
    task = SegmentationTask(("tumor",), 0.5)
    assert task.class_names == ("background", "tumor")
    assert task.patch_labels(torch.tensor([[0.5], [0.49]])).tolist() == [1, 0]
