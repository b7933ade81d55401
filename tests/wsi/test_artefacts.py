from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from span_sparse.errors import MppError
from span_sparse.wsi import TissueSettings, open_slide, read_thumbnail, resolve_mpp, segment_tissue
from span_sparse.wsi.artefacts import INK_MARGIN_UM, folds, ink
from span_sparse.wsi.focus import LEAST_SHARPNESS, out_of_focus, sharpness

PINK, PURPLE, GLASS = (215, 140, 180), (130, 90, 160), (243, 242, 241)
PENS = {"blue": (40, 70, 190), "green": (30, 130, 80), "red": (215, 30, 45), "black": (40, 38, 45)}
TISSUE = {
    "eosin": (235, 120, 170),
    "hematoxylin": (95, 75, 150),
    "DAB": (140, 90, 50),
    "pale counterstain": (190, 205, 230),
    "blood": (200, 75, 80),
    "dense tumour": (70, 40, 105),
    "shadow": (150, 150, 150),
    "fill": GLASS,
}


def canvas(colour: tuple[int, int, int], height: int = 120, width: int = 160, noise: int = 3) -> np.ndarray:
    jitter = np.random.default_rng(0).integers(-noise, noise + 1, (height, width, 3))
    return np.clip(np.array(colour) + jitter, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", PENS)
def test_strokes_are_found_on_glass_and_over_tissue(name):
    """A stroke 20 pixels (160 µm) wide; what is found beyond it is the margin of 40 µm, 5 pixels."""
    picture = canvas(GLASS)
    picture[:, 80:] = canvas(PINK, width=80)
    stroke = np.zeros((120, 160), bool)
    stroke[50:70, 10:150] = True
    picture[stroke] = canvas(PENS[name])[stroke]
    found = ink(picture, 8.0)
    assert found[stroke].all()
    margin = round(INK_MARGIN_UM / 8)
    around = np.zeros_like(stroke)
    around[50 - margin - 1 : 70 + margin + 1, 10 - margin - 1 : 150 + margin + 1] = True
    assert not (found & ~around).any()


@pytest.mark.parametrize("name", TISSUE)
def test_stains_are_no_ink(name):
    assert not ink(canvas(TISSUE[name]), 8.0).any()


def test_specks_are_no_strokes():
    """0.05 mm² at 8 µm are 781 pixels."""
    picture = canvas(PINK)
    picture[10:37, 10:37] = PENS["black"]  # 729
    assert not ink(picture, 8.0).any()
    picture[10:40, 10:40] = PENS["black"]  # 900
    assert ink(picture, 8.0).any()


def test_a_fold_is_a_dense_ribbon():
    """Twice the optical density: (215/255)² · 255 = 181 and so on. A round nest as dense as the fold stays."""
    tissue = np.ones((120, 160), bool)
    picture = canvas(PINK)
    doubled = tuple(int(value**2 / 255) for value in PINK)
    ribbon = np.zeros_like(tissue)
    ribbon[30:38, 20:140] = True
    rows, cols = np.indices(tissue.shape)
    nest = (rows - 85) ** 2 + (cols - 80) ** 2 < 15**2
    picture[ribbon | nest] = canvas(doubled)[ribbon | nest]
    found = folds(picture, tissue, 8.0)
    assert found[ribbon].mean() > 0.95
    assert found[~ribbon].mean() < 0.02
    assert not found[nest].any()
    assert not folds(canvas(PURPLE), tissue, 8.0).any()
    assert not folds(picture, np.zeros_like(tissue), 8.0).any()


def test_a_broad_band_is_no_fold():
    """Ribbons of 200 and of 320 µm, equally dense; the broader is a layer of tissue."""
    tissue = np.ones((400, 400), bool)
    picture = canvas(PINK, 400, 400)
    doubled = canvas(tuple(int(value**2 / 255) for value in PINK), 400, 400)
    picture[50:75, 20:380] = doubled[50:75, 20:380]
    narrow = folds(picture, tissue, 8.0)
    assert narrow[52:73, 22:378].all()
    picture[50:90, 20:300] = doubled[50:90, 20:300]
    assert not folds(picture, tissue, 8.0).any()


def test_sharpness_does_not_depend_on_the_contrast():
    picture = nuclei(128, 128)
    pale = (255 - (255 - picture.astype(float)) / 3).astype(np.uint8)
    assert sharpness(pale) == pytest.approx(sharpness(picture), rel=0.1)
    assert sharpness(np.full((64, 64, 3), 200, np.uint8)) == np.inf


def nuclei(height_px: int, width_px: int) -> np.ndarray:
    """Tissue at 1 µm/px: purple discs of 8 µm on pink."""
    rng = np.random.default_rng(0)
    rows, cols = np.indices((height_px, width_px))
    picture = canvas(PINK, height_px, width_px)
    for y, x in rng.uniform(0, 1, (height_px * width_px // 400, 2)) * (height_px, width_px):
        top, left = max(0, int(y) - 5), max(0, int(x) - 5)
        part = np.s_[top : top + 11, left : left + 11]
        picture[part][(rows[part] - y) ** 2 + (cols[part] - x) ** 2 < 16] = PURPLE
    return picture


def test_the_blurred_half_is_found(make_slide):
    picture = nuclei(768, 1024)
    picture[:, 512:] = gaussian_filter(picture[:, 512:].astype(float), (5, 5, 0)).astype(np.uint8)
    tissue = np.ones((96, 128), bool)
    tissue[:16] = False
    with open_slide(make_slide([picture], mpp=1.0)) as slide:
        found = out_of_focus(slide, 1.0, tissue, 8)
        with pytest.raises(MppError, match=r"slide\.tiff: has 3 µm/px, focus .* reject_blur off"):
            out_of_focus(slide, 3.0, tissue, 8)
    assert not found[:, :64].any()
    assert not found[:16].any()
    assert found[16:, 64:].all()


def test_segmentation_leaves_out_what_is_rejected_and_says_how_much(make_slide):
    picture = np.full((800, 1200, 3), GLASS, np.uint8)
    picture[100:700, 100:1100] = nuclei(600, 1000)
    picture[100:700, 612:1100] = gaussian_filter(picture[100:700, 612:1100].astype(float), (5, 5, 0)).astype(np.uint8)
    picture[300:420] = PENS["green"]
    with open_slide(make_slide([picture], mpp=1.0)) as slide:
        plain = segment_tissue(slide, 1.0, TissueSettings(reject_pen=False))
        tissue = segment_tissue(slide, 1.0, TissueSettings(reject_blur=True, reject_folds=True))
    assert plain.removed == {}
    assert plain.mask[46].all()
    assert sorted(tissue.removed) == ["blur", "folds", "pen"]
    assert not tissue.mask[36:54].any()
    assert tissue.removed["pen"][37:53].all()
    assert tissue.mask[16:32, 14:60].all()
    assert not tissue.mask[16:32, 96:130].any()
    assert not any((tissue.mask & part).any() for part in tissue.removed.values())
    shares = tissue.removed_shares
    area = (tissue.mask | tissue.removed["pen"] | tissue.removed["blur"] | tissue.removed["folds"]).sum()
    assert shares["pen"] == pytest.approx(tissue.removed["pen"].sum() / area)
    assert 0.1 < shares["blur"] < 0.5
    assert shares["folds"] == 0


def test_what_is_rejected_is_not_filled_as_a_hole(make_slide):
    picture = np.full((800, 1200, 3), GLASS, np.uint8)
    picture[100:700, 100:1100] = PINK
    picture[300:500, 400:900] = PENS["green"]
    with open_slide(make_slide([picture], mpp=1.0)) as slide:
        tissue = segment_tissue(slide, 1.0, TissueSettings(max_hole_mm2=5.0))
    assert not tissue.mask[38:62, 51:112].any()
    assert tissue.mask[14:32, 14:136].all()


@pytest.mark.realdata
def test_real_tissue_has_no_ink_and_only_its_fold(real_slides: Path):
    """The lymph node has one dark fold across its smaller part; the skin's epidermis is a dense ribbon and is none."""
    for name, most in (("CMU-1-Small-Region.svs", 0.005), ("camelyon-node-overview.dcm", 0.002)):
        with open_slide(real_slides / name) as slide:
            mpp, _ = resolve_mpp(slide)
            tissue = segment_tissue(slide, mpp, TissueSettings(reject_folds=True))
            thumbnail = read_thumbnail(slide, tissue.scale_px0)
        assert not ink(thumbnail, tissue.mpp).any()
        assert tissue.removed_shares["folds"] < most
    assert tissue.removed["folds"].any()


@pytest.mark.realdata
def test_real_patches_are_sharp_until_they_are_blurred(real_slides: Path):
    """0.25 µm/px; averaged to 2 µm they have 32 px, a quarter of a block."""
    for path in sorted(real_slides.glob("patches/*/*.png"))[::4]:
        picture = np.asarray(Image.open(path).convert("RGB")).astype(float)
        sharp, soft, blurred = (gaussian_filter(picture, (sigma / 0.25, sigma / 0.25, 0)) for sigma in (0, 1, 3))
        seen = [sharpness(one.reshape(32, 8, 32, 8, 3).mean(axis=(1, 3)).astype(np.uint8)) for one in (sharp, soft)]
        assert min(seen) > 2 * LEAST_SHARPNESS
        assert sharpness(blurred.reshape(32, 8, 32, 8, 3).mean(axis=(1, 3))) < LEAST_SHARPNESS
