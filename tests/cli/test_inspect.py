from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from shapely import box

from span_sparse.cli.inspect import build_parser, run
from span_sparse.errors import AnnotationError, ConfigError, MppError, TissueNotFoundError
from span_sparse.wsi.geojson import read_geojson

SLIDES = Path(__file__).parents[3] / "shared" / "slides"


def inspect(*words: object) -> int:
    return run(build_parser().parse_args([str(word) for word in words]))


def write_slide(path: Path, colour: tuple[int, int, int], mpp: float) -> Path:
    picture = np.full((500, 700, 3), 245, np.uint8)
    picture[100:400, 100:600] = colour
    tifffile.imwrite(
        path, picture, tile=(64, 64), photometric="rgb", resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit="CENTIMETER"
    )
    return path


def test_prints_what_was_found_and_writes_the_picture(tmp_path, capsys):
    slide = write_slide(tmp_path / "a.tiff", (200, 120, 170), 0.5)
    assert inspect(slide, "--patch-size", 50, "--output", tmp_path / "new") == 0
    shown = capsys.readouterr().out
    for text in (
        "generic-tiff",
        "700 × 500 px",
        "0.5 µm/px",
        "tiff-resolution",
        "60 of 10 × 14 cells",
        "50 px = 25 µm",
    ):
        assert text in shown
    assert (tmp_path / "new" / "a.tiff_qc.png").stat().st_size > 1000


def test_mpp_of_the_user_wins(tmp_path, capsys):
    slide = write_slide(tmp_path / "a.tiff", (200, 120, 170), 264.6)
    with pytest.raises(MppError, match="implausible"):
        inspect(slide, "--output", tmp_path)
    assert inspect(slide, "--mpp", 1, "--target-mpp", 1, "--patch-size", 10, "--output", tmp_path) == 0
    assert "source: cohort" in capsys.readouterr().out


def test_without_tissue_the_picture_is_still_written(tmp_path, capsys):
    slide = write_slide(tmp_path / "blank.tiff", (245, 245, 245), 0.5)
    with pytest.raises(TissueNotFoundError, match=r"blank\.tiff"):
        inspect(slide, "--output", tmp_path)
    assert (tmp_path / "blank.tiff_qc.png").exists()
    assert "0 mm²" in capsys.readouterr().out


def test_all_sources_tissue_settings_and_artefacts_are_shown(tmp_path, capsys):
    """A green stroke of 60 × 500 px at 2 µm; the outline that is written is that of the tissue without it."""
    slide = write_slide(tmp_path / "a.tiff", (200, 120, 170), 2.0)
    with tifffile.TiffFile(slide) as file:
        picture = file.asarray()
    picture[200:260, 100:600] = (30, 130, 80)
    options = {"tile": (64, 64), "photometric": "rgb", "resolution": (5000, 5000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(slide, picture, **options)
    outline = tmp_path / "new" / "a.geojson"
    arguments = [slide, "--mpp", 2, "--patch-size", 50, "--target-mpp", 2, "--output", tmp_path]
    assert inspect(*arguments, "--tissue.method", "hed", "--tissue-geojson", outline) == 0
    shown = capsys.readouterr().out
    for text in ("µm/px: cohort", "µm/px: tiff-resolution", "by hed (stain density > 0.025)", "removed: pen"):
        assert text in shown
    pieces = [one.geometry for one in read_geojson(outline)]
    assert len(pieces) == 2
    assert not any(piece.intersects(box(100, 200, 600, 260)) for piece in pieces)
    assert inspect(*arguments, "--tissue.reject_pen", "false", "--tissue-mask", outline) == 0
    assert "by mask" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"--tissue\.mask_file x: expected a name of: thumbnail_mpp"):
        inspect(*arguments, "--tissue.mask_file", "x")
    with pytest.raises(AnnotationError, match=r"absent\.png: the tissue mask cannot be read"):
        inspect(*arguments, "--tissue-mask", tmp_path / "absent.png")


@pytest.mark.parametrize(
    ("mpp", "options", "expected"),
    [
        (0.5, [], "level 0, as it is"),
        (0.25, [], "level 0, reduced 2 times (box, lanczos)"),
        (0.51, [], "level 0, enlarged 1.0"),
        (2.0, ["--allow-upsampling"], "level 0, enlarged 4 times (lanczos)"),
    ],
)
def test_how_patches_get_their_size_is_shown(tmp_path, capsys, mpp, options, expected):
    slide = write_slide(tmp_path / "a.tiff", (200, 120, 170), mpp)
    size = ["--patch-size", 40, "--tissue.min_object_mm2", 0.0001]
    assert inspect(slide, "--output", tmp_path, *size, *options) == 0
    assert expected in capsys.readouterr().out


@pytest.mark.realdata
@pytest.mark.skipif(not SLIDES.is_dir(), reason="the real slides are not here")
def test_real_slides(tmp_path, capsys):
    assert inspect(SLIDES / "CMU-1-Small-Region.svs", "--output", tmp_path) == 0
    assert "224 px = 111.78 µm" in capsys.readouterr().out
    dicom = SLIDES / "camelyon-node-overview.dcm"
    with pytest.raises(MppError, match=r"--target-mpp 28\.97"):
        inspect(dicom, "--output", tmp_path)
    assert "28.9685 µm/px" in capsys.readouterr().out
    assert inspect(dicom, "--target-mpp", 28.97, "--patch-size", 16, "--output", tmp_path) == 0
