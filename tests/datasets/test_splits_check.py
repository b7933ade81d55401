from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from span_sparse.cohort import read_cohort
from span_sparse.datasets.splits import (
    SplitPlan,
    check_splits,
    make_splits,
    read_split_file,
    read_splits,
    resolve,
    summarise,
    write_splits,
)
from span_sparse.datasets.splits.check import cramers_v
from span_sparse.errors import CohortError

SIDES = ("train", "train", "train", "train", "val", "val", "test", "test")


@pytest.fixture
def study(tmp_path):
    """A cohort of eight cases of two slides and two classes, and a sound split; both are rows to spoil."""

    class Study:
        def __init__(self):
            self.cohort = [[f"{c}{s}", f"p{c}", "ab"[c % 2], f"S{c // 2 % 2}"] for c in range(8) for s in "xy"]
            self.splits = [[f"{c}{s}", SIDES[c]] for c in range(8) for s in "xy"]

        def read(self):
            write(tmp_path / "cohort.csv", [["slide_id", "case_id", "label", "site"], *self.cohort])
            write(tmp_path / "splits.csv", [["slide_id", "fold_0"], *self.splits])
            return read_split_file(tmp_path / "splits.csv"), read_cohort(tmp_path / "cohort.csv")

        def problems(self, **options):
            return [str(problem) for problem in check_splits(*self.read(), **options)]

    return Study()


def write(path, rows):
    path.write_text("\n".join(",".join(row) for row in rows) + "\n", encoding="utf-8")


def test_a_sound_split_has_no_problems(study):
    assert study.problems(site_column="site") == []
    assert study.problems() == []


def test_a_patient_on_two_sides(study):
    study.splits[1][1] = "test"
    assert study.problems() == [
        "fold_0: case 'p0' is on 2 sides: train (slide '0x'), test (slide '0y'); put all its slides on one side"
    ]
    study.splits[3][1] = "val"
    assert len(study.problems()) == 2  # every problem, not the first


def test_a_site_on_two_sides_only_on_request(study):
    problems = study.problems(site_column="site", site_aware=True)
    assert problems == [
        "fold_0: site 'S0' is on 2 sides: train (slide '0x'), val (slide '4x'); put all its slides on one side",
        "fold_0: site 'S1' is on 2 sides: train (slide '2x'), test (slide '6x'); put all its slides on one side",
    ]


def test_an_empty_side_and_an_empty_class(study):
    for row in study.splits[8:12]:
        row[1] = "train"
    assert study.problems() == ["fold_0: side val is empty; put slides there"]
    assert study.problems(sides=("train", "test")) == []
    study.splits[10][1] = study.splits[11][1] = "val"
    assert study.problems() == ["fold_0: class 'a' has no slide on side val; put patients of this class there"]


def test_an_external_test_side_without_labels_is_fine(study):
    for row in study.cohort[12:]:
        row[2] = ""
    assert study.problems() == []
    study.cohort[0][2] = ""
    assert study.problems() == [
        "fold_0: 1 slide ('0x') in train or val without a label; clear their side, or fill 'label'"
    ]


def test_slides_in_no_split(study):
    for row in study.splits[:8]:
        row[1] = ""
    study.splits = study.splits[:-1]
    problems = study.problems(sides=("val", "test"))
    assert problems == [
        "fold_0: 9 slides ('0x', '0y', '1x', ...) with a label on no side; give them one, or clear their 'label'"
    ]
    study.cohort = [
        [slide, case, label if slide in "4x4y5x5y6x6y7x" else "", site] for slide, case, label, site in study.cohort
    ]
    assert study.problems(sides=("val", "test")) == []


def test_slides_that_are_not_in_the_cohort(study, tmp_path):
    study.cohort = [["12", *row[1:]] if row[0] == "0x" else row for row in study.cohort]
    study.splits = [["12.0", *row[1:]] if row[0] == "0x" else row for row in study.splits]
    assert study.problems() == [
        f"slide '12.0' (line 2) is not in {tmp_path / 'cohort.csv'}; did a spreadsheet make it of '12'?",
        "fold_0: 1 slide ('12') with a label on no side; give them one, or clear their 'label'",
    ]


def test_duplicated_ids(study, tmp_path):
    study.splits += [["0x", "train"], ["7y", "val"]]
    problems = study.problems()
    assert problems == [
        "fold_0: slide '0x' is listed twice: line 2 (train) and line 18 (train); keep one of them",
        "fold_0: slide '7y' is on two sides: line 17 (test) and line 19 (val); keep one of them",
    ]
    with pytest.raises(
        CohortError, match=r"splits\.csv: fold_0: slide '0x' is listed twice.*\(and 1 more; `span splits"
    ):
        read_splits(tmp_path / "splits.csv", read_cohort(tmp_path / "cohort.csv"))


def test_the_same_problem_in_several_folds_is_one(study, tmp_path):
    _, cohort = study.read()
    rows = [["slide_id", "fold_0", "fold_1"], *([slide, side, side] for slide, side in study.splits[:-2])]
    write(tmp_path / "two.csv", rows)
    problems = check_splits(read_split_file(tmp_path / "two.csv"), cohort)
    assert [problem.folds for problem in problems] == [("fold_0", "fold_1")] * 2


def test_file_and_cohort_must_agree_about_the_case(study, tmp_path):
    _, cohort = study.read()
    write(tmp_path / "cases.csv", [["slide_id", "case_id", "fold_0"], *([s, "p" + s[0], v] for s, v in study.splits)])
    assert check_splits(read_split_file(tmp_path / "cases.csv"), cohort) == []
    text = (tmp_path / "cases.csv").read_text().replace("3y,p3", "3y,p6")
    (tmp_path / "cases.csv").write_text(text)
    (problem,) = check_splits(read_split_file(tmp_path / "cases.csv"), cohort)
    assert "slide '3y' belongs to case 'p6' here and to case 'p3' in" in str(problem)


def test_stamp_and_clam_are_checked_alike(study, tmp_path):
    _, cohort = study.read()
    (tmp_path / "s.json").write_text('[{"train": ["p0", "p1", "nobody"], "test": ["p2", "p3", "p0"]}]')
    messages = [
        str(problem) for problem in check_splits(read_split_file(tmp_path / "s.json"), cohort, sides=("train", "test"))
    ]
    assert (
        messages[0]
        == "fold_0: case 'p0' is on two sides: [0].train[0] (train) and [0].test[2] (test); keep one of them"
    )
    assert messages[1] == f"case 'nobody' ([0].train[2]) is not in {tmp_path / 'cohort.csv'}"
    assert "8 slides ('4x'" in messages[2]
    (tmp_path / "splits_0.csv").write_text(",train,val,test\n0,0x,0y,1x\n")
    messages = [str(problem) for problem in check_splits(read_split_file(tmp_path / "splits_0.csv"), cohort)]
    assert any("case 'p0' is on 2 sides: train (slide '0x'), val (slide '0y')" in message for message in messages)


def test_nothing_assigned(study):
    study.splits = [[slide, ""] for slide, _ in study.splits]
    assert study.problems()[0] == "no slide is on any side; `span splits make` deals them"


def test_a_class_from_one_site(study):
    for row in study.cohort:
        if row[2] == "b":
            row[3] = "S1"
    (problem,) = study.problems(site_column="site")
    assert problem.startswith(
        "fold_0: class 'b' comes from one site only, 'S1' (2 train patients), while the training side has 2 sites"
    )
    assert all(problem.confounding for problem in check_splits(*study.read(), site_column="site"))
    study.cohort[0][2] = study.cohort[1][2] = "rare"  # in one site too, but a single patient is no pattern
    study.cohort[8][2] = study.cohort[12][2] = "rare"
    assert not any("'rare'" in message for message in study.problems(site_column="site"))
    for row in study.cohort:
        row[3] = "S1"
    assert study.problems(site_column="site") == []  # one site tells nothing


def confounded_study(tmp_path, share):
    """200 patients; site and label agree for this share of them."""
    rows = [[f"s{n}", f"s{n}", "ab"[n % 2], "XY"[(n % 2) if n < 200 * share else 1 - n % 2]] for n in range(200)]
    write(tmp_path / "cohort.csv", [["slide_id", "case_id", "label", "site"], *rows])
    cohort = read_cohort(tmp_path / "cohort.csv")
    write_splits(make_splits(cohort, SplitPlan(method="fixed")), cohort, tmp_path / "s.csv", overwrite=True)
    return read_split_file(tmp_path / "s.csv"), cohort


def test_site_and_label_associated(tmp_path):
    problems = check_splits(*confounded_study(tmp_path, 0.85), site_column="site")
    assert len(problems) == 1
    assert "Cramér's V 0.7" in str(problems[0])
    assert "expected below 0.5" in str(problems[0])
    assert check_splits(*confounded_study(tmp_path, 0.65), site_column="site") == []


def test_many_small_sites_are_not_confounding_by_chance(tmp_path):
    random = np.random.default_rng(0)
    rows = [[f"s{n}", f"s{n}", "ab"[n % 2], f"S{random.integers(60)}"] for n in range(150)]
    write(tmp_path / "cohort.csv", [["slide_id", "case_id", "label", "site"], *rows])
    cohort = read_cohort(tmp_path / "cohort.csv")
    write_splits(make_splits(cohort, SplitPlan()), cohort, tmp_path / "s.csv")
    assert check_splits(read_split_file(tmp_path / "s.csv"), cohort, site_column="site") == []


def test_cramers_v():
    association, p_value = cramers_v(np.array([[1000, 0], [0, 1000]]))
    assert association == pytest.approx(1, abs=1e-3)
    assert p_value < 1e-100
    table = np.array([[30, 11, 7], [5, 23, 13]])
    statistic, expected_p = chi2_contingency(table, correction=False)[:2]
    association, p_value = cramers_v(table)
    assert p_value == pytest.approx(expected_p, rel=1e-9)
    phi2 = statistic / 89 - 2 / 88
    assert association == pytest.approx(np.sqrt(phi2 / (1 - 1 / 88)), rel=1e-9)
    assert cramers_v(np.array([[10, 10], [10, 10]])) == (0, 1)


def test_the_summary_counts_patients_slides_and_sites(study):
    study.cohort[0][2] = "b"
    split_file, cohort = study.read()
    train, val, test = summarise(resolve(split_file, cohort), cohort, "label", "site")
    assert (train.fold, train.side, train.num_slides, train.num_cases) == (0, "train", 8, 4)
    assert train.patients_by_class == {"a": 2, "b": 3}  # p0 has a slide of each
    assert train.sites == ("S0", "S1")
    assert (val.num_slides, val.sites, test.sites) == (4, ("S0",), ("S1",))
    assert summarise(resolve(split_file, cohort), cohort, "label", None)[0].sites == ()
