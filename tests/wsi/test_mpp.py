from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from span_sparse.errors import MppError
from span_sparse.grid import LatticeSpec
from span_sparse.wsi import check_resolution, mpp_sources, open_slide, resolve_mpp


def slide(tag=None, tiff=None, power=None):
    return SimpleNamespace(path=Path("s.svs"), mpp_tag=tag, mpp_tiff=tiff, objective_power=power)


@pytest.mark.parametrize(
    ("reader", "cohort", "expected"),
    [
        (slide(0.25, 0.3, 20), 0.4, (0.4, "cohort")),
        (slide(0.25, 0.3, 20), None, (0.25, "openslide")),
        (slide(0.25, 0.3, 20), math.nan, (0.25, "openslide")),
        (slide(None, 0.3, 20), None, (0.3, "tiff-resolution")),
        (slide(None, None, 20), None, (0.5, "objective-power")),
        (slide(None, None, 40), None, (0.25, "objective-power")),
        (slide(28.9685), None, (28.9685, "openslide")),
    ],
)
def test_order_of_the_sources(reader, cohort, expected):
    assert resolve_mpp(reader, cohort) == expected


def test_no_source_is_refused_with_the_fix():
    with pytest.raises(MppError, match=r"s\.svs.*column `mpp` of the cohort table \(inspect: --mpp\)"):
        resolve_mpp(slide())


@pytest.mark.parametrize(
    ("reader", "cohort", "source"),
    [
        (slide(264.6), None, "openslide"),
        (slide(None, 352.8, 20), None, "tiff-resolution"),
        (slide(0.25), 500, "cohort"),
        (slide(0.25), 0.0, "cohort"),
        (slide(0.25), -1.0, "cohort"),
        (slide(0.25), math.inf, "cohort"),
        (slide(0.01), None, "openslide"),
    ],
)
def test_implausible_values_are_refused_never_skipped(reader, cohort, source):
    with pytest.raises(MppError, match=rf"from {source}\) is implausible.*0\.05 to 50.*column `mpp`"):
        resolve_mpp(reader, cohort)


def test_96_dpi_tag_of_a_real_tiff(make_slide):
    path = make_slide([np.zeros((80, 80, 3), np.uint8)], mpp=25_400 / 96)
    with open_slide(path) as reader:
        with pytest.raises(MppError, match=r"264\.6 µm/px \(from tiff-resolution\)"):
            resolve_mpp(reader)
        assert resolve_mpp(reader, 0.5) == (0.5, "cohort")


def test_tiff_resolution_of_a_real_tiff(make_slide):
    with open_slide(make_slide([np.zeros((80, 80, 3), np.uint8)], mpp=0.2527)) as reader:
        value, source = resolve_mpp(reader)
    assert value == pytest.approx(0.2527, rel=1e-6)
    assert source == "tiff-resolution"


def test_enlarging_is_refused_and_names_the_option():
    with pytest.raises(MppError, match=r"28\.97 µm/px.*--target-mpp 28\.97"):
        check_resolution(slide(), 28.9685, LatticeSpec(224, 0.5))
    check_resolution(slide(), 28.9685, LatticeSpec(224, 28.97))
    check_resolution(slide(), 0.52, LatticeSpec(224, 0.5))
    check_resolution(slide(), 0.25, LatticeSpec(224, 0.5))
    with pytest.raises(MppError, match="enlarged"):
        check_resolution(slide(), 0.55, LatticeSpec(224, 0.5))


def test_upsampling_is_allowed_on_request_and_its_factor_is_returned():
    spec = LatticeSpec(224, 0.5)
    assert check_resolution(slide(), 1.0, spec, allow_upsampling=True) == 2.0
    assert check_resolution(slide(), 0.52, spec) == pytest.approx(1.04)
    assert check_resolution(slide(), 0.25, spec, allow_upsampling=True) == 1.0
    with pytest.raises(MppError, match="--allow-upsampling if you want that"):
        check_resolution(slide(), 1.0, spec)


@pytest.mark.parametrize(
    ("reader", "contradicts"),
    [
        (slide(0.25, None, 40), False),
        (slide(0.25, None, 20), False),  # 20× scanned through a doubler
        (slide(0.5, None, 40), False),
        (slide(0.1, None, 20), True),
        (slide(1.0, None, 40), True),  # exported at a quarter of the size
        (slide(None, 2.5, 40), True),
        (slide(None, None, 40), False),
    ],
)
def test_resolution_and_objective_that_contradict_each_other(reader, contradicts):
    assert resolve_mpp(reader, 0.77) == (0.77, "cohort")
    if contradicts:
        with pytest.raises(MppError, match=r"contradicts the objective of (20|40)×, which has about .* `mpp`"):
            resolve_mpp(reader)
    else:
        resolve_mpp(reader)


def test_all_sources_are_shown():
    assert mpp_sources(slide(0.25, 0.3, 20), 0.4) == {
        "cohort": 0.4, "openslide": 0.25, "tiff-resolution": 0.3, "objective-power": 0.5,
    }  # fmt: skip
    assert mpp_sources(slide(None, 0.3), math.nan) == {"tiff-resolution": 0.3}
    assert mpp_sources(slide()) == {}

    class Oblong:
        path, mpp_tiff, objective_power = Path("s.svs"), None, 20

        @property
        def mpp_tag(self):
            raise MppError("not square")

    assert mpp_sources(Oblong()) == {"openslide": "not square", "objective-power": 0.5}  # type: ignore[arg-type]


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "mpp"), [("CMU-1-Small-Region.svs", 0.499), ("camelyon-node-overview.dcm", 28.9685)])
def test_real_slides(real_slides, name, mpp):
    with open_slide(real_slides / name) as reader:
        value, source = resolve_mpp(reader)
    assert value == pytest.approx(mpp, rel=1e-6)
    assert source == "openslide"
