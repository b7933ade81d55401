from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from span_sparse.errors import TissueNotFoundError
from span_sparse.grid import LatticeSpec
from span_sparse.wsi import TissueSettings, find_tissue, open_slide, resolve_mpp, segment_tissue, tissue_cells
from span_sparse.wsi.tissue import require_cells, tissue_of_thumbnail

PINK, PALE, GLASS, BLACK = (200, 120, 170), (235, 214, 225), (243, 242, 241), (2, 0, 1)


def canvas(height: int, width: int, colour: tuple[int, int, int], noise: int = 3, seed: int = 0) -> np.ndarray:
    """A flat colour with a little camera noise."""
    jitter = np.random.default_rng(seed).integers(-noise, noise + 1, (height, width, 3))
    return np.clip(np.array(colour) + jitter, 0, 255).astype(np.uint8)


def mask_at_8_um(picture: np.ndarray, **settings: float) -> np.ndarray:
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
