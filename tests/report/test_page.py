from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    cohen_kappa_score,
    f1_score,
    roc_auc_score,
)

from span_sparse.evaluation import write_results
from span_sparse.report import read_evaluation, read_heatmap_folder, render_report, write_report
from span_sparse.report.drawing import drawable, picture_address
from span_sparse.report.page import MAX_PICTURE_BYTES
from span_sparse.report.sections import WORDS, split_section

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(2)'>",
    "{{ 7 * 7 }}{% raw %}",
    "腫瘍 ülçer $\\frac{1}{2}$ \u202e rtl",
    "x" * 300,
    "javascript:alert(3)//&amp;<!--",
)


@pytest.fixture(scope="module")
def classified(tmp_path_factory, _tables):
    """The evaluation of a classification and its page, made once: nobody changes them."""
    folder = tmp_path_factory.mktemp("classified")
    write_results(folder, _tables["classification"], "classification", resamples=20)
    evaluation = read_evaluation(folder)
    return evaluation, render_report(evaluation, num_pictures=3)


@pytest.fixture
def without_curves(monkeypatch):
    """Drawing them takes most of the time of a page."""
    monkeypatch.setattr("span_sparse.report.sections._pictures", lambda *_: [])


@pytest.fixture
def evaluate(tmp_path, tables):
    """Writes the evaluation of a task; returns it as read."""

    def write(kind="classification", frame=None, **settings):
        folder = tmp_path / f"evaluation-{kind}"
        write_results(folder, tables[kind] if frame is None else frame, kind, **{"resamples": 20, **settings})
        return read_evaluation(folder)

    return write


def test_figures_are_those_of_scikit_learn(classified, parse):
    evaluation, text = classified
    frame = pd.read_csv(evaluation.folder / "predictions.csv")
    page = parse(text)
    for number, split in enumerate(("test", "val")):
        rows = frame[frame["split"] == split]
        expected = {
            "auc": roc_auc_score(rows["y_true"] == "tumour", rows["prob_tumour"]),
            "balanced_accuracy": balanced_accuracy_score(rows["y_true"], rows["y_pred"]),
            "f1": f1_score(rows["y_true"], rows["y_pred"], average="macro"),
            "accuracy": accuracy_score(rows["y_true"], rows["y_pred"]),
            "average_precision": average_precision_score(rows["y_true"] == "tumour", rows["prob_tumour"]),
            "kappa": cohen_kappa_score(rows["y_true"], rows["y_pred"]),
            "brier": brier_score_loss(rows["y_true"] == "tumour", rows["prob_tumour"]),
        }
        section = split_section(evaluation, split, number)
        assert {name: section.figures[name] for name in expected} == pytest.approx(expected, abs=1e-12)
        stated = json.loads((evaluation.folder / "metrics.json").read_text())[split]
        assert section.figures["auc_ci"] == stated["auc_ci"]
        for name, value in expected.items():
            (shown,) = (row for row in section.rows if row.name == WORDS[name])
            assert shown.value == f"{value:.3f}"
            assert f"{value:.3f}" in page.text
        (note,) = section.notes
        assert note.startswith("Decision threshold 0.")


def test_a_metrics_file_that_says_something_else_is_named(evaluate):
    evaluation = evaluate("regression")
    evaluation.metrics["test"]["mae"] = 0.999
    (note,) = split_section(evaluation, "test", 0).notes
    assert "metrics.json says 0.9990" in note


def test_times_that_are_equal_stay_equal_in_the_table(evaluate, tables):
    time = np.random.default_rng(0).integers(1, 40, 12).repeat(2) * 0.1 + 0.2
    evaluation = evaluate("survival", tables["survival"].assign(time=time))
    np.testing.assert_array_equal(evaluation.frame["time"], time)
    assert not [note for note in split_section(evaluation, "test", 0).notes if "metrics.json" in note]


@pytest.mark.parametrize("kind", ["classification", "survival", "regression", "multi_label", "segmentation"])
def test_every_task_has_a_page(classified, evaluate, parse, kind):
    evaluation, text = classified if kind == "classification" else (evaluate(kind), None)
    assert evaluation.kind == kind
    page = parse(text or render_report(evaluation))
    for slide in evaluation.frame["slide_id"]:
        assert slide in page.text
    pictures = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    assert len(pictures) == {"classification": 8, "multi_label": 0}.get(kind, 2)
    for source in pictures:
        head, _, content = source.partition(",")
        assert head == "data:image/svg+xml;base64"
        assert b"<svg" in base64.b64decode(content)


def test_the_page_asks_for_nothing_and_runs_nothing(classified, parse):
    _, text = classified
    page = parse(text)
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcset", "action")]
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "#").startswith("#")
    policy = next(one["content"] for tag, one in page.elements if one.get("http-equiv") == "Content-Security-Policy")
    style = re.search("<style>(.*?)</style>", text, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ")
    assert f"style-src 'sha256-{digest}'" in policy
    assert "url(" not in style
    assert "@import" not in style


def test_links_lead_to_places_of_the_page(classified, parse):
    page = parse(classified[1])
    places = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(places) == len(set(places))
    assert {one["href"][1:] for tag, one in page.elements if tag == "a"} <= set(places)


def test_hostile_names_stay_text(evaluate, parse, tables, tmp_path, make_heatmaps):
    frame = tables["classification"].copy()
    benign, tumour = HOSTILE[0], HOSTILE[3]
    frame["slide_id"] = [f"{HOSTILE[number % 6]} {number}" for number in range(24)]
    frame["case_id"] = [f"{HOSTILE[number // 2 % 6]} {number // 2}" for number in range(24)]
    frame["split"] = frame["split"].map({"test": "test", "val": HOSTILE[1]})
    frame = frame.replace(
        {"y_true": {"benign": benign, "tumour": tumour}, "y_pred": {"benign": benign, "tumour": tumour}}
    )
    frame = frame.rename(columns={"prob_benign": f"prob_{benign}", "prob_tumour": f"prob_{tumour}"})
    folder = tmp_path / "hostile"
    folder.mkdir()
    frame.to_csv(folder / "predictions.csv", index=False)
    about = {"run": {"checkpoint": HOSTILE[1], "nested": {HOSTILE[0]: [HOSTILE[2]]}}}
    (folder / "metrics.json").write_text(json.dumps({"test": {"bootstrap": {"resamples": 10}}} | about))
    heatmaps = make_heatmaps({slide: {"attention": [1.0] * 3} for slide in frame["slide_id"]})
    page = parse(render_report(read_evaluation(folder), read_heatmap_folder(heatmaps), run={"command": HOSTILE[5]}))
    tags = [tag for tag, _ in page.elements]
    assert "script" not in tags
    assert all((one.get("src") or "data:").startswith("data:") for _, one in page.elements)
    assert not [name for _, one in page.elements for name in one if name.startswith("on")]
    for text in HOSTILE:
        assert text in page.text
    assert "49" not in re.findall(r"\b49\b", page.text)


def test_a_thousand_slides(tmp_path, tables, make_heatmaps):
    frame = pd.concat([tables["classification"]] * 42, ignore_index=True)[:1000].assign(split="test")
    frame["slide_id"] = [f"slide {number:04d}" for number in range(1000)]
    frame["case_id"] = frame["slide_id"]
    write_results(tmp_path / "large", frame, "classification", resamples=20)
    heatmaps = read_heatmap_folder(make_heatmaps({slide: {"attention": [1.0]} for slide in frame["slide_id"]}))
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 255, (700, 1000, 3), dtype=np.uint8))
    for slide in [*heatmaps.slides.values()]:
        if not (first := tmp_path / "heatmap.png").exists():
            picture.save(first)
        slide.picture.hardlink_to(first)
    output = tmp_path / "report.html"
    num_bytes = write_report(output, read_evaluation(tmp_path / "large"), heatmaps)
    text = output.read_text(encoding="utf-8")
    assert num_bytes == output.stat().st_size < 20_000_000
    assert text.count('<tr id="slide-') == 1000
    assert "24 of 1,000 labelled slides are shown as most wrong; all are listed." in text
    assert (
        len(re.findall("data:image/jpeg", text)) + int((re.findall(r"(\d+) heatmaps were left out", text) or ["0"])[0])
        == 24
    )
    assert sum(map(len, re.findall('data:image/jpeg[^"]*', text))) <= MAX_PICTURE_BYTES


def test_the_most_wrong_come_first(classified):
    evaluation, page = classified
    frame = evaluation.frame[evaluation.frame["split"] == "test"]
    right = np.where(frame["y_true"] == "tumour", frame["prob_tumour"], frame["prob_benign"])
    expected = frame["slide_id"].to_numpy()[np.argsort(right, kind="stable")][:3].tolist()
    cards = re.findall(r'<article id="worst-\d+">.*?</article>', page, re.DOTALL)
    assert [re.search(r"</a> (.*?)</h3>", card).group(1) for card in cards] == expected


@pytest.mark.usefixtures("without_curves")
@pytest.mark.parametrize("any_wrong", [False, True])
def test_a_page_without_errors_says_so(classified, evaluate, tables, any_wrong):
    sentence = "No slide of this split is classified wrongly; these are the least sure."
    assert sentence not in classified[1]
    frame = tables["classification"].copy()
    frame["y_true"] = np.where(frame["prob_tumour"] > 0.5, "tumour", "benign")
    frame["y_pred"] = frame["y_true"]
    if any_wrong:  # yet surer of its true class than the one slide that is shown
        tests = frame.index[frame["split"] == "test"]
        frame.loc[tests, ["prob_benign", "prob_tumour"]] = (0.6, 0.4)
        frame.loc[tests, ["y_true", "y_pred"]] = "benign"
        frame.loc[tests[0], ["prob_benign", "prob_tumour"]] = (0.51, 0.49)
        frame.loc[tests[1], "y_pred"] = "tumour"
    assert (sentence in render_report(evaluate(frame=frame, resamples=0), num_pictures=1)) != any_wrong


def test_cards_are_as_high_as_what_is_in_them(classified):
    style = re.search("<style>(.*?)</style>", classified[1], re.DOTALL).group(1)
    (cards,) = re.findall(r"^\.cards {(.*?)}", style, re.MULTILINE)
    assert "align-items: start" in cards
    assert "repeat(2, minmax(0, 1fr))" in cards
    (picture,) = re.findall(r"^article img {(.*?)}", style, re.MULTILINE)
    assert "width: 100%; height: auto" in picture
    assert re.search(r"@media \(max-width: 900px\) {\s*\.cards { grid-template-columns: minmax\(0, 1fr\)", style)


@pytest.mark.usefixtures("without_curves")
def test_some_heatmaps_change_neither_the_order_nor_the_choice(classified, make_heatmaps, monkeypatch):
    evaluation, page = classified
    worst = re.findall(r'<article id="worst-\d+">.*?</a> (.*?)</h3>', page, re.DOTALL)
    heatmaps = read_heatmap_folder(make_heatmaps({slide: {"attention": [1.0]} for slide in evaluation.frame.slide_id}))
    for number, slide in enumerate(worst[1:]):
        edge = (400, 40)[number]
        noise = np.random.default_rng(0).integers(0, 255, (edge, edge, 3), dtype=np.uint8)
        Image.fromarray(noise).save(heatmaps.slides[slide].picture)

    def shown():
        text = render_report(evaluation, heatmaps, num_pictures=3)
        cards = re.findall(r'<article id="worst-\d+">.*?</article>', text, re.DOTALL)
        assert [re.search(r"</a> (.*?)</h3>", card).group(1) for card in cards] == worst
        return ["<img" in card for card in cards]

    assert shown() == [False, True, True]
    monkeypatch.setattr("span_sparse.report.page.MAX_PICTURE_BYTES", 20_000)
    assert shown() == [False, False, False]  # the small one of the less wrong slide would have fitted


def test_pictures_that_cannot_be_shown_are_left_out(tmp_path):
    def png(width: int, height: int) -> bytes:
        def chunk(kind: bytes, content: bytes) -> bytes:
            return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(b"\0" * 10))
            + chunk(b"IEND", b"")
        )

    path = tmp_path / "heatmap.png"
    assert picture_address(path) is None
    for content in (b"", b"<svg onload='alert(1)'/>", png(60_000, 60_000), png(9_000, 9_000), png(500, 500)):
        path.write_bytes(content)
        assert picture_address(path) is None
    Image.new("RGBA", (2000, 100), (255, 0, 0, 128)).save(path)
    assert picture_address(path).startswith("data:image/jpeg;base64,")


def test_what_was_run(evaluate, parse):
    evaluation = evaluate(
        "multi_label",
        about={
            "run": {"checkpoint": "runs/a/best.ckpt", "store": "features.zarr", "checkpoints": [{"sha256": "1f2e"}]}
        },
    )
    run = {
        "seed": 7, "selection": {"selected_by": "lowest val_loss of 3 epochs"},
        "data": {"split_hash": "abc123", "store": {"encoder": {"name": "uni_v2", "dimension": 1536}}},
    }  # fmt: skip
    text = parse(render_report(evaluation, run=run, environment={"packages": {"span-sparse": "0.1.0"}})).text
    for shown in (
        "runs/a/best.ckpt",
        "features.zarr",
        "checkpoints 1: sha256",
        "1f2e",
        "lowest val_loss of 3 epochs",
        "abc123",
        "uni_v2",
        "0.1.0",
    ):
        assert shown in text
    assert "Nothing was written down" in parse(render_report(evaluate("regression"))).text


def test_subgroups_are_shown_where_the_evaluation_has_them(evaluate, parse, tables):
    frame = tables["regression"].assign(scanner=["A", "<b>"] * 12)
    text = parse(render_report(evaluate("regression", frame, by=["scanner"]))).text
    survival = tables["survival"].assign(site=["A", "B", "B"] * 8)
    assert "By site" in parse(render_report(evaluate("survival", survival, by=["site"]))).text
    half = frame[(frame["split"] == "test") & (frame["scanner"] == "<b>")]
    assert "By scanner" in text
    assert "<b> (small)" in text
    assert f"{(half['y_true'] - half['y_pred']).abs().mean():.3f}" in text


def test_without_labels(tmp_path, tables, parse):
    frame = tables["classification"].assign(y_true="")
    write_results(tmp_path / "new", frame, "classification")
    text = parse(render_report(read_evaluation(tmp_path / "new"))).text
    assert "16 without label" in text
    assert "Largest errors" not in text


def test_drawable_text():
    assert drawable("a\nb") == "a?b"
    assert drawable("x" * 30) == "x" * 23 + "…"
