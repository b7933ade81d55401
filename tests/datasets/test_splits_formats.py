from __future__ import annotations

import csv
import hashlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from span_sparse.cohort import read_cohort
from span_sparse.datasets.splits import FORMATS, Splits, read_split_file, read_splits, split_hash, write_splits
from span_sparse.errors import CohortError

COHORT = """slide_id,case_id,label,mpp,site
001,0007,a,0.25,x
002,0007,a,,x
Tü/3.1,p,1,0.5,y
"4,b",q,1,,y
NA,NA,a,,x
e,p,,,x
"""
SIDES = {
    0: {"001": "train", "002": "train", "Tü/3.1": "val", "4,b": "test", "NA": "test"},
    1: {"001": "test", "002": "test", "Tü/3.1": "train", "4,b": "val", "NA": "train"},
}


@pytest.fixture
def cohort(tmp_path):
    path = tmp_path / "cohort.csv"
    path.write_text(COHORT, encoding="utf-8")
    return read_cohort(path)


def output_of(folder, format):
    return folder / {"wide": "w.csv", "clam": "folds", "patho-bench": "k=all.tsv", "stamp": "splits.json"}[format]


def test_the_hash_by_hand():
    lines = '["x", 0, "train"]\n["x", 1, "test"]\n["\\u00fc", 0, "val"]\n'
    expected = "sha256:" + hashlib.sha256(lines.encode("ascii")).hexdigest()
    assert split_hash({1: {"x": "test"}, 0: {"ü": "val", "x": "train"}}) == expected
    assert Splits({0: {"x": "train"}}).content_hash != Splits({1: {"x": "train"}}).content_hash
    assert Splits({0: {"x": "train"}}).content_hash != Splits({0: {"x": "val"}}).content_hash


@pytest.mark.parametrize("format", FORMATS)
def test_round_trip(tmp_path, cohort, format):
    output = output_of(tmp_path, format)
    write_splits(Splits(SIDES), cohort, output, format=format)
    found = read_split_file(output)
    assert found.format == format
    splits = read_splits(output, cohort, label="label")
    assert {fold: dict(side_of) for fold, side_of in splits.sides.items()} == SIDES
    assert splits.content_hash == split_hash(SIDES)


IDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8).map(str.strip).filter(bool)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cases=st.dictionaries(IDS, st.lists(IDS, min_size=1, max_size=3), min_size=3, max_size=6),
    seed=st.randoms(use_true_random=False),
    format=st.sampled_from(FORMATS),
)
def test_any_ids_survive(tmp_path, cases, seed, format):
    case_of = {f"{slide}": case for case, slides in cases.items() for slide in slides}
    path, output = tmp_path / "cohort.csv", output_of(tmp_path, format)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows(
            [["slide_id", "case_id", "label"], *([slide, case, "a"] for slide, case in case_of.items())]
        )
    cohort = read_cohort(path)
    side_of_case = {case: seed.choice(["train", "val", "test"]) for case in cases}
    sides = {fold: {slide: side_of_case[case] for slide, case in case_of.items()} for fold in range(2)}
    write_splits(Splits(sides), cohort, output, format=format, overwrite=True)
    assert read_splits(output, cohort, format=format).content_hash == split_hash(sides)


def test_wide_is_the_cohort_and_the_folds(tmp_path, cohort):
    write_splits(Splits(SIDES), cohort, tmp_path / "w.csv")
    assert (tmp_path / "w.csv").read_text(encoding="utf-8") == (
        "slide_id,case_id,mpp,label,site,fold_0,fold_1\n"
        "001,0007,0.25,a,x,train,test\n"
        "002,0007,,a,x,train,test\n"
        "Tü/3.1,p,0.5,1,y,val,train\n"
        '"4,b",q,,1,y,test,val\n'
        "NA,NA,,a,x,test,train\n"
        "e,p,,,x,,\n"
    )
    again = read_cohort(tmp_path / "w.csv")
    assert again.splits("fold_1") == SIDES[1]
    write_splits(Splits({0: SIDES[1]}), again, tmp_path / "one.csv")
    header = (tmp_path / "one.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == "slide_id,case_id,mpp,label,site,fold_0"  # folds of the old split are gone


def test_the_other_formats_by_hand(tmp_path, cohort):
    write_splits(Splits(SIDES), cohort, tmp_path / "folds", format="clam")
    assert (tmp_path / "folds" / "splits_1.csv").read_text(encoding="utf-8") == (
        ',train,val,test\n0,Tü/3.1,"4,b",001\n1,NA,,002\n'
    )
    write_splits(Splits(SIDES), cohort, tmp_path / "k.tsv", format="patho-bench")
    lines = (tmp_path / "k.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "case_id\tslide_id\tlabel\tfold_0\tfold_1"
    assert lines[3:] == ["p\tTü/3.1\t1\tval\ttrain", "q\t4,b\t1\ttest\tval", "NA\tNA\ta\ttest\ttrain"]
    write_splits(Splits(SIDES), cohort, tmp_path / "s.json", format="stamp")
    assert json.loads((tmp_path / "s.json").read_text(encoding="utf-8")) == {
        "splits": [
            {"train_patients": ["0007"], "val_patients": ["p"], "test_patients": ["q", "NA"]},
            {"train_patients": ["p", "NA"], "val_patients": ["q"], "test_patients": ["0007"]},
        ]
    }
    write_splits(Splits({0: {"001": "train", "002": "train"}}), cohort, tmp_path / "t.json", format="stamp")
    assert json.loads((tmp_path / "t.json").read_text(encoding="utf-8")) == {
        "splits": [{"train_patients": ["0007"], "test_patients": []}]
    }


def test_stamp_refuses_what_it_cannot_say(tmp_path, cohort):
    with pytest.raises(CohortError, match="case '0007' is on two sides of fold 0; format stamp holds cases"):
        write_splits(Splits({0: {"001": "train", "002": "test"}}), cohort, tmp_path / "s.json", format="stamp")
    with pytest.raises(CohortError, match="expected fold 0, found fold 3"):
        write_splits(Splits({3: {"001": "train"}}), cohort, tmp_path / "s.json", format="stamp")
    assert not (tmp_path / "s.json").exists()


def test_another_split_is_not_overwritten(tmp_path, cohort):
    path = tmp_path / "w.csv"
    write_splits(Splits(SIDES), cohort, path)
    before = path.stat().st_ino
    write_splits(Splits(SIDES), cohort, path)
    assert path.stat().st_ino == before  # the same content: untouched
    other = Splits({0: SIDES[1]})
    with pytest.raises(CohortError, match=r"w\.csv exists and holds something else; use --overwrite"):
        write_splits(other, cohort, path)
    write_splits(other, cohort, path, overwrite=True)
    assert read_splits(path, cohort).content_hash == other.content_hash
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


def test_a_fold_left_by_another_split_is_refused(tmp_path, cohort):
    folder = tmp_path / "folds"
    write_splits(Splits(SIDES), cohort, folder, format="clam")
    with pytest.raises(CohortError, match=r"splits_1\.csv is a fold of another split; remove it"):
        write_splits(Splits({0: SIDES[0]}), cohort, folder, format="clam", overwrite=True)
    (folder / "file").write_text("x")
    with pytest.raises(CohortError, match="format clam is a folder"):
        write_splits(Splits(SIDES), cohort, folder / "file", format="clam")


def entries(path, text, format="auto", column=None, encoding="utf-8"):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding=encoding)
    found = read_split_file(path, format, column)
    return found, {(entry.identifier, entry.fold, entry.side) for entry in found.entries}


def test_tables_others_wrote(tmp_path):
    found, held = entries(
        tmp_path / "a.tsv", "case_id\tslide_id\tgrade\tfold_0\tfold_1\n01\t01\t2\ttrain\t\n02\tx\t1\ttest\ttrain\n"
    )
    assert (found.format, found.unit, found.case_of) == ("patho-bench", "slide_id", {"01": "01", "x": "02"})
    assert held == {("01", 0, "train"), ("01", 1, None), ("x", 0, "test"), ("x", 1, "train")}
    found, held = entries(tmp_path / "b.tsv", "case_id\tfold_0\n01\ttrain\n02\ttest\n")
    assert (found.unit, held) == ("case_id", {("01", 0, "train"), ("02", 0, "test")})
    found, held = entries(
        tmp_path / "c.csv", "Slide_ID;split;fold_2\r\n01;train;val\r\n\r\n02;;NA\r\n", encoding="utf-8-sig"
    )
    assert (found.format, found.fold_names) == ("wide", {2: "fold_2"})
    assert held == {("01", 2, "val"), ("02", 2, None)}
    assert [entry.place for entry in found.entries] == ["line 2", "line 4"]
    found, held = entries(tmp_path / "c.csv", "slide_id,split,fold_2\n01,train,val\n", column="split")
    assert (found.fold_names, held) == ({0: "split"}, {("01", 0, "train")})
    found, held = entries(tmp_path / "d.csv", "filename,PATIENT,split_1\nb/01.svs,p,val\n")
    assert (found.fold_names, held, found.case_of) == ({1: "split_1"}, {("01", 1, "val")}, {"01": "p"})


def test_clam_as_others_write_it(tmp_path):
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "splits_0.csv").write_text(",train,val,test\n0,01,02,03\n1,04,,\n")
    (folder / "splits_10.csv").write_text("train,test\n01,02\n")
    (folder / "splits_0_bool.csv").write_text(",train,val,test\n01,True,False,False\n")
    (folder / "splits_0_descriptor.csv").write_text(",train,val,test\na,1,1,1\n")
    found = read_split_file(folder)
    assert found.fold_names == {0: "fold_0", 10: "fold_10"}
    assert [(entry.identifier, entry.fold, entry.side, entry.place) for entry in found.entries] == [
        ("01", 0, "train", "splits_0.csv, line 2"),
        ("02", 0, "val", "splits_0.csv, line 2"),
        ("03", 0, "test", "splits_0.csv, line 2"),
        ("04", 0, "train", "splits_0.csv, line 3"),
        ("01", 10, "train", "splits_10.csv, line 2"),
        ("02", 10, "test", "splits_10.csv, line 2"),
    ]
    assert read_split_file(folder / "splits_10.csv").fold_names == {10: "fold_10"}
    with pytest.raises(CohortError, match=r"splits_0_bool\.csv: expected slide ids, found True and False"):
        read_split_file(folder / "splits_0_bool.csv")


@pytest.mark.parametrize(
    "content",
    [
        {"splits": [{"train_patients": ["1"], "test_patients": ["2"]}]},
        [{"train": ["1"], "test": ["2"]}],
        {"fold_0": {"train": ["1"], "test": ["2"]}},
        {"splits": {"0": {"train_patients": ["1"], "test_patients": ["2"]}}},
        {"train_patients": [" 1"], "test_patients": ["2 "]},
    ],
)
def test_stamp_and_its_relatives(tmp_path, content):
    found, held = entries(tmp_path / "splits.json", json.dumps(content))
    assert (found.format, found.unit) == ("stamp", "case_id")
    assert held == {("1", 0, "train"), ("2", 0, "test")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x is empty"),
        (" \n\n", "x is empty"),
        ("a\0b", "holds binary data"),
        ("slide_id,label\na,b\n", r"x, line 1: not a split file: expected columns fold_0, .*found 'slide_id,label'"),
        ("slide_id,fold_0\na\n", "x, line 2: expected 2 cells as in the header, found 1"),
        (
            "slide_id,fold_0\n\na,training\n",
            "x, line 3, column 'fold_0': expected one of train, val, test or nothing, found 'training'",
        ),
        ("slide_id,fold_0,fold_0\na,train,val\n", "x, line 1: column 'fold_0' occurs more than once"),
        ("slide_id,fold_0\n,train\n", "x, line 2, column 'slide_id': expected an id, found nothing"),
        ('slide_id,fold_0\n"a,train\n', "x, line 2: unexpected end of data; check the quotes"),
        ("grade,fold_0\n1,train\n", "x, line 1: there is no column 'slide_id'"),
        ("id,train,val,test\n0,a,b,c\n1,d\n", "x, line 3: expected 4 cells"),
        (",train,val,test,age\n0,a,b,c,d\n", r"x, line 1: expected CLAM's columns .*found ',train,val,test,age'"),
        ("{", "x, line 1: expected JSON, found expecting property name"),
        ('{"splits":\n [}', "x, line 2: expected JSON"),
        ("[" * 100_000, "JSON that cannot be read|expected JSON"),
        ("[]", "x: expected at least one fold, found none"),
        ('{"splits": 3}', "x: expected a list or an object of folds, found a number"),
        ("[[]]", r"x, \[0\]: expected an object with train_patients, ..., found a list"),
        (
            '{"splits": [{"train_patients": "p"}]}',
            r"x, splits\[0\].train_patients: expected a list of patient ids, found text",
        ),
        (
            '{"splits": [{"train_patients": ["p", 7]}]}',
            r"splits\[0\].train_patients\[1\]: expected a patient id in quotes, found a number 7",
        ),
        ('[{"train": [null]}]', r"\[0\].train\[0\]: expected a patient id in quotes, found null"),
        ('[{"train": [" "]}]', r"\[0\].train\[0\]: expected a patient id in quotes, found text"),
        ('[{"validation": []}]', "expected one of train_patients, val_patients, test_patients, found 'validation'"),
        ("slide_id,fold_0\na," + "x" * 200_000, "x, line 2: field larger than field limit"),
        ("slide_id,fold_0\na," + "x" * 1000, r"found 'x{77}\.\.\.'$"),
    ],
)
def test_hostile_files(tmp_path, text, message):
    path = tmp_path / "x"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CohortError, match=message):
        read_split_file(path)


def test_unreadable_files(tmp_path):
    with pytest.raises(CohortError, match=r"split file .*nope cannot be read: No such file"):
        read_split_file(tmp_path / "nope")
    (tmp_path / "latin").write_bytes("slide_id,fold_0\nü,train\n".encode("latin-1"))
    with pytest.raises(CohortError, match=r"latin is not UTF-8 text \(byte 16\)"):
        read_split_file(tmp_path / "latin")
    with pytest.raises(CohortError, match=r"expected CLAM's splits_0\.csv, .*found none"):
        read_split_file(tmp_path)
    with pytest.raises(CohortError, match="expected a file of format stamp, found a folder"):
        read_split_file(tmp_path, "stamp")
    (tmp_path / "ok").write_text("slide_id,fold_0\na,train\n")
    with pytest.raises(CohortError, match="split format 'csv': expected one of auto, wide, clam, patho-bench, stamp"):
        read_split_file(tmp_path / "ok", "csv")
    with pytest.raises(CohortError, match="there is no column 'fold_7'; it has slide_id, fold_0"):
        read_split_file(tmp_path / "ok", column="fold_7")
