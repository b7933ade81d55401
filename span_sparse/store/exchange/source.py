"""What does a feature file of another system say, and what has the user to add?

A reader of a format turns files into a `SourceSlide`: features, top-left corners in level-0 pixels, and what the file
states, each statement with its source. What it does not state comes from the user's `Request` (cohort table and
options). Nothing else fills a gap: `Request.require` names the option that is missing.

Attributes are kept as JSON that gives back the same HDF5 attribute (`encode`, `decode`), and per-patch columns as one
array (`pack_columns`, `unpack_columns`), so that an export to the same format writes the same values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import ExchangeError
from span_sparse.grid import MAX_PLAUSIBLE_MPP, MIN_PLAUSIBLE_MPP
from span_sparse.store.exchange.lattice_step import StepKnowledge

MAX_KEPT_VALUES: Final = 2**18
"""Larger arrays that are no column of the patches are named in the provenance, not kept in it."""

_COLUMN_DTYPES: Final = ("int32", "int64", "float32", "float64")


class Stated(NamedTuple):
    """A value and who says so."""

    value: float
    source: str


class TensorFiles(Protocol):
    """Reads and writes `.pt` files; given by the caller, since this layer does not know torch."""

    def read(self, path: Path) -> NDArray[Any]:
        """The one tensor of a file, without unpickling."""
        ...

    def write(self, path: Path, array: NDArray[Any]) -> None:
        """Write a tensor in one step."""
        ...


@dataclass(frozen=True, slots=True)
class ImportSettings:
    """What the user says about all slides of an import, None where nothing is said.

    Attributes:
        mpp: µm per pixel of level 0, for slides of which neither table nor file says it.
        target_mpp: µm per pixel at which patches were read.
        patch_size_px: edge of a patch at that resolution.
        patch_px0: edge of a patch in level-0 pixels.
        step_px0: distance of neighbouring patches in level-0 pixels.
        encoder_name: name of the encoder.
        encoder_revision: version of its weights.
        encoder_readout: how the vector was read, for example `cls`.
        encoder_input_px: edge of its input.
        features_key: which of several feature sets of a file.
        ratio_class: the class that a file's unnamed annotation ratios belong to.
        size_from_patches: the slide is as large as its patches reach, where nobody states its size.
        transposed: coordinates are (y, x).
        snap: see `Choices`.
        per_contour: see `Choices`.
        drop: see `Choices`.
    """

    mpp: float | None = None
    target_mpp: float | None = None
    patch_size_px: int | None = None
    patch_px0: int | None = None
    step_px0: int | None = None
    encoder_name: str | None = None
    encoder_revision: str | None = None
    encoder_readout: str | None = None
    encoder_input_px: int | None = None
    features_key: str | None = None
    ratio_class: str | None = None
    size_from_patches: bool = False
    transposed: bool = False
    snap: bool = False
    per_contour: bool = False
    drop: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for provenance."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Request:
    """What is known of one slide besides its files.

    Attributes:
        slide_id: its id.
        case_id: its patient, None when unknown.
        mpp: µm per pixel from the cohort table.
        width_px0: width from the cohort table.
        height_px0: height from the cohort table.
        settings: what holds for all slides.
    """

    slide_id: str
    case_id: str | None = None
    mpp: float | None = None
    width_px0: int | None = None
    height_px0: int | None = None
    settings: ImportSettings = field(default_factory=ImportSettings)

    def slide_mpp(self, stated: Stated | None = None) -> Stated:
        """µm per pixel of level 0: of the cohort table, the file, or the option, in this order.

        Raises:
            ExchangeError: nobody says it, or the first who does says something implausible.
        """
        option = self.settings.mpp
        found = (
            Stated(self.mpp, "cohort")
            if self.mpp is not None
            else stated
            if stated is not None
            else None
            if option is None
            else Stated(option, "option --mpp")
        )
        if found is None:
            raise ExchangeError(
                "the µm per pixel of the slide are not in the file; put them into the column `mpp` of the cohort "
                "table, or pass --mpp for all slides"
            )
        if not MIN_PLAUSIBLE_MPP <= found.value <= MAX_PLAUSIBLE_MPP:
            raise ExchangeError(
                f"{found.value:.4g} µm/px (from {found.source}) is implausible, expected {MIN_PLAUSIBLE_MPP:g} to "
                f"{MAX_PLAUSIBLE_MPP:g}; put the right value into the column `mpp` of the cohort table"
            )
        return found

    def choose(self, option: str, stated: Stated | None, what: str) -> Stated:
        """A setting: the user's option, else the file's statement.

        Args:
            option: name of the setting, as in `ImportSettings`.
            stated: what the file says.
            what: the quantity in words, for the message.

        Raises:
            ExchangeError: nobody says it, or it is not positive.
        """
        given = getattr(self.settings, option)
        found = Stated(given, f"option {option_name(option)}") if given is not None else stated
        if found is None:
            raise ExchangeError(f"{what} is not in the file; pass {option_name(option)}")
        if not 0 < found.value < math.inf:
            raise ExchangeError(f"{what} must be positive, found {found.value} (from {found.source})")
        return found


def option_name(setting: str) -> str:
    """The command-line option of a setting.

    >>> option_name("patch_size_px"), option_name("encoder_input_px"), option_name("patch_px0")
    ('--patch-size', '--encoder-input', '--patch-px0')
    """
    return "--" + {"step_px0": "step"}.get(setting, setting.removesuffix("_px")).replace("_", "-")


@dataclass(frozen=True, slots=True, eq=False)
class SourceSlide:
    """One slide as its files describe it.

    Attributes:
        features: `[patches, channels]` in the files' dtype.
        coords_px0: `[patches, 2]`, top-left corners `(x, y)` in level-0 pixels.
        columns: the files' own per-patch arrays by name, `[patches]` or `[patches, axes]`, coordinates first.
        step: what is known of the distance of neighbouring patches.
        mpp: µm per pixel of level 0, and who says so.
        target_mpp: µm per pixel of the patches.
        patch_size_px: edge of a patch at that resolution.
        patch_px0: edge of a patch in level-0 pixels; None: as large as the step.
        size_px0: width and height of the slide, and who says so.
        encoder_name: as the file calls it.
        ratios: `[patches]`, share covered by annotations.
        attributes: everything else the files say, JSON by place.
        not_kept: parts of the files that the store has no place for.
    """

    features: NDArray[Any]
    coords_px0: NDArray[Any]
    columns: Mapping[str, NDArray[Any]]
    mpp: Stated
    step: StepKnowledge = field(default_factory=StepKnowledge)
    target_mpp: Stated | None = None
    patch_size_px: Stated | None = None
    patch_px0: Stated | None = None
    size_px0: tuple[int, int, str] | None = None
    encoder_name: str | None = None
    ratios: NDArray[Any] | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    not_kept: tuple[str, ...] = ()


def encode(value: Any) -> dict[str, Any]:
    """A text, number or array as JSON from which `decode` makes the same value again.

    Raises:
        ExchangeError: a value of another kind, or a very large one.
    """
    if isinstance(value, str):
        return {"text": _text(value)}
    array = np.asarray(value)
    if array.size > MAX_KEPT_VALUES or array.dtype.kind not in "biufSUO":
        raise ExchangeError(f"{array.dtype} {list(array.shape)} cannot be kept as an attribute")
    if array.dtype.kind == "O":
        texts = [_text(item) for item in array.ravel().tolist()]
        return {"dtype": "text", "shape": list(array.shape), "values": texts}
    if array.dtype.kind == "S":
        values: list[Any] = [item.hex() for item in array.ravel().tolist()]
    elif array.dtype.kind == "f":
        values = [item if math.isfinite(item) else str(item) for item in array.ravel().tolist()]
    else:
        values = array.ravel().tolist()
    return {"dtype": array.dtype.str, "shape": list(array.shape), "values": values}


def decode(encoded: Mapping[str, Any]) -> Any:
    """The value that `encode` was given: a text, a NumPy scalar or an array.

    >>> decode(encode(np.float32(0.1))), decode(encode("None")), decode(encode(np.array([1, 2], np.int16)))
    (0.1, 'None', array([1, 2], dtype=int16))
    """
    if "text" in encoded:
        return encoded["text"]
    shape, values = tuple(encoded["shape"]), encoded["values"]
    if encoded["dtype"] == "text":
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array.reshape(shape)
    dtype = np.dtype(encoded["dtype"])
    if dtype.kind == "S":
        values = [bytes.fromhex(item) for item in values]
    elif dtype.kind == "f":
        values = [float(item) for item in values]
    return np.array(values, dtype=dtype).reshape(shape)[()]


def _text(item: Any) -> str:
    try:
        text = item.decode() if isinstance(item, bytes) else item
        text.encode()
    except (UnicodeError, AttributeError) as error:
        raise ExchangeError(f"an attribute of type {type(item).__name__} that is not text cannot be kept") from error
    return text


def pack_columns(columns: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], list[dict[str, Any]]]:
    """All per-patch columns as one array of a dtype that holds each of them exactly, and how to take it apart.

    Raises:
        ExchangeError: no dtype holds them all.
    """
    layout = [
        {"name": name, "dtype": column.dtype.name, "axes": None if column.ndim == 1 else column.shape[1]}
        for name, column in columns.items()
    ]
    parts = [column.reshape(len(column), -1) for column in columns.values()]
    names = {column.dtype.name for column in parts}
    dtype = names.pop() if len(names) == 1 else "float64"
    if dtype not in _COLUMN_DTYPES:
        dtype = "int64" if np.dtype(dtype).kind in "biu" else "float64"
    packed = np.concatenate([part.astype(dtype) for part in parts], axis=1)
    if any(
        not np.array_equal(unpacked, column, equal_nan=column.dtype.kind == "f")
        for unpacked, column in zip(unpack_columns(packed, layout).values(), columns.values(), strict=True)
    ):
        raise ExchangeError(f"the columns {', '.join(columns)} hold numbers that no common dtype keeps exactly")
    return packed, layout


def unpack_columns(packed: NDArray[Any], layout: list[dict[str, Any]]) -> dict[str, NDArray[Any]]:
    """The columns that `pack_columns` was given."""
    columns: dict[str, NDArray[Any]] = {}
    start = 0
    for entry in layout:
        width = entry["axes"] or 1
        part = packed[:, start : start + width].astype(entry["dtype"])
        columns[entry["name"]] = part[:, 0] if entry["axes"] is None else part
        start += width
    return columns
