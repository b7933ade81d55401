"""How is a slide file read? The one importer of OpenSlide.

1. `open_slide` turns every way of not being a slide (missing, a folder, another format, damaged) into one `SlideError`.
2. `OpenSlideReader` answers the questions of `SlideReader` from OpenSlide's properties.
3. `read_region` reads the best level on its own pixel raster, puts transparent pixels on the background colour and
   resamples the exact box.

An OpenSlide handle is dead after its first error: every later call repeats that error, even for healthy parts of the
file. The reader drops the handle then, reports the tile, and opens the file again for the next one. Threads that share
the handle at that moment fail as well, each with an error of its own, and may simply try again.

OpenSlide takes positions in whole level-0 pixels. Between the pixels of a coarse level it interpolates, which blurs;
so the read starts at the level-0 pixel nearest to a level pixel and the remaining fraction is left to the resampling.
It also has one downsample for both axes, the mean of the two. Where a level's sides were rounded differently (a strip
of 4001 × 203 px at 996 × 50) that is off by whole pixels at the far end, so x and y are converted each on its own here.
"""

from __future__ import annotations

import math
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Final, Self

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image

from span_sparse.errors import MppError, SlideError
from span_sparse.grid import BoxPx0
from span_sparse.wsi.reader import SlideReader, pick_level, whole_reduction

MAX_EDGE_PX0: Final = 2**21
"""Half a metre at 0.25 µm/px. A damaged header that says more would keep every loop over the slide busy for ever."""

MAX_MPP_ANISOTROPY: Final = 0.02
"""Largest relative difference of the resolutions along x and y that is taken for rounding."""

OPAQUE: Final = 0xFF000000
"""Least RGBA pixel with alpha 255, as a little-endian number."""

UM_PER_TIFF_UNIT: Final = {"centimeter": 10_000.0, "inch": 25_400.0}


def open_slide(path: Path | str) -> SlideReader:
    """Open a slide file.

    Args:
        path: the slide's file; of formats with several files (MRXS, DICOM) the named one.

    Raises:
        SlideError: no such file, a folder, or nothing OpenSlide can open.
    """
    path = Path(path)
    if path.is_dir():
        raise SlideError(f"{path}: is a folder, not a slide; name one of the files in it")
    if not path.is_file():
        raise SlideError(f"{path}: no such file; check the folder of slides and the cohort table")
    handle = _open_handle(path)
    width, height = handle.dimensions
    if max(width, height) > MAX_EDGE_PX0:
        handle.close()
        raise SlideError(
            f"{path}: claims {width} × {height} px, expected at most {MAX_EDGE_PX0} along each side; its header is "
            "damaged, copy the file again or remove it from the cohort"
        )
    return OpenSlideReader(path, handle)


def _open_handle(path: Path) -> openslide.OpenSlide:
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise SlideError(
            f"{path}: not a slide in a format OpenSlide reads (a plain picture, a truncated or another file); "
            "convert it to a tiled pyramidal TIFF or remove it from the cohort"
        ) from error
    except (openslide.OpenSlideError, OSError) as error:
        raise SlideError(f"{path}: cannot be opened ({error}); the file is damaged or of an unknown kind") from error


def _resampled(picture: Image.Image, size: tuple[int, int], window: tuple[float, float, float, float]) -> Image.Image:
    """A window of a picture at a size, in the steps of `whole_reduction`."""
    first_x, first_y, last_x, last_y = window
    reduction = whole_reduction(min((last_x - first_x) / size[0], (last_y - first_y) / size[1]))
    if reduction > 1:
        picture = picture.reduce(reduction)
        window = (first_x / reduction, first_y / reduction, last_x / reduction, last_y / reduction)
    if picture.size == size and window == (0, 0, *size):
        return picture
    return picture.resize(size, Image.Resampling.LANCZOS, box=window)


class OpenSlideReader:
    """A slide opened with OpenSlide; see `SlideReader` for what each member means."""

    def __init__(self, path: Path, handle: openslide.OpenSlide) -> None:
        self._path = path
        self._properties = dict(handle.properties)
        self._level_shapes = tuple((int(width), int(height)) for width, height in handle.level_dimensions)
        self._openslide_downsamples = tuple(float(factor) for factor in handle.level_downsamples)
        self._background = self._background_colour()
        self._handle: openslide.OpenSlide | None = handle
        self._lock = Lock()
        self._is_closed = False

    @property
    def path(self) -> Path:
        """The file that was opened."""
        return self._path

    @property
    def vendor(self) -> str:
        """The format, in OpenSlide's words."""
        return self._properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")

    @property
    def width_px0(self) -> int:
        """Width of level 0 in pixels."""
        return self._level_shapes[0][0]

    @property
    def height_px0(self) -> int:
        """Height of level 0 in pixels."""
        return self._level_shapes[0][1]

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Level-0 pixels per pixel of each level, along the side where they are more."""
        return tuple(max(self.width_px0 / width, self.height_px0 / height) for width, height in self._level_shapes)

    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]:
        """`(width, height)` of each level."""
        return self._level_shapes

    @property
    def bounds(self) -> BoxPx0 | None:
        """`openslide.bounds-*` in level-0 pixels."""
        try:
            left, top, width, height = (
                int(self._properties[f"openslide.bounds-{part}"]) for part in ("x", "y", "width", "height")
            )
        except (KeyError, ValueError):
            return None
        return BoxPx0(left, top, left + width, top + height)

    @property
    def mpp_tag(self) -> float | None:
        """`openslide.mpp-x` and `-y`, except where OpenSlide itself took them from the TIFF resolution."""
        if self.vendor == "generic-tiff":
            return None
        return self._mean_mpp(self._number("openslide.mpp-x"), self._number("openslide.mpp-y"), "vendor's tags")

    @property
    def mpp_tiff(self) -> float | None:
        """From `tiff.XResolution`, `tiff.YResolution` (pixels per unit) and `tiff.ResolutionUnit`."""
        unit_um = UM_PER_TIFF_UNIT.get(self._properties.get("tiff.ResolutionUnit", ""))
        per_unit_x, per_unit_y = self._number("tiff.XResolution"), self._number("tiff.YResolution")
        if unit_um is None or per_unit_x is None or per_unit_y is None:
            return None
        return self._mean_mpp(unit_um / per_unit_x, unit_um / per_unit_y, "TIFF resolution")

    @property
    def objective_power(self) -> float | None:
        """`openslide.objective-power`."""
        return self._number(openslide.PROPERTY_NAME_OBJECTIVE_POWER)

    def read_region(self, box: BoxPx0, size_tile_px: int | tuple[int, int]) -> NDArray[np.uint8]:
        """RGB bytes `[height, width, 3]` of a level-0 box; see `SlideReader.read_region`."""
        size = (size_tile_px, size_tile_px) if isinstance(size_tile_px, int) else size_tile_px
        box_width, box_height = box.x1 - box.x0, box.y1 - box.y0
        if min(box_width, box_height, *size) < 1:
            raise ValueError(f"a region needs a positive size, got {box} rendered at {size} px")
        level = pick_level(self.level_downsamples, min(box_width / size[0], box_height / size[1]))
        left_px0, first_x, last_x = self._span(level, 0, box.x0, box.x1)
        top_px0, first_y, last_y = self._span(level, 1, box.y0, box.y1)
        picture = self._read_level(level, left_px0, top_px0, math.ceil(last_x), math.ceil(last_y))
        window = (first_x, first_y, last_x, last_y)
        if picture.size != size or window != (0, 0, *size):
            picture = _resampled(picture.convert("RGB"), size, window)
        # packs the three channels in one pass; `np.asarray(picture.convert("RGB"))` costs a tenth of a patch more
        return np.frombuffer(picture.tobytes("raw", "RGB"), np.uint8).reshape(size[1], size[0], 3)

    def close(self) -> None:
        """Release the file; may be called twice."""
        self._is_closed = True
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _span(self, level: int, axis: int, start_px0: int, stop_px0: int) -> tuple[int, float, float]:
        """Where to begin reading a level, in OpenSlide's level-0 pixels, and the interval relative to that, in its own.

        Args:
            level: the level.
            axis: 0 for x, 1 for y.
            start_px0: first pixel of the interval.
            stop_px0: end of the interval.
        """
        factor = self._level_shapes[0][axis] / self._level_shapes[level][axis]
        openslide_factor = self._openslide_downsamples[level]
        start, stop = start_px0 / factor, stop_px0 / factor
        corner_px0 = round(math.floor(start) * openslide_factor)
        if corner_px0 / openslide_factor > start:  # rounded up, past the first pixel
            corner_px0 = round((math.floor(start) - 1) * openslide_factor)
        corner = corner_px0 / openslide_factor
        return corner_px0, start - corner, stop - corner

    def _drop_handle(self, handle: openslide.OpenSlide) -> None:
        """Use a handle no more; the last thread that still reads with it closes it by letting go of it."""
        with self._lock:
            if self._handle is handle:
                self._handle = None

    def _living_handle(self) -> openslide.OpenSlide:
        """The handle, opened again if an error has killed it."""
        with self._lock:
            if self._is_closed:
                raise SlideError(f"{self._path}: is closed; open the slide again")
            if self._handle is None:
                handle = _open_handle(self._path)
                if tuple(handle.level_dimensions) != self._level_shapes:
                    handle.close()
                    raise SlideError(f"{self._path}: has changed while it was read; start again when it is complete")
                self._handle = handle
            return self._handle

    def _read_level(self, level: int, left_px0: int, top_px0: int, width: int, height: int) -> Image.Image:
        """Opaque picture (RGB or RGBA) of `width × height` pixels of a level, on the background colour."""
        handle = self._living_handle()
        try:
            rgba = handle.read_region((left_px0, top_px0), level, (width, height))
        except openslide.OpenSlideError as error:
            self._drop_handle(handle)
            raise SlideError(
                f"{self._path}: opens, but its pixels cannot be read at level {level}, level-0 pixel "
                f"({left_px0}, {top_px0}) ({error}); the file is damaged, copy it again or remove it from the cohort"
            ) from error
        # alpha is the highest byte; all in one pass, where taking the channel out first costs 2 % of a patch more
        if np.frombuffer(rgba.tobytes(), "<u4").min(initial=OPAQUE) >= OPAQUE:
            return rgba
        canvas = Image.new("RGBA", rgba.size, (*self._background, 255))
        return Image.alpha_composite(canvas, rgba)

    def _background_colour(self) -> tuple[int, int, int]:
        text = self._properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "")
        try:
            red, green, blue = bytes.fromhex(text.removeprefix("#"))
        except ValueError:
            return 255, 255, 255
        return red, green, blue

    def _number(self, key: str) -> float | None:
        """A positive finite property, else None: scanners write 0 or nothing when they do not know."""
        try:
            value = float(self._properties[key])
        except (KeyError, ValueError):
            return None
        return value if 0 < value < math.inf else None

    def _mean_mpp(self, mpp_x: float | None, mpp_y: float | None, origin: str) -> float | None:
        if mpp_x is None or mpp_y is None:
            return None
        if abs(mpp_x - mpp_y) > MAX_MPP_ANISOTROPY * min(mpp_x, mpp_y):
            raise MppError(
                f"{self._path}: the {origin} give {mpp_x:g} µm/px along x and {mpp_y:g} along y, expected square "
                "pixels; put the right value into the column `mpp` of the cohort table (inspect: --mpp)"
            )
        return (mpp_x + mpp_y) / 2
