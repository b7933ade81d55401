"""Which numbers describe the stain and the texture of a patch, when no network may be downloaded?

128 numbers a patch, in five families, computed from optical densities:

1. stain: hematoxylin and eosin by colour deconvolution; moments, percentiles, histograms;
2. colour: moments of the RGB channels, of saturation and of the total optical density, correlations;
3. gradient: magnitude and orientation coherence of both stains at two scales;
4. pattern: local binary patterns of brightness and hematoxylin;
5. nuclei: area, depth and number of dark blobs, coarse heterogeneity.

Every number is invariant to the eight symmetries of the square, because tissue has no upright position, and is brought
to a range of about ±1 by constants of this file, never by statistics of a cohort: a slide's features must not depend on
the other slides.

The naive way, a matrix product and floating-point interpolation over the whole batch, gives a patch a slightly
different vector in another batch: BLAS picks another kernel for another size. Here every step is an element-wise
operation, a count of integers, or a sum over one patch, so the vector is the same to the last bit whatever its mates.
For the same reason the binary patterns are taken on the square 3×3 ring, with comparisons only, instead of
scikit-image's interpolated circle, whose rounding makes the code of a flat region arbitrary.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from skimage.color import hed_from_rgb

from span_sparse.extract.encoder import check_patches
from span_sparse.types import EncoderIdentity

DIMENSION: Final = 128
"""Length of the descriptor."""

_PIXELS_PER_CHUNK: Final = 2**17
_EPSILON: Final = np.float32(1e-6)
_FINE_BINS: Final = 240
_PERCENTILES: Final = (5, 25, 50, 75, 95)
_RING: Final = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))

_OPTICAL_DENSITY: Final = -np.log(np.maximum(np.arange(256), 1) / 255.0).astype(np.float32)
"""Natural optical density of a channel value; 0 counts as 1, so black is finite."""

_UNMIX: Final = np.asarray(hed_from_rgb, dtype=np.float32)
"""`stain_j = Σ_i od_i · _UNMIX[i, j]`: the inverse of Ruifrok and Johnston's (2001) matrix, as scikit-image has it."""

_NORMALISATION: Final = (
    ("stain/hematoxylin/bin0", 0.5, 4.0),
    ("stain/hematoxylin/bin*", 0.2, 8.0),
    ("stain/hematoxylin/skew", 0.3, 5.0),
    ("stain/hematoxylin/*", 0.5, 2.5),
    ("stain/eosin/bin*", 0.3, 6.0),
    ("stain/eosin/skew", 0.2, 5.0),
    ("stain/eosin/*", 0.3, 6.0),
    ("stain/residual/*", 0.4, 6.0),
    ("colour/*/mean", 0.6, 5.0),
    ("colour/*/std", 0.2, 8.0),
    ("colour/*-eosin/correlation", 0.2, 4.0),
    ("colour/*/correlation", 0.9, 8.0),
    ("colour/white", 0.1, 4.0),
    ("colour/black", 0.1, 4.0),
    ("gradient/*/coherence?", 0.2, 6.0),
    ("gradient/*/local", 0.5, 8.0),
    ("gradient/hematoxylin*", 0.3, 6.0),
    ("gradient/eosin*", 0.15, 12.0),
    ("pattern/*/class8", 0.3, 6.0),
    ("pattern/*", 0.3, 12.0),
    ("nuclei/area*", 0.3, 3.0),
    ("nuclei/depth", 1.2, 2.5),
    ("nuclei/*/peaks*", 0.04, 30.0),
    ("nuclei/lag*", 0.4, 5.0),
    ("coarse/hematoxylin/std", 0.3, 6.0),
    ("coarse/hematoxylin/*", 0.5, 2.5),
    ("coarse/eosin/std", 0.1, 15.0),
    ("coarse/eosin/*", 0.3, 6.0),
)
"""`(name pattern, offset, gain)`, the first that matches: H&E tissue then has a mean near 0 and a spread near 1."""

_Planes = NDArray[np.float32]
_Columns = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class StainTextureEncoder:
    """The embedded encoder: no weights, no downloads, 128 numbers a patch.

    Attributes:
        input_size_px: edge of a patch in pixels; a multiple of 8, at least 16.
        mpp: micrometres per pixel of the patches. It is recorded, not used: what a pixel means to the descriptor
            changes with the resolution, so features of two resolutions must not be mixed.

    Raises:
        ValueError: a size that is not a multiple of 8 or is below 16, or a resolution that is not positive.

    >>> encode = StainTextureEncoder(input_size_px=32, mpp=1.0)
    >>> encode(np.full((3, 32, 32, 3), 255, np.uint8)).shape
    (3, 128)
    """

    input_size_px: int = 224
    mpp: float = 0.5

    def __post_init__(self) -> None:
        if self.input_size_px < 16 or self.input_size_px % 8:
            raise ValueError(
                f"the stain-texture descriptor needs patches whose edge is a multiple of 8 px, at least 16 px, "
                f"got {self.input_size_px} px"
            )
        if not 0 < self.mpp < float("inf"):
            raise ValueError(f"the resolution must be positive micrometres per pixel, got {self.mpp}")

    @property
    def identity(self) -> EncoderIdentity:
        """Name `stain-texture`, readout `descriptor`; the revision counts changes of the numbers."""
        return EncoderIdentity(
            name="stain-texture",
            revision="1",
            readout="descriptor",
            dimension=DIMENSION,
            input_size_px=self.input_size_px,
            mpp=self.mpp,
            precision="float32",
        )

    def __call__(self, patches: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """Describe patches.

        Args:
            patches: uint8 RGB `[batch, input_size_px, input_size_px, 3]`; `batch` may be 0.

        Returns:
            float32 `[batch, 128]` in the order of `feature_names()`, finite, each number within ±10.

        Raises:
            ValueError: another shape or dtype.
        """
        check_patches(patches, self.input_size_px)
        output = np.empty((len(patches), DIMENSION), dtype=np.float32)
        # Planes of a chunk stay in the processor's cache; the values do not depend on the chunk.
        chunk = max(1, _PIXELS_PER_CHUNK // self.input_size_px**2)
        offsets, gains = _offsets_and_gains()
        for start in range(0, len(patches), chunk):
            columns = describe(patches[start : start + chunk])
            natural = np.stack(list(columns.values()), axis=1)
            output[start : start + chunk] = np.clip((natural - offsets) * gains, -10, 10)
        return output


@cache
def feature_names() -> tuple[str, ...]:
    """Names of the 128 numbers, in order, as `family/plane/statistic`."""
    return tuple(describe(np.zeros((1, 16, 16, 3), dtype=np.uint8)))


def describe(patches: NDArray[np.uint8]) -> _Columns:
    """The 128 numbers in their natural units, before the constants of this file bring them to about ±1.

    Args:
        patches: uint8 RGB `[batch, edge, edge, 3]`, edge a multiple of 8.

    Returns:
        One float32 array `[batch]` a number, by name.
    """
    channels = [np.ascontiguousarray(patches[..., index]) for index in range(3)]
    densities = [_OPTICAL_DENSITY[channel] for channel in channels]
    hematoxylin, eosin, residual = (_unmix(densities, stain) for stain in range(3))
    hematoxylin_half, eosin_half = _halve(hematoxylin), _halve(eosin)
    total = (densities[0] + densities[1] + densities[2]) / np.float32(3)
    # Brightness as an integer: ties of the binary patterns are then exact.
    brightness = channels[0].astype(np.int16) + channels[1] + channels[2]
    columns: _Columns = {}
    columns |= _stain("hematoxylin", hematoxylin, upper=2.4, num_bins=12)
    columns |= _stain("eosin", eosin, upper=1.2, num_bins=8)
    columns |= _moments("stain/residual", residual)
    columns |= _colour(channels, total)
    columns["colour/hematoxylin-eosin/correlation"] = _correlation(hematoxylin, eosin)
    columns |= _gradient("hematoxylin", hematoxylin, upper=1.2)
    columns |= _gradient("hematoxylin-half", hematoxylin_half, upper=1.2)
    columns |= _gradient("eosin", eosin, upper=0.6)
    columns |= _gradient("eosin-half", eosin_half, upper=0.6)
    columns |= _pattern("brightness", brightness)
    columns |= _pattern("brightness-half", _sum_of_four(brightness))
    columns |= _pattern("hematoxylin-half", hematoxylin_half)
    columns |= _nuclei(hematoxylin, hematoxylin_half)
    columns |= _coarse("hematoxylin", hematoxylin)
    columns |= _coarse("eosin", eosin)
    columns |= _extremes(channels)
    assert len(columns) == DIMENSION, len(columns)
    return columns


@cache
def _offsets_and_gains() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rows = [next(rule[1:] for rule in _NORMALISATION if fnmatchcase(name, rule[0])) for name in feature_names()]
    table = np.asarray(rows, dtype=np.float32)
    return table[:, 0], table[:, 1]


def _unmix(densities: list[_Planes], stain: int) -> _Planes:
    red, green, blue = (density * _UNMIX[index, stain] for index, density in enumerate(densities))
    return np.maximum(red + green + blue, np.float32(0))


def _sum_of_four(planes: NDArray[Any]) -> NDArray[Any]:
    return (planes[:, 0::2, 0::2] + planes[:, 1::2, 1::2]) + (planes[:, 0::2, 1::2] + planes[:, 1::2, 0::2])


def _halve(planes: _Planes) -> _Planes:
    return _sum_of_four(planes) * np.float32(0.25)


def _mean(planes: NDArray[Any]) -> NDArray[np.float32]:
    """Mean of each patch, summed over contiguous memory of one patch only: independent of its batch mates."""
    flat = np.ascontiguousarray(planes, dtype=np.float32).reshape(len(planes), -1)
    return flat.sum(axis=1) * np.float32(1 / max(flat.shape[1], 1))


def _centred(planes: NDArray[Any]) -> tuple[NDArray[np.float32], _Planes]:
    # The first pixel is subtracted first, so that a constant patch has a variance of exactly zero.
    first = planes[:, :1, :1].astype(np.float32)
    shifted = planes - first
    mean = _mean(shifted)
    return mean + first[:, 0, 0], shifted - mean[:, None, None]


def _moments(prefix: str, planes: NDArray[Any]) -> _Columns:
    mean, centred = _centred(planes)
    return {f"{prefix}/mean": mean, f"{prefix}/std": np.sqrt(_mean(centred * centred))}


def _correlation(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float32]:
    """Pearson's correlation in [-1, 1]; 0 where one of the two is constant."""
    (_, a), (_, b) = _centred(first), _centred(second)
    spread = np.sqrt(_mean(a * a) * _mean(b * b))
    return np.clip(_mean(a * b) / (spread + _EPSILON), -1, 1)


def _fine_counts(planes: _Planes, upper: float) -> NDArray[np.int64]:
    """Counts `[batch, _FINE_BINS]` of values in equal bins of `[0, upper)`; what is beyond falls into the last."""
    flat = planes.reshape(len(planes), -1)
    bins = np.minimum(flat * np.float32(_FINE_BINS / upper), np.float32(_FINE_BINS - 1)).astype(np.intp)
    bins += np.arange(len(flat), dtype=np.intp)[:, None] * _FINE_BINS
    return np.bincount(bins.ravel(), minlength=len(flat) * _FINE_BINS).reshape(len(flat), _FINE_BINS)


def _percentile(cumulative: NDArray[np.int64], percent: int, upper: float) -> NDArray[np.float32]:
    """Centre of the fine bin that holds the percentile."""
    below = (100 * cumulative < percent * cumulative[:, -1:]).sum(axis=1)
    return ((below + 0.5) * (upper / _FINE_BINS)).astype(np.float32)


def _stain(name: str, planes: _Planes, upper: float, num_bins: int) -> _Columns:
    columns = _moments(f"stain/{name}", planes)
    counts = _fine_counts(planes, upper)
    cumulative = np.cumsum(counts, axis=1)
    for percent in _PERCENTILES:
        columns[f"stain/{name}/p{percent}"] = _percentile(cumulative, percent, upper)
    median = columns[f"stain/{name}/p50"]
    spread = columns[f"stain/{name}/std"] + np.float32(upper / _FINE_BINS)
    columns[f"stain/{name}/skew"] = (columns[f"stain/{name}/mean"] - median) / spread
    shares = counts.reshape(len(planes), num_bins, -1).sum(axis=2) / planes[0].size
    for index in range(num_bins):
        # The square root evens out the variance of shares (Hellinger).
        columns[f"stain/{name}/bin{index}"] = np.sqrt(shares[:, index]).astype(np.float32)
    return columns


def _colour(channels: list[NDArray[np.uint8]], total: _Planes) -> _Columns:
    columns: _Columns = {}
    unit = [channel * np.float32(1 / 255) for channel in channels]
    for name, plane in zip(("red", "green", "blue"), unit, strict=True):
        columns |= _moments(f"colour/{name}", plane)
    largest = np.maximum(np.maximum(unit[0], unit[1]), unit[2])
    smallest = np.minimum(np.minimum(unit[0], unit[1]), unit[2])
    columns |= _moments("colour/chroma", largest - smallest)
    columns |= _moments("colour/density", total)
    columns["colour/red-green/correlation"] = _correlation(unit[0], unit[1])
    columns["colour/green-blue/correlation"] = _correlation(unit[1], unit[2])
    columns["colour/red-blue/correlation"] = _correlation(unit[0], unit[2])
    return columns


def _gradient(name: str, planes: _Planes, upper: float) -> _Columns:
    """Magnitude and orientation of central differences; orientations as doubled and quadrupled angles.

    Coherence is 1 where all gradients have one orientation, 0 where they have all; `local` takes it in blocks of 4×4.
    """
    batch, edge, _ = planes.shape
    across = (planes[:, 1:-1, 2:] - planes[:, 1:-1, :-2]) * np.float32(0.5)
    down = (planes[:, 2:, 1:-1] - planes[:, :-2, 1:-1]) * np.float32(0.5)
    power = across * across + down * down
    double_cos, double_sin = across * across - down * down, np.float32(2) * across * down
    magnitude = np.sqrt(power)
    columns = _moments(f"gradient/{name}", magnitude)
    cumulative = np.cumsum(_fine_counts(magnitude, upper), axis=1)
    for percent in (50, 90):
        columns[f"gradient/{name}/p{percent}"] = _percentile(cumulative, percent, upper)
    floor = np.float32(1e-4)  # about (0.01 optical densities)²: noise below a grey value has no orientation
    mean_power = _mean(power) + floor
    columns[f"gradient/{name}/coherence2"] = np.hypot(_mean(double_cos), _mean(double_sin)) / mean_power
    quad_cos = (double_cos * double_cos - double_sin * double_sin) / (power + _EPSILON)
    quad_sin = np.float32(2) * double_cos * double_sin / (power + _EPSILON)
    columns[f"gradient/{name}/coherence4"] = np.hypot(_mean(quad_cos), _mean(quad_sin)) / mean_power
    blocks = []
    for plane in (double_cos, double_sin):
        framed = np.zeros((batch, edge, edge), dtype=np.float32)
        framed[:, 1:-1, 1:-1] = plane
        blocks.append(_halve(_halve(framed)))
    share = np.float32((edge - 2) ** 2 / edge**2)
    columns[f"gradient/{name}/local"] = _mean(np.hypot(*blocks)) / (mean_power * share)
    return columns


@cache
def _pattern_classes() -> NDArray[np.uint8]:
    """Class 0–9 of each of the 256 ring codes: the number of set bits if at most two transitions, else 9."""
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    transitions = (bits != np.roll(bits, 1, axis=1)).sum(axis=1)
    return np.where(transitions <= 2, bits.sum(axis=1), 9).astype(np.uint8)


def _pattern(name: str, planes: NDArray[Any]) -> _Columns:
    """Rotation-invariant uniform local binary patterns (Ojala et al. 2002) on the 3×3 ring: shares of 10 classes."""
    batch, edge, _ = planes.shape
    centre = planes[:, 1:-1, 1:-1]
    code = np.zeros(centre.shape, dtype=np.uint8)
    for bit, (down, right) in enumerate(_RING):
        neighbour = planes[:, 1 + down : edge - 1 + down, 1 + right : edge - 1 + right]
        code |= (neighbour >= centre).view(np.uint8) << np.uint8(bit)
    classes = _pattern_classes()[code].reshape(batch, -1).astype(np.intp)
    classes += np.arange(batch, dtype=np.intp)[:, None] * 10
    counts = np.bincount(classes.ravel(), minlength=batch * 10).reshape(batch, 10)
    shares = np.sqrt(counts / classes.shape[1]).astype(np.float32)
    return {f"pattern/{name}/class{index}": shares[:, index] for index in range(10)}


def _nuclei(planes: _Planes, half: _Planes) -> _Columns:
    columns: _Columns = {}
    for threshold in (0.3, 0.6, 0.9):
        columns[f"nuclei/area{threshold}"] = _mean(planes > np.float32(threshold))
    dark = planes > np.float32(0.6)
    columns["nuclei/depth"] = _mean(np.where(dark, planes, 0)) / (columns["nuclei/area0.6"] + _EPSILON)
    for scale, plane in (("half", half), ("quarter", _halve(half))):
        edge = plane.shape[1]
        centre = plane[:, 1:-1, 1:-1]
        highest = np.ones(centre.shape, dtype=bool)
        for down, right in _RING:
            highest &= centre > plane[:, 1 + down : edge - 1 + down, 1 + right : edge - 1 + right]
        for threshold in (0.3, 0.6):
            columns[f"nuclei/{scale}/peaks{threshold}"] = _mean(highest & (centre > np.float32(threshold)))
    for lag in (2, 4):
        down = _correlation(planes[:, lag:], planes[:, :-lag])
        right = _correlation(planes[:, :, lag:], planes[:, :, :-lag])
        columns[f"nuclei/lag{lag}"] = (down + right) * np.float32(0.5)
    return columns


def _coarse(name: str, planes: _Planes) -> _Columns:
    """Spread of the means of 4×4 blocks that cover the patch: is it one tissue or a border between two?"""
    batch, edge, _ = planes.shape
    block = edge // 4
    tiles = planes.reshape(batch, 4, block, 4, block).transpose(0, 1, 3, 2, 4).reshape(batch * 16, block, block)
    means = _mean(tiles).reshape(batch, 4, 4)
    columns = {f"coarse/{name}/std": _moments("", means)["/std"]}
    columns[f"coarse/{name}/low"] = means.min(axis=(1, 2))
    columns[f"coarse/{name}/high"] = means.max(axis=(1, 2))
    return columns


def _extremes(channels: list[NDArray[np.uint8]]) -> _Columns:
    smallest = np.minimum(np.minimum(channels[0], channels[1]), channels[2])
    largest = np.maximum(np.maximum(channels[0], channels[1]), channels[2])
    return {"colour/white": _mean(smallest >= 220), "colour/black": _mean(largest <= 60)}
