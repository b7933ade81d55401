from __future__ import annotations

import io
import json
from itertools import pairwise

import numpy as np
import pytest
import tifffile
from PIL import Image

pytestmark = pytest.mark.browser

STEP_PX0 = 37
ORIGIN_PX0 = (5, 11)
COLUMNS, ROWS = 40, 29
BRIGHT = (17, 23)  # row, column
HIGHEST = (0xFD, 0xE7, 0x25)  # the last colour of viridis


@pytest.fixture
def aligned(tmp_path, make_heatmaps):
    """A grey slide of odd sizes with one white square, whose coarse level is 4.01 times smaller; the first score is 1
    on exactly that square and 0 elsewhere, the second counts the patches."""
    slides = tmp_path / "slides"
    slides.mkdir()
    width, height = 1501, 1103
    picture = np.full((height, width, 3), 90, np.uint8)
    x, y = ORIGIN_PX0[0] + BRIGHT[1] * STEP_PX0, ORIGIN_PX0[1] + BRIGHT[0] * STEP_PX0
    picture[y : y + STEP_PX0, x : x + STEP_PX0] = 255
    coarse = np.asarray(Image.fromarray(picture).resize((374, 275), Image.Resampling.BOX))
    with tifffile.TiffWriter(slides / "bright.tif") as file:
        for level in (picture, coarse):
            file.write(level, tile=(64, 64), photometric="rgb", compression="zlib", subfiletype=int(level is coarse))
    names = ("attention", "attention_stage1_head2")
    heatmaps = make_heatmaps(
        {"bright": {name: [0.0] for name in names}},
        patch_px0=STEP_PX0,
        step_px0=STEP_PX0,
        dimensions_px0=[width, height],
    )
    lines = ["row,col,x_px0,y_px0," + ",".join(names)]
    for number in range(ROWS * COLUMNS):
        row, col = divmod(number, COLUMNS)
        place = (row, col, ORIGIN_PX0[0] + col * STEP_PX0, ORIGIN_PX0[1] + row * STEP_PX0)
        lines.append(",".join(map(str, (*place, float((row, col) == BRIGHT), number / 1000))))
    (heatmaps / "folder0" / "scores.csv").write_text("\n".join(lines) + "\n")
    return heatmaps, slides


def opened(visit, server, **size):
    page = visit(server.address, **size)
    page.wait_for_selector("#viewer[data-ready]")
    settle(page)
    return page


def settle(page):
    """Until every tile is there and nothing moves."""
    page.wait_for_function(
        "() => { const image = spanView.viewer.world.getItemAt(0);"
        " return image && image.getFullyLoaded() && !spanView.viewer.isAnimating(); }"
    )
    page.wait_for_timeout(120)


def pixels(page) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.locator("#viewer").screenshot())).convert("RGB")).astype(int)


def box(mask: np.ndarray) -> list[int]:
    """Left, top, right, bottom of what is true."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1]


def fly(page, edge_px0: int) -> None:
    """Shows so many level-0 pixels around the white square, at once."""
    middle = [ORIGIN_PX0[axis] + (BRIGHT[1 - axis] + 0.5) * STEP_PX0 for axis in (0, 1)]
    page.evaluate(
        "([x, y, edge]) => { const image = spanView.viewer.world.getItemAt(0); spanView.viewer.viewport.fitBounds("
        "image.imageToViewportRectangle(x - edge / 2, y - edge / 2, edge, edge), true); }",
        [*middle, edge_px0],
    )
    settle(page)


def test_the_overlay_lies_on_the_slide_to_the_pixel(visit, serve, aligned):
    page = opened(visit, serve(*aligned))
    page.evaluate(
        "for (const it of [spanView.viewer.navigator.element, ...document.querySelectorAll('#buttons, #scale-bar')])"
        " it.style.visibility = 'hidden';"
    )
    page.fill("#opacity", "100")
    for edge_px0 in (1400, 700, 333, 120):
        fly(page, edge_px0)
        page.uncheck("#overlay")
        page.wait_for_timeout(60)
        white = pixels(page).min(axis=2) > 172
        white[:, -4:] = white[-4:] = False  # beyond 1:1 OpenSeadragon leaves a margin of one slide pixel
        on_slide = box(white) if edge_px0 < 700 else None  # wider views show the outside of the slide, white too
        page.check("#overlay")
        page.wait_for_timeout(60)
        shown = pixels(page)
        on_overlay = box(np.abs(shown - HIGHEST).max(axis=2) <= 3)
        corner = [ORIGIN_PX0[axis] + BRIGHT[1 - axis] * STEP_PX0 for axis in (0, 1)]
        here = page.locator("#viewer").bounding_box()
        ends = [
            page.evaluate("([x, y]) => spanView.screenOf(x, y)", [corner[0] + far, corner[1] + far])
            for far in (0, STEP_PX0)
        ]
        expected = [end[axis] - here["xy"[axis]] for end in ends for axis in (0, 1)]
        np.testing.assert_allclose(on_overlay, expected, atol=1.0)
        if on_slide is not None:
            np.testing.assert_allclose(on_overlay, on_slide, atol=1.0)


def test_the_score_of_a_known_patch(visit, serve, aligned):
    page = opened(visit, serve(*aligned))
    fly(page, 500)
    for row, col in (BRIGHT, (16, 22), (18, 24)):
        x, y = (ORIGIN_PX0[axis] + ((row, col)[1 - axis] + 0.98) * STEP_PX0 for axis in (0, 1))
        page.mouse.move(*page.evaluate("([x, y]) => spanView.screenOf(x, y)", [x, y]))
        page.wait_for_function(
            f"() => document.getElementById('patch-place').textContent.startsWith('row {row}, column {col};')"
        )
        values = page.locator("#patch-scores td").all_text_contents()
        assert [float(value) for value in values] == [float((row, col) == BRIGHT), (row * COLUMNS + col) / 1000]
        mark = page.locator(".mark:not(.kept)").bounding_box()
        corner = page.evaluate(
            "([x, y]) => spanView.screenOf(x, y)", [ORIGIN_PX0[0] + col * STEP_PX0, ORIGIN_PX0[1] + row * STEP_PX0]
        )
        assert (mark["x"], mark["y"]) == pytest.approx(corner, abs=0.6)
    page.mouse.move(5, 5)
    assert page.locator("#patch-scores td").count() == 0


def test_zoom_overlay_opacity_and_score(visit, serve, aligned):
    page = opened(visit, serve(*aligned))

    def zoom() -> float:
        settle(page)
        return page.evaluate("spanView.viewer.viewport.getZoom()")

    start = zoom()
    page.click("#zoom-in")
    assert zoom() == pytest.approx(2 * start)
    lengths = page.inner_text("#scale-length")
    page.click("#zoom-out")
    assert zoom() == pytest.approx(start)
    assert page.inner_text("#scale-length") != lengths
    page.click("#home")
    with_scores = pixels(page)
    page.uncheck("#overlay")
    page.wait_for_timeout(60)
    without = pixels(page)
    assert (np.abs(with_scores - without).max(axis=2) > 20).mean() > 0.3
    page.check("#overlay")
    page.fill("#opacity", "0")
    page.wait_for_timeout(60)
    np.testing.assert_allclose(pixels(page), without, atol=1)
    assert page.inner_text("#opacity-value") == "0 %"
    assert page.inner_text("#high") == "1"
    page.select_option("#score", label="attention, stage 1, head 2")
    page.wait_for_function("() => document.getElementById('high').textContent !== '1'")
    assert float(page.inner_text("#top li:first-child").split()[0]) == pytest.approx((ROWS * COLUMNS - 1) / 1000)


def test_the_scale_bar_is_as_long_as_it_says(visit, serve, aligned):
    page = opened(visit, serve(*aligned))
    fly(page, 400)
    value, unit = page.inner_text("#scale-length").split()
    assert unit == "µm"
    left, right = (page.evaluate("x => spanView.screenOf(x, 0)[0]", x) for x in (0, float(value) / 0.5))
    assert page.locator("#scale-line").bounding_box()["width"] == pytest.approx(right - left, abs=0.6)


@pytest.fixture
def cohort(make_heatmaps):
    values = {"attention": [0.1, 0.4, 0.2], "logit_a": [-1.0, 1.0, 0.0]}
    names = ["s1", "s2", "s10", "<img src=x onerror=alert(1)>", "\"'&腫瘍" + "x" * 200]
    return make_heatmaps({name: values for name in names})


def test_everything_is_reached_with_the_keyboard(visit, serve, cohort):
    page = opened(visit, serve(cohort))
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "() => { const it = document.activeElement;"
            " return it === document.body ? 'body' : it.id || it.className || it.dataset.number || it.textContent; }"
        )
        if name == "search" and seen:
            break
        seen.append(name)
        outline = page.evaluate(
            "() => { let it = document.activeElement; const box = it.closest('#viewer') || it;"
            " return getComputedStyle(box).outlineStyle; }"
        )
        assert outline != "none" or name == "body", name
    order = [
        seen.index(name) for name in ("search", "order", "zoom-in", "zoom-out", "home", "score", "overlay", "opacity")
    ]
    assert order == sorted(order)
    assert any("openseadragon-canvas" in name for name in seen)

    page.focus("#slides button:has-text('s1')")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector("#viewer[data-ready='1']")
    assert page.inner_text("#slide-title") == "s2"
    assert page.locator("[aria-current='true']").count() == 1

    page.focus("#viewer .openseadragon-canvas")
    before = page.evaluate("spanView.viewer.viewport.getZoom()")
    page.keyboard.press("+")
    settle(page)
    assert page.evaluate("spanView.viewer.viewport.getZoom()") > before
    page.keyboard.press("r")
    settle(page)
    assert page.evaluate("spanView.viewer.viewport.getRotation()") == 0

    page.focus("#top li:first-child button")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.getElementById('patch-place').textContent.startsWith('row 0, column 1;')")
    assert page.locator(".mark.kept").is_visible()


def test_search_order_and_hostile_names(visit, serve, cohort):
    page = opened(visit, serve(cohort))
    assert page.locator("#slides .name").all_text_contents()[:3] != ["s1", "s10", "s2"]
    listed = page.locator("#slides .name").all_text_contents()
    assert [listed.index(name) for name in ("s1", "s2", "s10")] == sorted(
        listed.index(name) for name in ("s1", "s2", "s10")
    )
    page.fill("#search", "ONERROR")
    assert page.locator("#slides .name").all_text_contents() == ["<img src=x onerror=alert(1)>"]
    assert page.inner_text("#count") == "1 of 5 slides"
    page.click("#slides button")
    page.wait_for_function("() => document.getElementById('slide-title').textContent.startsWith('<img')")
    assert page.locator("img").count() == 0


def test_a_slide_without_file_is_its_patches_on_white(visit, serve, cohort):
    page = opened(visit, serve(cohort))
    assert "patches on white: no folder of slides was given" in page.inner_text("#problem")
    page.uncheck("#overlay")
    page.wait_for_timeout(60)
    x, y = page.evaluate("spanView.screenOf(64, 32)")
    here = page.locator("#viewer").bounding_box()
    shown = pixels(page)[round(y - here["y"])]
    around = shown[round(x - here["x"]) - 3 : round(x - here["x"]) + 4]
    assert around.min() < 200  # the outline between two patches
    assert np.median(shown) == 255


def test_damaged_scores_are_said_on_the_page(visit, serve, cohort):
    (cohort / "folder1" / "scores.csv").write_text("row\n")
    server = serve(cohort)
    page = visit(server.address)
    page.wait_for_selector("#viewer[data-ready]")
    visit.expected.append("422")
    page.click("#slides button:has-text('s2')")
    page.wait_for_selector("#problem:not([hidden])")
    assert "scores.csv" in page.inner_text("#problem")


@pytest.mark.parametrize(("width", "height"), [(1280, 860), (390, 844)])
def test_accessible_on_a_desk_and_on_a_phone(visit, serve, cohort, axe, width, height):
    page = opened(visit, serve(cohort), width=width, height=height)
    page.click("#top li:first-child button")
    page.wait_for_selector("#patch-scores td")
    assert axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_most_wrong_slide_is_shown_first(visit, serve, cohort, tmp_path):
    from span_sparse.report import read_evaluation

    rows = ["s1,p,0,test,a,a,0.9,0.1", "s10,q,0,test,a,b,0.2,0.8", "s2,r,0,test,b,b,0.4,0.6"]
    (tmp_path / "predictions.csv").write_text(
        "slide_id,case_id,fold,split,y_true,y_pred,prob_a,prob_b\n" + "\n".join(rows)
    )
    page = opened(visit, serve(cohort, None, read_evaluation(tmp_path)))
    assert page.inner_text("#slide-title") == "s10"
    assert page.locator("#slides .name").all_text_contents()[:3] == ["s10", "s2", "s1"]
    assert "wrong" in page.inner_text("#slides li:first-child")
    errors = [float(text.rsplit(" ", 1)[1]) for text in page.locator("#slides .detail").all_text_contents()[:3]]
    assert all(first >= second for first, second in pairwise(errors))
    page.select_option("#order", "id")
    listed = page.locator("#slides .name").all_text_contents()
    assert listed.index("s1") < listed.index("s2") < listed.index("s10")
    assert json.loads(page.evaluate("JSON.stringify([...document.scripts].map(s => s.src === ''))")) == [False, False]
