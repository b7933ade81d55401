from __future__ import annotations

import json

import pytest

from span_sparse.evaluation import write_results

ROWS = "slide_id,case_id,fold,split,y_true,y_pred,prob_a,prob_b\n" + "".join(
    f"s{number},p{number},0,test,{'ab'[number % 2]},{'ab'[number % 3 % 2]},{1 - number % 3 % 2 * 0.7:.1f},"
    f"{number % 3 % 2 * 0.7:.1f}\n"
    for number in range(12)
)


@pytest.fixture
def evaluation(tmp_path):
    import io

    import pandas as pd

    frame = pd.read_csv(io.StringIO(ROWS), dtype={"fold": str})
    run = tmp_path / "runs" / "one"
    (run / "checkpoints").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"seed": 11, "network": "SpanMil"}))
    about = {"run": {"checkpoint": str(run / "checkpoints" / "best.ckpt"), "store": "features.zarr"}}
    write_results(tmp_path / "evaluation", frame, "classification", resamples=20, about=about)
    return tmp_path / "evaluation"


def test_a_report_with_the_facts_of_its_run(command, evaluation, make_heatmaps, tmp_path, capsys):
    heatmaps = make_heatmaps({"s1": {"attention": [1.0, 2.0]}})
    output = tmp_path / "out" / "page.html"
    assert command("span", "report", "--evaluation", evaluation, "--heatmaps", heatmaps, "--output", output) == 0
    text = output.read_text(encoding="utf-8")
    assert "SpanMil" in text
    assert "best.ckpt" in text
    assert f"12 slides; written: {output}" in capsys.readouterr().out


def test_the_default_is_beside_the_predictions(command, evaluation):
    assert command("span", "report", "--evaluation", evaluation) == 0
    assert (evaluation / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--heatmaps", "absent"], "absent: no such folder"),
        (["--pictures", "-1"], "--pictures -1"),
        (["--evaluation", "absent"], "has no predictions.csv"),
    ],
)
def test_mistakes_are_one_line(command, evaluation, capsys, words, said):
    assert command("span", "report", "--evaluation", evaluation, *words) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
