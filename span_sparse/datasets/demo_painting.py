"""How does a demo slide get its pixels?

1. Stain densities of the whole slide: wavy collagen (eosin), spindle and round nuclei (hematoxylin), glands. This is
   one stationary texture that knows nothing of the foci.
2. Every focus cell is painted over with a nest of dense dark nuclei, up to its border and not a pixel further. So
   neither a focus nor its neighbours can tell from their own pixels whether other foci are near.
3. Densities become light by the Beer–Lambert law with the patient's stain vectors, brightness and noise.
4. A tiled pyramidal TIFF that OpenSlide opens as `generic-tiff`.

Blending the foci into their surroundings would be prettier and would leak: the share of half-dark rim patches differs
between clustered and scattered foci, and a mean over patches would see it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy.ndimage import zoom

from span_sparse.datasets.demo_layout import Layout
from span_sparse.files import replacing

TILE_PX: Final = 256
LEVEL_DOWNSAMPLES: Final = (1, 4, 16)

_Plane = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Appearance:
    """What differs between patients and scanners.

    Attributes:
        mpp: micrometres per pixel of level 0.
        hematoxylin: strength of the stain, about 1.
        eosin: strength of the stain, about 1.
        hematoxylin_rgb: optical density of the stain per channel.
        eosin_rgb: optical density of the stain per channel.
        white: grey value of clear glass per channel.
        noise: standard deviation of the camera noise in grey values.
    """

    mpp: float
    hematoxylin: float
    eosin: float
    hematoxylin_rgb: tuple[float, float, float]
    eosin_rgb: tuple[float, float, float]
    white: tuple[float, float, float]
    noise: float


@dataclass(frozen=True, slots=True, eq=False)
class _Nuclei:
    """Ellipses: centre `(y, x)` and half-axes in pixels, angle of the long axis in radians, hematoxylin density."""

    centres: _Plane
    long: _Plane
    short: _Plane
    angle: _Plane
    density: _Plane


def paint(layout: Layout, appearance: Appearance, step_px0: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Paint the tissue of one slide, without camera noise.

    Two layouts that differ in their foci alone, painted with the same random numbers, hold the same background and the
    same nests in other places.

    Args:
        layout: tissue and foci in cells.
        appearance: stain and scanner.
        step_px0: edge of a cell in pixels.
        rng: source of randomness.

    Returns:
        float32 RGB `[rows * step_px0, cols * step_px0, 3]`, grey values.
    """
    height, width = layout.rows * step_px0, layout.cols * step_px0
    down = (np.arange(height, dtype=np.float32) + 0.5) / step_px0
    right = (np.arange(width, dtype=np.float32) + 0.5) / step_px0
    tissue = layout.outline.contains(down[:, None], right[None, :])
    hematoxylin, eosin = _paint_background(height, width, appearance.mpp, rng)
    _paint_foci(hematoxylin, eosin, layout.foci, step_px0, appearance.mpp, rng)
    hematoxylin *= appearance.hematoxylin * tissue
    eosin *= appearance.eosin * tissue
    light = np.empty((height, width, 3), dtype=np.float32)
    for channel in range(3):
        density = hematoxylin * appearance.hematoxylin_rgb[channel] + eosin * appearance.eosin_rgb[channel]
        light[..., channel] = np.exp(-density) * appearance.white[channel]
    return light


def scan(light: NDArray[np.float32], appearance: Appearance, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Camera noise on the tissue, clear glass on the right and below: the slide is no multiple of the cell.

    Args:
        light: float32 RGB `[height, width, 3]` from `paint`.
        appearance: stain and scanner.
        rng: source of randomness.

    Returns:
        uint8 RGB `[height + 13, width + 21, 3]`.
    """
    height, width, _ = light.shape
    picture = np.empty((height + 13, width + 21, 3), dtype=np.uint8)
    picture[:] = np.rint(appearance.white)
    noise = rng.standard_normal((height, width), dtype=np.float32) * np.float32(appearance.noise)
    noise *= light[..., 1] < appearance.white[1] - 0.5
    picture[:height, :width] = np.clip(np.rint(light + noise[..., None]), 0, 255)
    return picture


def write_slide(path: Path, picture: NDArray[np.uint8], mpp: float) -> None:
    """Write a tiled pyramidal TIFF under a temporary name, then rename it.

    Args:
        path: the slide's file.
        picture: uint8 RGB `[height, width, 3]`.
        mpp: micrometres per pixel, stored as pixels per centimetre.
    """
    with replacing(path) as stream, tifffile.TiffWriter(stream) as writer:
        for level, downsample in enumerate(LEVEL_DOWNSAMPLES):
            writer.write(
                _shrink(picture, downsample),
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",
                compression="adobe_deflate",
                compressionargs={"level": 3},
                predictor=True,
                subfiletype=0 if level == 0 else 1,
                resolution=(10_000 / (mpp * downsample), 10_000 / (mpp * downsample)),
                resolutionunit="CENTIMETER",
                software="span-sparse demo cohort",
                metadata=None,
            )


def _shrink(picture: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Means of `factor × factor` blocks; an incomplete last block is left out, as scanners do."""
    if factor == 1:
        return picture
    rows, cols = picture.shape[0] // factor, picture.shape[1] // factor
    # Rows first: whole rows are added at a stroke, and only a quarter or a sixteenth is left for the columns.
    sums = picture[: rows * factor].reshape(rows, factor, -1).sum(axis=1, dtype=np.uint32).reshape(rows, -1, 3)
    sums = sums[:, : cols * factor].reshape(rows, cols, factor, 3).sum(axis=2, dtype=np.uint32)
    return ((sums + factor**2 // 2) // factor**2).astype(np.uint8)


def _waves(height: int, width: int, period_px: float, rng: np.random.Generator) -> _Plane:
    """A smooth random field with structures of about `period_px`, standard normal at its nodes."""
    nodes = rng.standard_normal((int(height / period_px) + 3, int(width / period_px) + 3), dtype=np.float32)
    factors = (height / (nodes.shape[0] - 1), width / (nodes.shape[1] - 1))
    return np.asarray(zoom(nodes, np.ceil(factors), order=1), dtype=np.float32)[:height, :width]


def _paint_background(height: int, width: int, mpp: float, rng: np.random.Generator) -> tuple[_Plane, _Plane]:
    theta = rng.uniform(0, np.pi)
    y = np.arange(height, dtype=np.float32)[:, None] * mpp
    x = np.arange(width, dtype=np.float32)[None, :] * mpp
    bend = _waves(height, width, 120 / mpp, rng)
    phase = (np.cos(theta) * x + np.sin(theta) * y) * (2 * np.pi / 9) + 5 * bend
    eosin = (0.42 + 0.09 * np.sin(phase) + 0.05 * _waves(height, width, 12 / mpp, rng)).astype(np.float32)
    hematoxylin = np.full((height, width), 0.07, dtype=np.float32)
    area_um2 = height * width * mpp**2
    spindles = _draw_nuclei(int(area_um2 * 0.004), (4.0, 5.5), (1.4, 2.0), (0.7, 1.1), mpp, rng)
    rounds = _draw_nuclei(int(area_um2 * 0.0012), (2.2, 2.8), (2.0, 2.4), (1.0, 1.4), mpp, rng)
    for nuclei in (spindles, rounds):
        nuclei.centres[:] = rng.uniform(0, 1, nuclei.centres.shape) * (height, width)
    spindles.angle[:] = theta + np.pi / 2 + rng.normal(0, 0.5, len(spindles.angle))
    for nuclei in (spindles, rounds):
        _stamp(hematoxylin, nuclei)
    for _ in range(int(area_um2 * 9e-5)):
        _paint_gland(hematoxylin, eosin, mpp, rng)
    return hematoxylin, np.maximum(eosin, 0.05)


def _paint_gland(hematoxylin: _Plane, eosin: _Plane, mpp: float, rng: np.random.Generator) -> None:
    """A ring of epithelium around a pale lumen."""
    height, width = hematoxylin.shape
    radius = rng.uniform(13, 24) / mpp
    y, x = rng.uniform(0, 1, 2) * (height, width)
    top, left = max(int(y - radius), 0), max(int(x - radius), 0)
    window = (slice(top, int(y + radius) + 2), slice(left, int(x + radius) + 2))
    shape = hematoxylin[window].shape
    distance = np.hypot(np.arange(shape[0])[:, None] + top - y, np.arange(shape[1])[None, :] + left - x) / radius
    epithelium, lumen = distance < 1, distance < 0.42
    hematoxylin[window][epithelium] = 0.22
    eosin[window][epithelium] = 0.36
    hematoxylin[window][lumen] = 0.04
    eosin[window][lumen] = 0.14
    count = int(2 * np.pi * 0.75 * radius * mpp / 6.5)
    angle = (np.arange(count) + rng.uniform(0, 1)) * (2 * np.pi / count)
    ring = _draw_nuclei(count, (3.0, 3.8), (2.0, 2.5), (0.8, 1.1), mpp, rng)
    ring.centres[:] = np.stack([y + 0.75 * radius * np.sin(angle), x + 0.75 * radius * np.cos(angle)], axis=1)
    ring.angle[:] = angle
    _stamp(hematoxylin, ring)


def _paint_foci(
    hematoxylin: _Plane,
    eosin: _Plane,
    foci: NDArray[np.int32],
    step_px0: int,
    mpp: float,
    rng: np.random.Generator,
) -> None:
    """Nests of large dark nuclei on a jittered 5×5 grid, each cut off at the border of its own cell."""
    places = np.stack(np.meshgrid(np.arange(5), np.arange(5), indexing="ij"), axis=-1).reshape(-1, 2)
    axis = (np.arange(step_px0, dtype=np.float32) + 0.5) * (2 / step_px0) - 1
    down, right = axis[:, None], axis[None, :]
    for row, col in foci:
        window = (slice(row * step_px0, (row + 1) * step_px0), slice(col * step_px0, (col + 1) * step_px0))
        # A rounded square with a wavy rim; without the waves it would look like a tile.
        phases = rng.uniform(0, 2 * np.pi, 2)
        rim = 0.97 + 0.06 * np.sin(9 * down + phases[0]) + 0.06 * np.sin(9 * right + phases[1])
        nest = (down**4 + right**4) ** 0.25 < rim
        cell = np.ascontiguousarray(hematoxylin[window])
        cell[nest] = 0.28
        nuclei = _draw_nuclei(len(places), (2.6, 3.5), (2.3, 3.0), (1.2, 1.7), mpp, rng)
        nuclei.centres[:] = (places + 0.5 + rng.uniform(-0.28, 0.28, places.shape)) * (step_px0 / 5)
        _stamp(cell, nuclei)
        hematoxylin[window] = cell
        eosin[window][nest] = 0.36


def _draw_nuclei(
    count: int,
    long_um: tuple[float, float],
    short_um: tuple[float, float],
    density: tuple[float, float],
    mpp: float,
    rng: np.random.Generator,
) -> _Nuclei:
    def uniform(low: float, high: float) -> _Plane:
        return rng.uniform(low, high, count).astype(np.float32)

    return _Nuclei(
        centres=np.zeros((count, 2), dtype=np.float32),
        long=uniform(*long_um) / np.float32(mpp),
        short=uniform(*short_um) / np.float32(mpp),
        angle=uniform(0.0, 2 * np.pi),
        density=uniform(*density),
    )


def _stamp(plane: _Plane, nuclei: _Nuclei) -> None:
    """Raise a plane to each nucleus' density, with a soft rim of about a pixel; what is outside is cut off."""
    if not len(nuclei.long):
        return
    half = int(np.ceil(nuclei.long.max())) + 1
    offsets = np.arange(-half, half + 1)
    corner = np.floor(nuclei.centres).astype(np.int64)
    rows: NDArray[Any] = corner[:, 0, None, None] + offsets[:, None]  # (nuclei, window, 1)
    cols: NDArray[Any] = corner[:, 1, None, None] + offsets[None, :]  # (nuclei, 1, window)
    down = (rows + 0.5 - nuclei.centres[:, 0, None, None]).astype(np.float32)
    right = (cols + 0.5 - nuclei.centres[:, 1, None, None]).astype(np.float32)
    cos, sin = np.cos(nuclei.angle)[:, None, None], np.sin(nuclei.angle)[:, None, None]
    along = (right * cos + down * sin) / nuclei.long[:, None, None]
    across = (down * cos - right * sin) / nuclei.short[:, None, None]
    cover = np.clip((1 - np.hypot(along, across)) * nuclei.short[:, None, None] + 0.5, 0, 1)
    value = cover * nuclei.density[:, None, None]
    height, width = plane.shape
    keep = (value > 0) & (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
    where = (rows * width + cols)[keep]
    np.maximum.at(plane.reshape(-1), where, value[keep])
