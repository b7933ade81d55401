from __future__ import annotations

import re

import pytest

from span_sparse.cli import main
from span_sparse.cli.splits import build_parser, run
from span_sparse.errors import CohortError, ConfigError


@pytest.fixture
def cohort(tmp_path):
    path = tmp_path / "cohort.csv"
    rows = [f"{case:03d}{slide},{case:03d},{'ab'[case % 2]},S{case // 2 % 3}" for case in range(40) for slide in "xy"]
    path.write_text("\n".join(["slide_id,case_id,label,site", *rows, "new,new,,S0"]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def printed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda: re.sub(r"[ ]+", " ", capsys.readouterr().out)


def splits(*words: object) -> int:
    return run(build_parser().parse_args([str(word) for word in words]))


def make(cohort, output, *words: object) -> int:
    return splits("make", "--cohort", cohort, "--output", output, *words)


def check(cohort, path, *words: object) -> int:
    return splits("check", "--cohort", cohort, "--splits", path, *words)


def test_make_prints_the_table_and_check_agrees(tmp_path, cohort, printed):
    assert make(cohort, tmp_path / "s.csv") == 0
    text = printed()
    assert "│ fold_0 │ train │ 48 │ 24 │ a 12, b 12 │ 3 (S0, S1, S2) │" in text
    assert "│ fold_4 │ test │ 16 │ 8 │ a 4, b 4 │" in text
    assert "1 of 81 slides are on no side of any fold" in text
    assert f"written: {tmp_path / 's.csv'}" in text
    name = re.search(r"split hash: (sha256:[0-9a-f]{64})", text)
    assert name
    assert check(cohort, tmp_path / "s.csv") == 0
    text = printed()
    assert "format wide, 5 folds" in text
    assert "│ fold_4 │ test │ 16 │ 8 │ a 4, b 4 │" in text
    assert name[0] in text
    assert "ok: no problems" in text


@pytest.mark.parametrize("format", ["wide", "clam", "patho-bench", "stamp"])
def test_every_format_says_the_same(tmp_path, cohort, printed, format):
    assert make(cohort, tmp_path / "a.csv", "--method", "montecarlo", "--folds", 2, "--seed", 3) == 0
    name = re.search(r"split hash: \S+", printed())
    assert name
    assert make(cohort, tmp_path / "b", "--method=montecarlo", "--folds=2", "--seed=3", "--format", format) == 0
    printed()
    assert check(cohort, tmp_path / "b") == 0
    text = printed()
    assert name[0] in text
    assert f"format {format}, 2 folds" in text


def test_the_bytes_depend_on_the_seed_only(tmp_path, cohort, printed):
    for number, seed in enumerate((1, 1, 2)):
        make(cohort, tmp_path / f"{number}.csv", "--seed", seed)
    first, again, other = ((tmp_path / f"{number}.csv").read_bytes() for number in range(3))
    assert first == again != other
    with pytest.raises(CohortError, match="use --overwrite"):
        make(cohort, tmp_path / "0.csv", "--seed", 2)
    assert (tmp_path / "0.csv").read_bytes() == first
    assert make(cohort, tmp_path / "0.csv", "--seed", 2, "--overwrite") == 0
    assert (tmp_path / "0.csv").read_bytes() == other
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.csv", "1.csv", "2.csv", "cohort.csv"]


def test_check_lists_every_problem_and_refuses(tmp_path, cohort, printed):
    make(cohort, tmp_path / "s.csv", "--method", "fixed")
    lines = (tmp_path / "s.csv").read_text(encoding="utf-8").splitlines()
    side = lines[1].rpartition(",")[2]
    other = "test" if side == "train" else "train"
    lines[1] = lines[1].replace(side, other)
    lines[-1] = "[red]ghost,ghost,a,S0,train"
    (tmp_path / "s.csv").write_text("\n".join(lines), encoding="utf-8")
    printed()
    assert check(cohort, tmp_path / "s.csv") == 1
    text = printed()
    assert re.search(r"problem: fold_0: case '000' is on 2 sides: ", text)
    assert "problem: slide '[red]ghost' (line 82) is not in" in text
    assert f"refused: 2 problems in {tmp_path / 's.csv'}" in text
    assert "│ fold_0 │ train │" in text  # the table is always printed


def test_confounding_warns_when_made_and_refuses_when_checked(tmp_path, cohort, printed):
    text = re.sub(r",b,S\d", ",b,S9", cohort.read_text(encoding="utf-8"))
    cohort.write_text(text, encoding="utf-8")
    assert make(cohort, tmp_path / "s.csv", "--method", "fixed") == 0
    assert "warning: fold_0: class 'b' comes from one site only, 'S9'" in printed()
    assert check(cohort, tmp_path / "s.csv") == 1
    text = printed()
    assert "problem: fold_0: class 'b' comes from one site only" in text
    assert "problem: fold_0: site and label of the train patients are confounded: Cramér's V" in text
    assert check(cohort, tmp_path / "s.csv", "--allow-confounding") == 0
    assert "ok: 2 warnings" in printed()


def test_sites_on_request(tmp_path, cohort, printed):
    make(cohort, tmp_path / "plain.csv")
    assert check(cohort, tmp_path / "plain.csv", "--site-aware", "group") == 1
    assert re.search(r"problem: fold_0: site 'S0' is on [23] sides: train \(slide ", printed())
    assert make(cohort, tmp_path / "s.csv", "--site-aware", "group", "--folds", 3) == 0
    assert check(cohort, tmp_path / "s.csv", "--site-aware", "group") == 0
    with pytest.raises(CohortError, match="there is no column 'hospital'"):
        check(cohort, tmp_path / "s.csv", "--site-column", "hospital")
    without = tmp_path / "without.csv"
    without.write_text(re.sub(r",[^,\n]+$", "", cohort.read_text(encoding="utf-8"), flags=re.M), encoding="utf-8")
    assert check(without, tmp_path / "s.csv") == 0
    with pytest.raises(CohortError, match="there is no column 'site'"):
        make(without, tmp_path / "x.csv", "--site-aware", "group")


def test_splits_without_validation_are_named(tmp_path, cohort, printed):
    make(cohort, tmp_path / "s.tsv", "--format", "patho-bench")
    path = tmp_path / "s.tsv"
    path.write_text(path.read_text(encoding="utf-8").replace("\tval", "\ttrain"), encoding="utf-8")
    assert check(cohort, path) == 1
    assert "fold_0, fold_1, fold_2, fold_3, fold_4: side val is empty" in printed()
    assert check(cohort, path, "--sides", "train,test") == 0
    with pytest.raises(ConfigError, match="--sides 'train,dev': expected some of train,val,test"):
        check(cohort, path, "--sides", "train,dev")


def test_from_the_command_line(tmp_path, cohort, monkeypatch, capsys):
    def call(*words: object) -> int:
        monkeypatch.setattr("sys.argv", ["span", "splits", *(str(word) for word in words)])
        with pytest.raises(SystemExit) as caught:
            main.span()
        return caught.value.code

    assert call("make", "--cohort", cohort, "--output", tmp_path / "s.csv", "--folds", 30) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {cohort}: class 'a' of column 'label': expected at least 30 patients")
    assert error.count("\n") == 1
    assert not (tmp_path / "s.csv").exists()
    assert call("make", "--cohort", cohort, "--output", tmp_path / "s.csv", "--method", "loo") == 2
    assert call() == 2
    assert call("check", "--cohort", cohort, "--splits", tmp_path / "nope") == 1
    assert "nope cannot be read" in capsys.readouterr().err
    options = "method: fixed\nseed: 7\nval_fraction: 0.1\n"
    (tmp_path / "o.yaml").write_text(options, encoding="utf-8")
    assert call("make", "--config", tmp_path / "o.yaml", "--cohort", cohort, "--output", tmp_path / "s.csv") == 0
    assert call("check", "--cohort", cohort, "--splits", tmp_path / "s.csv", "--split-column", "fold_0") == 0
    assert "format wide, 1 fold\n" in capsys.readouterr().out
