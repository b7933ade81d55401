from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from span_sparse.evaluation import write_results
from span_sparse.extract.process_list import SlideStatus
from span_sparse.extract.qc_page import write_qc_page
from span_sparse.extract.slide_pictures import THUMBNAIL, picture_path
from span_sparse.report import read_evaluation, read_heatmap_folder, write_report

pytestmark = pytest.mark.browser


@pytest.fixture
def report(tmp_path, make_heatmaps):
    random = np.random.default_rng(0)
    true = np.arange(24) % 2
    chance = np.clip(0.3 + 0.4 * true + 0.25 * random.normal(size=24), 0.01, 0.99)
    frame = pd.DataFrame(
        {
            "slide_id": [f"slide-{number}" for number in range(23)] + ["<script>alert(1)</script>" + "x" * 250],
            "case_id": [f"p{number // 2}" for number in range(24)], "fold": "0", "split": "test",
            "y_true": np.array(["a", "b"])[true], "y_pred": np.array(["a", "b"])[(chance > 0.5).astype(int)],
            "prob_a": 1 - chance, "prob_b": chance,
        }
    )  # fmt: skip
    about = {"run": {"checkpoint": "a/very/long/path" * 12, "store": "features.zarr"}}
    write_results(tmp_path / "evaluation", frame, "classification", resamples=20, about=about)
    heatmaps = read_heatmap_folder(make_heatmaps({name: {"attention": [1.0]} for name in frame["slide_id"]}))
    for slide in heatmaps.slides.values():
        Image.new("RGB", (900, 600), (120, 60, 130)).save(slide.picture)
    path = tmp_path / "report.html"
    write_report(path, read_evaluation(tmp_path / "evaluation"), heatmaps, run={"seed": 1, "command": "span fit"})
    return path


def test_the_report_is_readable_everywhere_and_prints(visit, axe, report):
    for width in (1280, 390):
        page = visit(report.as_uri(), width=width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("img").count() == 28
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert page.locator("tr[id^='slide-']").count() == 24
        assert axe(page) == []
        for table in page.locator(".scroll").all():
            assert table.evaluate("it => it.getBoundingClientRect().right") <= width
        page.click("#worst article:first-of-type a")
        assert page.evaluate("document.querySelector(location.hash).matches('tr:target')")
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF-")
    assert 3 <= pdf.count(b"/Type /Page\n") <= 20
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    assert page.evaluate("getComputedStyle(document.querySelector('figure')).breakInside") == "avoid"


def test_the_page_of_the_extraction(visit, tmp_path):
    store = tmp_path / "features.zarr"
    rows = [
        SlideStatus("b <i>", "done", num_patches=7),
        SlideStatus("a", "failed", error="no tissue <script>alert(1)</script>"),
        SlideStatus("c", "done", num_patches=3, failed_patches=2),
    ]
    for row in rows:
        path = picture_path(store, row.slide_id, THUMBNAIL)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (300, 200), (200, 150, 180)).save(path)
    page = visit(write_qc_page(store, rows).as_uri())
    page.wait_for_function("() => [...document.images].every(image => image.complete && image.naturalWidth === 300)")
    assert page.locator("img").count() == 3
    assert page.locator("h2").all_text_contents() == ["a", "b <i>", "c"]
    page.select_option("#order", "patches")
    assert page.locator("h2").all_text_contents() == ["a", "c", "b <i>"]
    page.fill("#filter", "tissue")
    assert page.locator("article:visible h2").all_text_contents() == ["a"]
