"""The page of thumbnails, the live table and the lines of a log."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from span_sparse.extract.display import Display, Rate, duration
from span_sparse.extract.process_list import SlideStatus
from span_sparse.extract.qc_page import qc_page_path, write_qc_page

from .conftest import Places

NASTY = '<img src=x onerror="alert(1)">&\'"'


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_page_of_a_run(places: Places):
    places.slide("a", 6, 6)
    places.slide("b b", 4, 4)
    places.extract("a", "b b", "absent")
    page = qc_page_path(places.store)
    assert page == places.store.parent / "store.qc" / "index.html"
    tags = Elements(page.read_text()).tags
    cards = [attributes for tag, attributes in tags if tag == "article"]
    assert [(card["class"], card["data-patches"]) for card in cards] == [
        ("done", "36"),
        ("failed", "0"),
        ("done", "16"),
    ]
    pictures = [attributes["src"] for tag, attributes in tags if tag == "img"]
    assert pictures == ["a.jpg", "b%3D20b.jpg"]
    assert (page.parent / "b=20b.jpg").is_file()
    assert "no file" in page.read_text()
    links = [value for _, attributes in tags for name, value in attributes.items() if name in ("src", "href", "action")]
    assert all(re.fullmatch(r"[\w.%]+\.jpg", link or "") for link in links), "the page asks for something else"
    assert "http" not in page.read_text()
    assert any(tag == "meta" and attributes.get("name") == "viewport" for tag, attributes in tags)


def test_texts_from_outside_are_escaped(tmp_path):
    rows = [SlideStatus(NASTY, "failed", NASTY), SlideStatus("fine", "done", "", 1.0, 7, 3)]
    page = write_qc_page(tmp_path / "<b>store", rows).read_text()
    tags = Elements(page).tags
    assert not [attributes for tag, attributes in tags if tag in ("img", "b")]
    assert page.count("onerror") == page.count("onerror=&quot;") == 2
    assert "7 patches, 3 not readable" in page


def shown(status: SlideStatus, *, terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=100, color_system=None)
    with Display(console, 3, lambda: ["s[1]: patch 5 of 9", "waits"]) as display:
        display.add_patches(100)
        display.show(status)
    return file.getvalue()


def test_a_line_per_slide_where_there_is_no_terminal():
    done = shown(SlideStatus("s[1]", "done", "", 2.0, 100, 4), terminal=False)
    assert done.count("\n") == 1
    assert done.startswith("done    s[1]: 100 patches, 4 not readable in 2.0 s (1/3, ")
    assert "patches/s" in done
    assert "left)" in done
    assert shown(SlideStatus("s", "failed", "bad [file]"), terminal=False).startswith("failed  s: bad [file] (1/3")
    assert shown(SlideStatus("s", "done", num_patches=7, resumed=True), terminal=False).startswith(
        "kept    s: 7 patches"
    )


def test_a_table_on_a_terminal():
    text = shown(SlideStatus("s", "done", "", 2.0, 100), terminal=True)
    for words in ("1 done, 0 failed, 2 left", "slides/s", "worker 1", "s[1]: patch 5 of 9", "waits"):
        assert words in text
    assert "done    s:" not in text


def test_rate_forgets_what_is_long_ago():
    now = [0.0]
    rate = Rate(lambda: now[0])
    rate.add(1000)
    now[0] = 10.0
    rate.add(50)
    assert rate.per_second() == pytest.approx(105)
    now[0] = 125.0
    assert rate.per_second() == pytest.approx(50 / 120)
    assert duration(7509) == "2:05:09"
