"""How does one slide of a cohort get other tissue settings than the rest?

By columns of the cohort table; an empty cell means the setting of the run. `tissue_method`, `tissue_mask` (a file,
relative to the folder of slides) and `tissue_mask_origin` say how tissue is found; the thresholds and switches are
columns by their own names: `min_object_mm2`, `reject_folds` and so on. A mask needs no method beside it.

Everything is checked here, before a slide is opened, and messages name line and column. Other columns are nobody's
business here: `tissue_site` may be a label.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from span_sparse.cohort import TISSUE_MASK, CohortTable
from span_sparse.errors import AnnotationError, CohortError, ConfigError
from span_sparse.wsi.tissue_settings import MASK, METHODS, ORIGINS, SLIDE, TissueSettings

TISSUE_METHOD: Final = "tissue_method"
TISSUE_MASK_ORIGIN: Final = "tissue_mask_origin"

NUMBERS: Final = (
    "thumbnail_mpp",
    "saturation_floor",
    "saturation_ceiling",
    "value_floor",
    "min_object_mm2",
    "max_hole_mm2",
    "hed_low",
    "hed_high",
)
SWITCHES: Final = ("reject_pen", "reject_folds", "reject_blur")
_YES_NO: Final = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


def tissue_settings_for(
    cohort: CohortTable, slide_id: str, defaults: TissueSettings, slides_dir: Path
) -> TissueSettings:
    """The tissue settings of a slide: those of the run, with what its line of the table says.

    Args:
        cohort: the table.
        slide_id: a slide of it.
        defaults: settings of the run.
        slides_dir: folder that masks are relative to.

    Raises:
        CohortError: a cell that cannot be used; names line and column.
    """
    changes: dict[str, Any] = {}
    for column in (*NUMBERS, *SWITCHES):
        text = cohort.value(slide_id, column)
        if text is not None:
            parse, expected = (_switch, "yes or no") if column in SWITCHES else (_number, "a number")
            if (value := parse(text)) is None:
                raise CohortError(f"{cohort.place(slide_id, column)}: expected {expected} or nothing, found {text!r}")
            changes[column] = value
    method = _choice(cohort, slide_id, TISSUE_METHOD, METHODS)
    origin = _choice(cohort, slide_id, TISSUE_MASK_ORIGIN, ORIGINS)
    mask = cohort.file_of(slide_id, TISSUE_MASK, slides_dir)
    if (method == MASK and mask is None) or (mask is not None and method not in (None, MASK)):
        column = TISSUE_MASK if mask is None else TISSUE_METHOD
        raise CohortError(
            f"{cohort.place(slide_id, column)}: a mask file and the method {MASK!r} belong together, found "
            f"{'no file' if mask is None else mask.name} and method {method!r}"
        )
    if method not in (None, MASK):
        changes |= {"method": method, "mask_file": "", "mask_checksum": "", "mask_origin": SLIDE}
    try:
        settings = replace(defaults, **changes)
        return settings if mask is None else settings.with_mask_file(mask, origin or SLIDE)
    except (ConfigError, AnnotationError) as error:
        raise CohortError(f"{cohort.place(slide_id, next(iter(changes), TISSUE_MASK))}: {error}") from error


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _switch(text: str) -> bool | None:
    return _YES_NO.get(text.lower())


def _choice(cohort: CohortTable, slide_id: str, column: str, choices: tuple[str, ...]) -> str | None:
    text = cohort.value(slide_id, column)
    if text is None or text in choices:
        return text
    raise CohortError(
        f"{cohort.place(slide_id, column)}: expected one of {', '.join(choices)} or nothing, found {text!r}"
    )
