from __future__ import annotations

import re
from dataclasses import replace

import pytest

from span_sparse.cohort import read_cohort
from span_sparse.errors import CohortError
from span_sparse.wsi import TissueSettings, tissue_settings_for


@pytest.fixture
def settings_of(tmp_path):
    """Settings of slide `a` for a header and its cells."""
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(b"pixels")
    (tmp_path / "NA").write_bytes(b"a file of that name")

    def make(defaults: TissueSettings | None = None, **cells: str) -> TissueSettings:
        table = tmp_path / "cohort.csv"
        table.write_text(f"slide_id,{','.join(cells)}\nb,{',' * (len(cells) - 1)}\na,{','.join(cells.values())}\n")
        cohort = read_cohort(table)
        assert tissue_settings_for(cohort, "b", TissueSettings(), tmp_path) == TissueSettings()
        return tissue_settings_for(cohort, "a", defaults or TissueSettings(), tmp_path)

    return make


def test_cells_replace_settings_and_empty_ones_do_not(settings_of):
    assert settings_of(label="x", tissue_site="lung") == TissueSettings()
    assert settings_of(tissue_method="hed") == TissueSettings(method="hed")
    defaults = TissueSettings(method="hed", max_hole_mm2=0.5, reject_blur=True)
    changed = settings_of(defaults, tissue_method="", min_object_mm2="2e-3", reject_pen="No", reject_blur="0")
    assert changed == replace(defaults, min_object_mm2=0.002, reject_pen=False, reject_blur=False)
    assert settings_of(hed_low="0.01", hed_high="0.2", reject_folds="yes") == TissueSettings(
        hed_low=0.01, hed_high=0.2, reject_folds=True
    )


def test_a_mask_needs_no_method(settings_of, tmp_path):
    expected = TissueSettings().with_mask_file(tmp_path / "masks" / "a.png", "bounds")
    assert settings_of(tissue_mask="masks/a.png", tissue_mask_origin="bounds") == expected
    assert settings_of(tissue_mask="masks/a.png", tissue_method="mask", tissue_mask_origin="bounds") == expected
    assert settings_of(expected, tissue_method="otsu") == TissueSettings()
    assert settings_of(tissue_mask="NA").mask_file == str(tmp_path / "NA")


@pytest.mark.parametrize(
    ("cells", "column", "message"),
    [
        ({"tissue_method": "otzu"}, "tissue_method", "expected one of otsu, hed, mask or nothing, found 'otzu'"),
        ({"min_object_mm2": "small"}, "min_object_mm2", "expected a number or nothing, found 'small'"),
        ({"min_object_mm2": "inf"}, "min_object_mm2", "expected a number or nothing, found 'inf'"),
        ({"min_object_mm2": "-1"}, "min_object_mm2", "must be in [0, 1e+06], got -1.0"),
        ({"reject_pen": "2"}, "reject_pen", "expected yes or no or nothing, found '2'"),
        ({"tissue_mask": "masks/b.png"}, "tissue_mask", "there is no file"),
        ({"tissue_method": "mask"}, "tissue_mask", "belong together, found no file"),
        ({"tissue_method": "hed", "tissue_mask": "masks/a.png"}, "tissue_method", "belong together, found a.png"),
        ({"tissue_mask_origin": "x"}, "tissue_mask_origin", "expected one of slide, bounds or nothing"),
        ({"hed_low": "0.9"}, "hed_low", "thresholds must ascend"),
    ],
)
def test_messages_name_line_and_column(settings_of, cells, column, message):
    with pytest.raises(CohortError, match=rf"cohort\.csv, line 3, column '{column}': .*{re.escape(message)}"):
        settings_of(**cells)


@pytest.mark.parametrize("path", ["../a.png", "/etc/passwd", "masks/../../a.png"])
def test_masks_lie_below_the_slides(settings_of, path):
    with pytest.raises(CohortError, match="outside the slides folder"):
        settings_of(tissue_mask=path)
