from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from span_sparse.errors import SlideError, TissueNotFoundError
from span_sparse.grid import LatticeSpec
from span_sparse.wsi import TissueSettings, find_tissue, open_slide, resolve_mpp, segment_tissue, tissue_cells
from span_sparse.wsi.thumbnail import read_thumbnail
from span_sparse.wsi.tissue import require_cells, tissue_of_thumbnail
from span_sparse.wsi.tissue_colour import stain_density

PINK, PALE, GLASS, BLACK = (200, 120, 170), (235, 214, 225), (243, 242, 241), (2, 0, 1)


def canvas(height: int, width: int, colour: tuple[int, int, int], noise: int = 3, seed: int = 0) -> np.ndarray:
    """A flat colour with a little camera noise."""
    jitter = np.random.default_rng(seed).integers(-noise, noise + 1, (height, width, 3))
    return np.clip(np.array(colour) + jitter, 0, 255).astype(np.uint8)


def mask_at_8_um(picture: np.ndarray, **settings: Any) -> np.ndarray:
    return tissue_of_thumbnail(picture, 8.0, TissueSettings(**settings))[0]


def test_a_pink_piece_on_glass():
    picture = canvas(120, 160, GLASS)
    picture[30:80, 40:100] = canvas(50, 60, PINK)
    expected = np.zeros((120, 160), bool)
    expected[30:80, 40:100] = True
    mask = mask_at_8_um(picture)
    assert (mask != expected).sum() <= 4  # the median filter rounds the corners


def test_empty_glass_has_no_tissue():
    assert not mask_at_8_um(canvas(100, 100, GLASS, noise=4)).any()
    assert not mask_at_8_um(np.full((50, 50, 3), 255, np.uint8)).any()
    assert not mask_at_8_um(np.full((50, 50, 3), 128, np.uint8)).any()


def test_all_tissue_keeps_its_pale_half():
    picture = canvas(100, 100, PINK)
    picture[:50] = canvas(50, 100, (222, 185, 205))
    assert mask_at_8_um(picture).all()
    assert mask_at_8_um(np.full((50, 50, 3), PALE, np.uint8)).all()  # one uniform colour, where Otsu has nothing to cut


def test_black_fill_is_not_tissue():
    picture = canvas(100, 100, GLASS)
    picture[:, :50] = canvas(100, 50, BLACK, noise=2)
    assert not mask_at_8_um(picture).any()


def test_small_objects_and_holes_by_area():
    """0.01 mm² at 8 µm/px is 156.25 pixels: 12 × 12 = 144 is smaller, 13 × 13 = 169 larger."""
    picture = canvas(200, 200, GLASS)
    picture[10:22, 10:22] = PINK
    picture[10:24, 60:74] = PINK
    picture[100:180, 20:180] = PINK
    picture[110:120, 30:40] = GLASS
    picture[110:130, 80:100] = GLASS
    mask = mask_at_8_um(picture)
    assert not mask[5:30, 5:30].any()
    assert mask[12:22, 62:72].all()
    assert mask[110:120, 30:40].all()
    assert not mask[112:128, 82:98].any()
    assert mask_at_8_um(picture, min_object_mm2=0.005)[12:20, 12:20].all()


def fat(height: int, width: int) -> np.ndarray:
    """Vacuoles of 64 µm (8 pixels) between strands one pixel wide, on glass."""
    picture = canvas(height, width, GLASS)
    strands = (np.arange(height)[:, None] % 9 == 0) | (np.arange(width) % 9 == 0)
    picture[strands] = canvas(height, width, (228, 190, 212))[strands]
    return picture


def test_hed_finds_fat_that_hangs_on_to_tissue_and_leaves_shadows():
    """Fat beside a pink piece is found; the same fat alone, a grey shadow and dust are not."""
    picture = canvas(160, 240, GLASS)
    picture[20:60, 20:40] = canvas(40, 20, PINK)
    picture[20:60, 40:100] = fat(40, 60)
    picture[100:150, 20:100] = fat(50, 80)
    picture[20:150, 140:180] = canvas(130, 40, (190, 190, 190))
    picture[60:80, 200:220] = canvas(20, 20, (60, 60, 60))
    hed, otsu = mask_at_8_um(picture, method="hed"), mask_at_8_um(picture)
    assert hed[22:58, 22:98].mean() > 0.95
    assert otsu[22:58, 44:98].mean() < 0.2
    assert not hed[70:].any()
    assert not hed[:, 110:].any()
    assert not mask_at_8_um(canvas(100, 100, (225, 226, 235), noise=4), method="hed").any()  # tinted glass
    assert mask_at_8_um(canvas(100, 100, PINK), method="hed").all()
    assert not mask_at_8_um(canvas(100, 100, BLACK, noise=2), method="hed").any()


def test_stain_density_is_additive():
    """Two layers of a stain have twice its density (Beer-Lambert); grey has none."""
    glass = np.full((99, 10, 3), 255, np.uint8)
    for stain in ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11)):
        rows = [np.rint(255 * 10 ** -(np.array(stain) * amount)).astype(np.uint8) for amount in (0.2, 0.4)]
        density = stain_density(np.concatenate([glass, np.tile(rows, (1, 5, 1)).reshape(1, 10, 3)]))[-1]
        assert density[:2] == pytest.approx(np.linalg.norm(stain) * np.array([0.2, 0.4]), abs=0.01)
    assert stain_density(np.concatenate([glass, np.full((1, 10, 3), 90, np.uint8)])).max() < 1e-6


def test_unreadable_tiles_are_taken_for_tissue_and_the_rest_is_found(make_slide, break_tile):
    """One level; a tile of 64 px on glass and one on tissue are broken. Their patches will be tried, and fail."""
    picture = canvas(640, 960, GLASS)
    picture[128:512, 128:512] = canvas(384, 384, PINK)
    path = make_slide([picture])
    with open_slide(path) as slide:
        whole = segment_tissue(slide, 1.0, TissueSettings())
    for number in (15 * 4 + 4, 15 * 8 + 13):  # (row 4, col 4) and (row 8, col 13) of 15 columns
        break_tile(path, number)
    with open_slide(path) as slide:
        tissue = segment_tissue(slide, 1.0, TissueSettings())
        with pytest.raises(SlideError, match="cannot be read"):
            read_thumbnail(slide, 8)
    assert tissue.mask[32:40, 32:40].all()
    assert tissue.mask[64:72, 104:112].all()
    differs = np.argwhere(tissue.mask != whole.mask)
    assert len(differs) <= (8 + 2 * 5) * (8 + 2 * 8)  # parts end up 5 or 8 pixels large
    assert differs[:, 1].min() > 88  # only around the tile on glass


def test_a_slide_of_unreadable_tiles_fails_soon(make_slide, break_tile, monkeypatch):
    monkeypatch.setattr("span_sparse.wsi.thumbnail.MAX_FAILED_READS", 100)
    path = make_slide([canvas(640, 960, PINK)])
    for number in range(0, 150, 2):
        break_tile(path, number)
    with (
        open_slide(path) as slide,
        pytest.raises(SlideError, match=r"slide\.tiff: opens, but most of it cannot be read"),
    ):
        segment_tissue(slide, 1.0, TissueSettings())


def test_glass_cut_off_by_the_border_is_not_a_hole():
    picture = canvas(100, 100, PINK)
    picture[:10, :10] = GLASS
    assert not mask_at_8_um(picture)[:8, :8].any()


def test_mask_lies_on_the_slide_where_the_tissue_is(make_slide):
    """At 0.5 µm/px a mask pixel is 16 px0; the piece begins at an odd pixel."""
    picture = canvas(1600, 2000, GLASS)
    picture[403:1203, 501:1301] = canvas(800, 800, PINK)
    with open_slide(make_slide([picture])) as slide:
        tissue = find_tissue(slide, 0.5)
    assert (tissue.scale_px0, tissue.mpp, tissue.mask.shape) == (16, 8.0, (100, 125))
    rows, cols = np.nonzero(tissue.mask)
    assert (rows.min() * 16, (rows.max() + 1) * 16) == pytest.approx((403, 1203), abs=16)
    assert (cols.min() * 16, (cols.max() + 1) * 16) == pytest.approx((501, 1301), abs=16)
    assert tissue.area_mm2 == pytest.approx((800 * 0.0005) ** 2, rel=0.06)


def test_errors_name_the_slide(make_slide):
    with open_slide(make_slide([canvas(640, 640, GLASS)], name="blank 7.tiff")) as slide:
        with pytest.raises(TissueNotFoundError, match=r"blank 7\.tiff: no tissue found"):
            find_tissue(slide, 0.5)
        assert not segment_tissue(slide, 0.5, TissueSettings()).mask.any()
        with pytest.raises(TissueNotFoundError, match=r"blank 7\.tiff: tissue, but no whole cell of 448 px"):
            require_cells(np.zeros((0, 2), np.int32), LatticeSpec(224, 0.5).on_slide(0.25), slide)


def test_coarse_and_huge_slides(make_slide, monkeypatch):
    with open_slide(make_slide([canvas(300, 400, PINK)])) as slide:
        assert find_tissue(slide, 28.97).scale_px0 == 1
        monkeypatch.setattr("span_sparse.wsi.tissue.MAX_MASK_PIXELS", 1000)
        assert find_tissue(slide, 8.0).scale_px0 == 11  # 300 × 400 / 11² = 992


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "spec", "share"),
    [
        ("CMU-1-Small-Region.svs", LatticeSpec(224, 0.5), (0.3, 0.42)),
        ("camelyon-node-overview.dcm", LatticeSpec(16, 28.97), (0.2, 0.28)),
    ],
)
def test_real_slides_have_a_sensible_share_of_tissue(real_slides: Path, name, spec, share):
    """Bands set by looking at the pictures; the cells found must be pink inside."""
    with open_slide(real_slides / name) as slide:
        mpp, _ = resolve_mpp(slide)
        tissue, lattice = find_tissue(slide, mpp), spec.on_slide(mpp)
        cells = tissue_cells(tissue, lattice, slide.width_px0, slide.height_px0)
        patches = np.stack([slide.read_region(lattice.box(*cell), 16) for cell in cells.tolist()])
    assert share[0] < tissue.mask.mean() < share[1]
    spread = patches.max(axis=3).astype(int) - patches.min(axis=3)
    assert (spread > 20).mean(axis=(1, 2)).min() > 0.3
