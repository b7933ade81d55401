from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from span_sparse.cohort import read_cohort
from span_sparse.datasets import splits as package
from span_sparse.datasets.splits import SplitPlan, make_splits
from span_sparse.errors import CohortError, ConfigError


def cohort_of(folder: Path, rows, header="slide_id,case_id,label,site"):
    path = folder / "cohort.csv"
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return read_cohort(path)


def simple_rows(num_a: int, num_b: int, slides_per_case: int = 1):
    labels = ["a"] * num_a + ["b"] * num_b
    return [
        (f"{case:03d}-{slide}", f"{case:03d}", label, f"S{case % 7}")
        for case, label in enumerate(labels)
        for slide in range(slides_per_case)
    ]


def patients(side_of, rows):
    """Patients by side and class."""
    held = {(side_of[slide], label, case) for slide, case, label, _ in rows if slide in side_of}
    return Counter((side, label) for side, label, _ in held)


def test_kfold_by_hand(tmp_path):
    rows = simple_rows(20, 10, slides_per_case=2)
    splits = make_splits(cohort_of(tmp_path, rows), SplitPlan())
    assert sorted(splits.sides) == [0, 1, 2, 3, 4]
    for side_of in splits.sides.values():
        assert patients(side_of, rows) == {
            ("train", "a"): 12,
            ("train", "b"): 6,
            ("val", "a"): 4,
            ("val", "b"): 2,
            ("test", "a"): 4,
            ("test", "b"): 2,
        }
    tested = Counter(slide for side_of in splits.sides.values() for slide, side in side_of.items() if side == "test")
    assert tested == {row[0]: 1 for row in rows}


@pytest.mark.parametrize("method", ["montecarlo", "fixed"])
def test_fractions_by_hand(tmp_path, method):
    rows = simple_rows(60, 20)
    plan = SplitPlan(method=method, val_fraction=0.1, test_fraction=0.25)
    splits = make_splits(cohort_of(tmp_path, rows), plan)
    assert len(splits.sides) == (5 if method == "montecarlo" else 1)
    for side_of in splits.sides.values():
        assert patients(side_of, rows) == {
            ("train", "a"): 39,
            ("train", "b"): 13,
            ("val", "a"): 6,
            ("val", "b"): 2,
            ("test", "a"): 15,
            ("test", "b"): 5,
        }
    draws = {tuple(sorted(side_of.items())) for side_of in splits.sides.values()}
    assert len(draws) == len(splits.sides)


def test_a_test_fraction_of_zero_leaves_the_side_out(tmp_path):
    splits = make_splits(cohort_of(tmp_path, simple_rows(10, 10)), SplitPlan(method="fixed", test_fraction=0.0))
    assert Counter(splits.sides[0].values()) == {"train": 16, "val": 4}


def test_sizes_stay_equal_with_many_classes(tmp_path):
    rows = [(f"s{case}", f"p{case}", f"class{case % 10}", "S") for case in range(60)]
    splits = make_splits(cohort_of(tmp_path, rows), SplitPlan())
    sizes = [sum(side == "test" for side in side_of.values()) for side_of in splits.sides.values()]
    assert sizes == [12] * 5  # 6 patients of each class leave one over for a side: not always the first


def test_stratification_is_as_close_as_scikit_learn_s(tmp_path):
    random = np.random.default_rng(3)
    rows = [
        (f"{case}-{slide}", f"{case}", label, "S")
        for case, label in enumerate(random.choice(list("abc"), 140, p=[0.7, 0.2, 0.1]))
        for slide in range(random.integers(1, 4))
    ]
    splits = make_splits(cohort_of(tmp_path, rows), SplitPlan())
    label_of = {case: label for _, case, label, _ in rows}
    share = {name: list(label_of.values()).count(name) / 5 for name in "abc"}

    def miss(cases: set[str]) -> float:
        return max(abs(sum(label_of[case] == name for case in cases) - share[name]) for name in "abc")

    case_of = {row[0]: row[1] for row in rows}
    ours = [
        miss({case_of[slide] for slide, side in side_of.items() if side == "test"}) for side_of in splits.sides.values()
    ]
    cases = np.array(list(label_of))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(
        cases, [label_of[case] for case in cases], cases
    )
    theirs = [miss(set(cases[test])) for _, test in folds]
    assert max(ours) < 1
    assert max(ours) <= max(theirs) + 1e-9


def test_cases_of_several_labels_count_for_each(tmp_path):
    """CAMELYON17: every patient has slides with and without tumour."""
    rows = [(f"{case}-{label}", f"{case}", label, "S") for case in range(20) for label in "ab"]
    rows += [(f"x{case}", f"x{case}", "c", "S") for case in range(10)]
    splits = make_splits(cohort_of(tmp_path, rows), SplitPlan())
    for side_of in splits.sides.values():
        held = patients(side_of, rows)
        assert [held["test", name] for name in "abc"] == [4, 4, 2]
        assert all(side_of[f"{case}-a"] == side_of[f"{case}-b"] for case in range(20))


def test_unlabelled_slides_take_no_part(tmp_path):
    rows = [*simple_rows(10, 10), ("u1", "000", "", "S"), ("u2", "new", "NA", "S")]
    splits = make_splits(cohort_of(tmp_path, rows), SplitPlan())
    for side_of in splits.sides.values():
        assert set(side_of) == {row[0] for row in rows[:-2]}


def test_a_site_is_on_one_side(tmp_path):
    rows = [(f"s{case}", f"p{case}", "ab"[case % 3 == 0], f"site{case % 9}") for case in range(120)]
    cohort = cohort_of(tmp_path, [*rows, ("extra", "p0", "a", "other")])
    splits = make_splits(cohort, SplitPlan(site_aware="group", folds=3))
    site_of = cohort.labels("site")
    for side_of in splits.sides.values():
        sides: dict = {}
        for slide, side in side_of.items():
            sides.setdefault(site_of[slide], set()).add(side)
        assert all(len(held) == 1 for held in sides.values())
        assert sides["other"] == sides["site0"]  # one patient was at both
        assert {side for held in sides.values() for side in held} == {"train", "val", "test"}
    plain = make_splits(cohort, SplitPlan(folds=3))
    assert any(
        len({side_of[slide] for slide in side_of if site_of[slide] == "site1"}) > 1 for side_of in plain.sides.values()
    )


def test_a_group_column_ties_cases_and_never_parts_one(tmp_path):
    rows = [(f"{case}-{slide}", f"{case}", "ab"[case % 2], case // 4) for case in range(40) for slide in range(2)]
    cohort = cohort_of(tmp_path, rows, "slide_id,case_id,label,family")
    families = make_splits(cohort, SplitPlan(group="family", folds=2))
    for side_of in families.sides.values():
        for family in range(10):
            assert len({side_of[slide] for slide, _, _, of in rows if of == family}) == 1
    by_slide = make_splits(cohort, SplitPlan(group="slide_id"))
    for side_of in by_slide.sides.values():
        assert all(side_of[f"{case}-0"] == side_of[f"{case}-1"] for case in range(40))


def test_the_result_depends_on_seed_and_content_only(tmp_path):
    rows = simple_rows(30, 20, slides_per_case=2)
    first = make_splits(cohort_of(tmp_path, rows), SplitPlan(seed=4))
    again = make_splits(cohort_of(tmp_path, rows[::-1]), SplitPlan(seed=4))
    other = make_splits(cohort_of(tmp_path, rows), SplitPlan(seed=5))
    assert first.content_hash == again.content_hash != other.content_hash
    # pinned: a new release must not deal the patients of a study anew
    assert first.content_hash == "sha256:637d5e3e29b2ba8298d50a97c35fb18d2974820423d5b4822f032a252821e568"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    slides=st.lists(
        st.tuples(st.integers(0, 25), st.sampled_from(["a", "b", "c", ""]), st.integers(0, 30)),
        min_size=20,
        max_size=90,
    ),
    method=st.sampled_from(["kfold", "montecarlo", "fixed"]),
    site_aware=st.sampled_from(["group", "none"]),
    seed=st.integers(0, 10**6),
)
def test_grouped_whatever_the_cohort(tmp_path, slides, method, site_aware, seed):
    rows = [(f"s{n}", f"p{case}", label, f"S{case % 8 if site else 0}") for n, (case, label, site) in enumerate(slides)]
    cohort = cohort_of(tmp_path, rows)
    plan = SplitPlan(method=method, folds=None if method == "fixed" else 3, site_aware=site_aware, seed=seed)
    try:
        splits = make_splits(cohort, plan)
    except CohortError:
        return  # too few groups: refused, never a leaking or incomplete split
    labelled = {row[0] for row in rows if row[2]}
    for side_of in splits.sides.values():
        assert set(side_of) == labelled
        for column in ("case_id", "site") if site_aware == "group" else ("case_id",):
            value_of = cohort.labels(column)
            assert len({(value_of[slide], side) for slide, side in side_of.items()}) == len(
                {value_of[slide] for slide in side_of}
            )
        classes = {row[2] for row in rows if row[2]}
        label_of = cohort.labels("label")
        assert {(side, label_of[slide]) for slide, side in side_of.items()} == {
            (side, name) for side in ("train", "val", "test") for name in classes
        }


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"folds": 1}, "--folds 1: method kfold needs at least 2"),
        ({"folds": 0, "method": "montecarlo"}, "--folds 0: method montecarlo needs at least 1"),
        ({"folds": 3, "method": "fixed"}, "--folds 3: method fixed needs 1"),
        ({"test_fraction": 0.3}, "--test-fraction: with method kfold the test side is one of the folds"),
        ({"val_fraction": 0.0}, "expected val above 0"),
        ({"val_fraction": 0.5, "folds": 2}, "something left for train"),
        ({"val_fraction": float("nan")}, "expected val above 0"),
        ({"test_fraction": -0.1, "method": "fixed"}, "test at least 0"),
    ],
)
def test_impossible_plans_are_refused(settings_, message):
    with pytest.raises(ConfigError, match=message):
        SplitPlan(**settings_)


def test_cohorts_that_cannot_be_split_are_refused(tmp_path):
    with pytest.raises(CohortError, match=r"cohort.csv: column 'label': expected at least two classes, found \['a'\]"):
        make_splits(cohort_of(tmp_path, simple_rows(10, 0)), SplitPlan())
    message = r"class 'b' of column 'label': expected at least 5 patients to put it on every side, found 4"
    with pytest.raises(CohortError, match=message):
        make_splits(cohort_of(tmp_path, simple_rows(10, 4, slides_per_case=3)), SplitPlan())
    with pytest.raises(CohortError, match="no order of dealing puts class 'b' on side"):
        make_splits(cohort_of(tmp_path, simple_rows(10, 3)), SplitPlan(folds=2))
    rows = [(f"s{case}", f"p{case}", "ab"[case % 2], f"S{case % 2}") for case in range(40)]
    with pytest.raises(CohortError, match=r"class 'a' .* expected at least 5 sites \(column 'site', .*found 1"):
        make_splits(cohort_of(tmp_path, rows), SplitPlan(site_aware="group"))
    rows[3] = ("s3", "p3", "b", "")
    with pytest.raises(CohortError, match="column 'site' has no value for 1 labelled slides, first 's3'"):
        make_splits(cohort_of(tmp_path, rows), SplitPlan(site_aware="group"))
    with pytest.raises(CohortError, match="there is no column 'hospital'"):
        make_splits(cohort_of(tmp_path, rows), SplitPlan(site_aware="group", site_column="hospital"))
    with pytest.raises(CohortError, match="there is no column 'grade'"):
        make_splits(cohort_of(tmp_path, rows), SplitPlan(label="grade"))


def test_the_modules_import_no_torch():
    folder = Path(str(package.__file__)).parent
    files = sorted(folder.glob("*.py"))
    assert len(files) >= 6
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in {"torch", "lightning", "spconv"}, file
                assert not name.startswith("span_sparse.datasets.") or name.startswith("span_sparse.datasets.splits")


def test_unequal_sites_come_close_to_the_shares(tmp_path):
    sizes = [30, 14, 10, 7, 5, 4, 3, 3, 2, 2]
    rows = [(f"{site}-{n}", f"{site}-{n}", "ab"[n % 2], site) for site, size in enumerate(sizes) for n in range(size)]
    cohort = cohort_of(tmp_path, rows)
    for seed in range(4):
        splits = make_splits(cohort, SplitPlan(method="fixed", site_aware="group", seed=seed))
        held = Counter(splits.sides[0].values())
        assert abs(held["train"] - 48) <= 4, "a single order of dealing gives 29 to 47"
        assert abs(held["val"] - 16) <= 4
        assert abs(held["test"] - 16) <= 4


def test_a_class_in_few_sites_reaches_every_side(tmp_path):
    """Three of five sites have the class: most orders of dealing that fit the shares best miss a side."""
    rows = [(f"a{n}", f"a{n}", "a", f"S{n % 5}") for n in range(50)] + [
        (f"b{n}", f"b{n}", "b", f"S{n}") for n in range(3)
    ]
    cohort = cohort_of(tmp_path, rows)
    label_of = cohort.labels("label")
    for seed in range(20):
        splits = make_splits(cohort, SplitPlan(method="fixed", site_aware="group", seed=seed))
        held = {side for slide, side in splits.sides[0].items() if label_of[slide] == "b"}
        assert held == {"train", "val", "test"}
