"""Which values decide what counts as tissue, and what is found with them?

`TissueSettings` is kept with the features of every slide and compared when a run is resumed, so it holds plain values
only; a mask drawn by the user is known by its file's name and checksum, and may move with the slides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import AnnotationError, ConfigError

OTSU: Final = "otsu"
HED: Final = "hed"
MASK: Final = "mask"
METHODS: Final = (OTSU, HED, MASK)

SLIDE: Final = "slide"
BOUNDS: Final = "bounds"
ORIGINS: Final = (SLIDE, BOUNDS)

UM2_PER_MM2: Final = 1e6

_SHARES: Final = ("saturation_floor", "saturation_ceiling", "value_floor")
_POSITIVE: Final = ("thumbnail_mpp", "hed_low", "hed_high")
_AREAS: Final = ("min_object_mm2", "max_hole_mm2")


@dataclass(frozen=True, slots=True)
class TissueSettings:
    """How tissue is told from glass; stored with the features.

    Attributes:
        thumbnail_mpp: µm per pixel of the thumbnail; a coarser slide is taken as it is.
        saturation_floor: `otsu`: least saturation (HSV, 0 to 1) of tissue, whatever Otsu says.
        saturation_ceiling: `otsu`: saturation that is tissue, whatever Otsu says.
        value_floor: pixels whose brightest channel is below this (0 to 1) are black fill.
        min_object_mm2: smaller pieces are dropped.
        max_hole_mm2: smaller holes are filled.
        method: `otsu` (any coloured stain), `hed` (H&E that is pale or fatty), `mask` (a file drawn by the user, which
            is taken as it is: nothing is dropped, filled or rejected).
        hed_low: `hed`: stain density (OD) that is tissue where it touches `hed_high`. Glass has about 0.01.
        hed_high: `hed`: stain density that is tissue by itself.
        reject_pen: leave out ink of felt pens.
        reject_folds: leave out folds; finds dense ribbons, which in some organs are tissue.
        reject_blur: leave out what is out of focus; reads the tissue a second time, at 2 µm/px.
        mask_file: `mask`: a PNG or TIFF (not zero is tissue) or a GeoJSON of the slide.
        mask_origin: `mask`: whether the file shows the whole `slide` or its `bounds`, as QuPath does (MRXS).
        mask_checksum: of that file, from `with_mask_file`.

    Raises:
        ConfigError: a value that cannot work, or a method and a mask that do not go together.
    """

    thumbnail_mpp: float = 8.0
    saturation_floor: float = 0.05
    saturation_ceiling: float = 0.12
    value_floor: float = 0.1
    min_object_mm2: float = 0.01
    max_hole_mm2: float = 0.01
    method: str = OTSU
    hed_low: float = 0.025
    hed_high: float = 0.08
    reject_pen: bool = True
    reject_folds: bool = False
    reject_blur: bool = False
    mask_file: str = ""
    mask_origin: str = SLIDE
    mask_checksum: str = ""

    def __post_init__(self) -> None:
        for names, low, high in ((_SHARES, 0.0, 1.0), (_AREAS, 0.0, 1e6), (_POSITIVE, 1e-4, 1e3)):
            for name in names:
                if not low <= getattr(self, name) <= high:
                    raise ConfigError(f"{name} must be in [{low:g}, {high:g}], got {getattr(self, name)}")
        if self.method not in METHODS:
            raise ConfigError(f"there is no tissue method {self.method!r}; there are {', '.join(METHODS)}")
        if self.mask_origin not in ORIGINS:
            raise ConfigError(f"mask_origin must be one of {', '.join(ORIGINS)}, got {self.mask_origin!r}")
        if (self.method == MASK) != bool(self.mask_file):
            raise ConfigError(
                "the tissue method 'mask' needs a mask file"
                if self.method == MASK
                else f"a mask file ({self.mask_file}) is used by the tissue method 'mask' only, got {self.method!r}"
            )
        if self.hed_low > self.hed_high or self.saturation_floor > self.saturation_ceiling:
            raise ConfigError(
                f"thresholds must ascend, got hed_low {self.hed_low:g} and hed_high {self.hed_high:g}, "
                f"saturation_floor {self.saturation_floor:g} and saturation_ceiling {self.saturation_ceiling:g}"
            )

    def with_mask_file(self, path: Path, origin: str = SLIDE) -> TissueSettings:
        """The same settings, but tissue is what the file says.

        Args:
            path: PNG, TIFF or GeoJSON.
            origin: `slide` or `bounds`.

        Raises:
            AnnotationError: the file cannot be read.
        """
        try:
            with path.open("rb") as file:
                checksum = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise AnnotationError(f"{path}: the tissue mask cannot be read: {error.strerror or error}") from error
        return replace(self, method=MASK, mask_file=str(path), mask_origin=origin, mask_checksum=f"sha256:{checksum}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the provenance of a store; of the mask's path only the name, folders may move."""
        return asdict(self) | {"mask_file": Path(self.mask_file).name}


@dataclass(frozen=True, slots=True, eq=False)
class TissueMask:
    """Tissue of one slide.

    Attributes:
        mask: bool `[rows, cols]`; pixel `(row, col)` covers the level-0 pixels
            `x in [col·scale_px0, (col+1)·scale_px0)`, `y` likewise.
        scale_px0: edge of a mask pixel in level-0 pixels.
        slide_mpp: µm per pixel of level 0.
        threshold: saturation (`otsu`) or lower stain density (`hed`) that was used; 0 for a mask file.
        method: how it was found.
        removed: what was taken out, `pen`, `folds`, `blur`, bool `[rows, cols]` each; only what was looked for.
    """

    mask: NDArray[np.bool_]
    scale_px0: int
    slide_mpp: float
    threshold: float
    method: str = OTSU
    removed: Mapping[str, NDArray[np.bool_]] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def mpp(self) -> float:
        """µm per pixel of the mask."""
        return self.scale_px0 * self.slide_mpp

    @property
    def area_mm2(self) -> float:
        """Area of the tissue."""
        return float(self.mask.sum()) * self.mpp**2 / UM2_PER_MM2

    @property
    def removed_shares(self) -> dict[str, float]:
        """Area of each kind that was removed over the area of tissue and all that was removed, in [0, 1]."""
        area = np.logical_or.reduce([self.mask, *self.removed.values()]).sum()
        return {name: float(part.sum() / area) if area else 0.0 for name, part in self.removed.items()}
