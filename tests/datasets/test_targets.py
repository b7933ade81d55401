from __future__ import annotations

import math
from pathlib import Path

import pytest

from span_sparse.cohort import read_cohort
from span_sparse.datasets import ClassificationTask, MultiLabelTask, RegressionTask, SegmentationTask, SurvivalTask
from span_sparse.datasets.targets import read_targets
from span_sparse.errors import CohortError

TABLE = """slide_id,split,time,event,age,TP53,KRAS,grade
a,train,12.5,1,61,1,0,low
b,train,0,0,43.5,0,,high
c,train,7,true,70,,1,low
d,val,1e2,FALSE,1,1,1,high
e,test,,1,,,,
f,,soon,perhaps,old,maybe,2,medium
"""


def targets(tmp_path: Path, task, table: str = TABLE):
    path = tmp_path / "cohort.csv"
    path.write_text(table)
    cohort = read_cohort(path)
    completed, found = read_targets(task, cohort, cohort.splits("split"), "split")
    return completed, {
        slide: (target.label, tuple(None if math.isnan(value) else value for value in target.values))
        for slide, target in found.items()
    }


def test_every_task_reads_its_columns_and_leaves_the_rest(tmp_path) -> None:
    assert targets(tmp_path, SurvivalTask())[1] == {
        "a": (-1, (12.5, 1)), "b": (-1, (0, 0)), "c": (-1, (7, 1)), "d": (-1, (100, 0)), "e": (-1, (None, None)),
    }  # fmt: skip
    assert targets(tmp_path, RegressionTask("age"))[1] == {
        "a": (-1, (61,)), "b": (-1, (43.5,)), "c": (-1, (70,)), "d": (-1, (1,)), "e": (-1, (None,)),
    }  # fmt: skip
    assert targets(tmp_path, MultiLabelTask(("KRAS", "TP53")))[1] == {
        "a": (-1, (0, 1)), "b": (-1, (None, 0)), "c": (-1, (1, None)), "d": (-1, (1, 1)), "e": (-1, (None, None)),
    }  # fmt: skip
    completed, found = targets(tmp_path, ClassificationTask("grade"))
    assert completed == ClassificationTask("grade", ("high", "low"))
    assert found == {"a": (1, ()), "b": (0, ()), "c": (1, ()), "d": (0, ()), "e": (-1, ())}
    task = SegmentationTask(("tumor",))
    assert targets(tmp_path, task) == (task, dict.fromkeys("abcde", (-1, ())))


@pytest.mark.parametrize(
    ("alive", "dead"), [("Alive", "Dead"), ("living", "deceased"), ("0:LIVING", "1:DECEASED"), ("0.0", "TRUE")]
)
def test_events_as_registries_write_them(tmp_path, alive, dead) -> None:
    table = TABLE.replace("12.5,1", f"12.5,{dead}", 1).replace("b,train,0,0", f"b,train,0,{alive}", 1)
    assert targets(tmp_path, SurvivalTask(), table) == targets(tmp_path, SurvivalTask())


@pytest.mark.parametrize(
    ("task", "old", "new", "message"),
    [
        (SurvivalTask(), "12.5,1", "12.5,2", r"cohort.csv, line 2, column 'event': expected 0 or 1 .* '2' for"),
        (SurvivalTask(), "12.5,1", "-3,1", "line 2, column 'time': expected a number of at least 0, found '-3'"),
        (SurvivalTask(), "1e2", "inf", "line 5, column 'time': expected a number, found 'inf'"),
        (SurvivalTask(), "b,train,0,0", "b,train,,0", "line 3, column 'time': slide 'b' of split train has no value"),
        (SurvivalTask(), "b,train,0,0", "b,train,0,NA", "line 3, column 'event': slide 'b' of split train has no"),
        (SurvivalTask("months"), "", "", "there is no column 'months'; it has slide_id, case_id"),
        (ClassificationTask("Grades"), "", "", "KRAS, grade; did you mean 'grade'"),
        (RegressionTask("age"), "43.5", "43,5", "line 3: expected 8 cells"),
        (RegressionTask("age"), "43.5", "4O", "line 3, column 'age': expected a number, found '4O' for slide 'b'"),
        (RegressionTask("age"), "d,val,1e2,FALSE,1,", "d,val,1e2,FALSE,,", "line 5, column 'age': slide 'd' of split"),
        (MultiLabelTask(("TP53", "KRAS")), "61,1,0", "61,,", "line 2, column 'TP53': slide 'a' of split train has no"),
        (MultiLabelTask(("TP53", "KRAS")), "43.5,0,", "43.5,1,", "'TP53' needs both 0 and 1 .* training .*, found 1$"),
        (MultiLabelTask(("TP53", "KRAS")), "61,1,0", "61,1,absent", "line 2, column 'KRAS': expected 0 or 1"),
        (ClassificationTask("grade", ("low", "medium")), "", "", r"none of \['medium'\]"),
        (ClassificationTask("grade"), "1,1,high", "1,1,odd", "slide 'd' of split val has the label 'odd'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_line_and_column(tmp_path, task, old, new, message) -> None:
    assert old in TABLE
    with pytest.raises(CohortError, match=message):
        targets(tmp_path, task, TABLE.replace(old, new, 1))


def test_training_slides_that_teach_nothing(tmp_path) -> None:
    head = "slide_id,split,time,event,age\n"
    with pytest.raises(CohortError, match="'event' is 1 for no training slide"):
        targets(tmp_path, SurvivalTask(), head + "a,train,1,0,5\nb,train,2,0,5\nc,val,1,1,6\n")
    with pytest.raises(CohortError, match=r"'age' needs two different numbers among the training slides, found 5$"):
        targets(tmp_path, RegressionTask("age"), head + "a,train,1,0,5\nb,train,2,0,5\nc,val,1,1,6\n")
