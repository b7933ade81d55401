"""What is a format of another system to the rest of this package, and what do all of them need?

A `Format` finds slides in a folder, recognises itself there, reads a slide and writes one. Each lives in a module of
its own; `formats.py` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import ExchangeError, StoreError
from span_sparse.store.exchange.hdf5 import members, open_hdf5
from span_sparse.store.exchange.source import Request, SourceSlide, TensorFiles, decode, unpack_columns
from span_sparse.store.schema import SlideRecord
from span_sparse.store.shard import read_json

IMPORTED: Final = "imported"
"""Key of a slide's provenance under which its source is described."""

Files: TypeAlias = tuple[Path, ...]
"""The files of a slide, features first."""


@dataclass(frozen=True, slots=True, eq=False)
class ExportSlide:
    """A slide on its way out, rows in the order of the file it was imported from, if it was.

    Attributes:
        record: the slide, in that order.
        columns: the source's own per-patch arrays, when it goes back to the format it came from; else empty.
        attributes: the source's attributes likewise, as `encode` made them, by place.
        dropped_from: rows the source had, when some were left out; else 0.
    """

    record: SlideRecord
    columns: Mapping[str, NDArray[Any]]
    attributes: Mapping[str, Any]
    dropped_from: int = 0

    @property
    def patch_px0(self) -> int:
        """Edge of a patch in level-0 pixels."""
        return self.record.lattice.patch_px0

    def decoded(self, place: str) -> dict[str, Any]:
        """The source's attributes of a place, empty when there are none; per-patch ones without the rows left out."""
        values = {name: decode(value) for name, value in self.attributes.get(place, {}).items()}
        rows = self.record.source_rows
        if place != "extras" or not self.dropped_from or rows is None:
            return values
        return {
            name: value[rows[:, 0]] if np.ndim(value) and len(value) == self.dropped_from else value
            for name, value in values.items()
        }

    def features(self, dtype: type[np.floating[Any]] | None = None) -> NDArray[Any]:
        """The features; of another format that knows one dtype only, widened to it, which loses nothing."""
        features = self.record.features
        if dtype is None or self.columns or features.dtype.itemsize >= np.dtype(dtype).itemsize:
            return features
        return features.astype(dtype)

    def coords(self, dtype: str = "int64") -> NDArray[Any]:
        """The source's coordinates, or top-left corners in level-0 pixels.

        Raises:
            ExchangeError: a coordinate does not fit into the format's dtype.
        """
        if "coords" in self.columns:
            return self.columns["coords"]
        coords = self.record.coords
        if coords.max() > np.iinfo(dtype).max:
            raise ExchangeError(f"coordinates up to {coords.max()} do not fit into {dtype}")
        return coords.astype(dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Format:
    """One format.

    Attributes:
        name: what people type.
        description: one line: files and content.
        find: slides in a folder and their files.
        evidence: what in a folder speaks for the format, None if nothing does.
        read: a slide from its files.
        outputs: names of the files that `write` makes for a slide id, relative to the folder.
        write: a slide to a folder; every file appears in one step.
    """

    name: str
    description: str
    find: Callable[[Path], dict[str, Files]]
    evidence: Callable[[Path], str | None]
    read: Callable[[Files, Request, TensorFiles], SourceSlide]
    outputs: Callable[[str], tuple[str, ...]]
    write: Callable[[ExportSlide, Path, TensorFiles], None]


def export_slide(record: SlideRecord, format_name: str) -> ExportSlide:
    """A record with its rows in the source's order, and the source's own values if it goes back to its format."""
    order = np.arange(len(record.features))
    if record.source_rows is not None:
        order = np.argsort(record.source_rows[:, 0], kind="stable")
    imported = record.provenance.get(IMPORTED, {})
    columns: Mapping[str, NDArray[Any]] = {}
    attributes: Mapping[str, Any] = {}
    if imported.get("format") == format_name and record.source_coords is not None:
        columns = unpack_columns(record.source_coords[order], imported["columns"])
        attributes = imported["attributes"]
    num_rows = imported.get("num_source_rows", 0)
    return ExportSlide(
        _reordered(record, order), columns, attributes, num_rows if num_rows != len(record.features) else 0
    )


def _reordered(record: SlideRecord, order: NDArray[np.intp]) -> SlideRecord:
    return SlideRecord(
        slide_id=record.slide_id,
        case_id=record.case_id,
        features=record.features[order],
        grid=record.grid[order],
        coords=record.coords[order],
        lattice=record.lattice,
        mpp_source=record.mpp_source,
        encoder=record.encoder,
        slide_checksum=record.slide_checksum,
        width_px0=record.width_px0,
        height_px0=record.height_px0,
        provenance=record.provenance,
        ratios=None if record.ratios is None else record.ratios[order],
        ratio_classes=record.ratio_classes,
        source_rows=None if record.source_rows is None else record.source_rows[order],
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object of a file.

    Raises:
        ExchangeError: it is missing, too large, or something else.
    """
    try:
        document = read_json(path)
    except StoreError as error:
        raise ExchangeError(f"{path} cannot be read as JSON") from error
    if not isinstance(document, dict):
        raise ExchangeError(f"{path} holds a JSON {type(document).__name__}, expected an object")
    return document


def list_files(folder: Path, suffix: str, pattern: str = "**/*") -> dict[str, Path]:
    """Regular files below a folder by their path without the suffix, `/` between folders; hidden ones left out."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob(f"{pattern}{suffix}")):
        inside = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in inside.parts):
            found[inside.as_posix().removesuffix(suffix)] = path
    return found


def one_folder(folder: Path, pattern: str, *, what: str) -> Path | None:
    """The one folder below `folder`, or itself, whose name matches; None when there is none.

    Raises:
        ExchangeError: there are several.
    """
    found = [folder] if folder.match(pattern) else sorted(path for path in folder.rglob(pattern) if path.is_dir())
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found[:6])
        raise ExchangeError(f"{folder} holds several folders of {what}: {names}; name the one to import")
    return found[0] if found else None


def peek(folder: Path, pattern: str = "**/*") -> tuple[Path, dict[str, set[str]]] | None:
    """The first readable HDF5 file below a folder: its members with their attributes' names, `/` for its own."""
    for path in list(list_files(folder, ".h5", pattern).values())[:3]:
        try:
            with open_hdf5(path) as file:
                found = {name: set(node.attrs) for name, node in members(file).items()}
                groups = {f"{name}/" for name, node in members(file).items() if isinstance(node, h5py.Group)}
                return path, found | {name: set() for name in groups} | {"/": set(file.attrs)}
        except ExchangeError:
            continue
    return None


def check_features(features: NDArray[Any]) -> NDArray[Any]:
    """Features `[patches, channels]` as the store takes them.

    Raises:
        ExchangeError: another dtype or shape.
    """
    if features.ndim and features.shape[0] == 0:
        raise ExchangeError("no patches: the file has no features; a slide without tissue is a failure")
    if features.ndim != 2 or features.shape[1] == 0:
        raise ExchangeError(
            f"features are {list(features.shape)}, expected [patches, channels]; vectors of whole slides are not "
            "imported, only those of patches"
        )
    if features.dtype.name not in ("float16", "float32"):
        raise ExchangeError(
            f"features are {features.dtype}, expected float16 or float32; they are never cast silently: convert the "
            "file, for example with `features.astype('float32')`"
        )
    return features


def check_rows(features: NDArray[Any], columns: Mapping[str, NDArray[Any]]) -> None:
    """Features and columns must have one row per patch.

    Raises:
        ExchangeError: they differ.
    """
    for name, column in columns.items():
        if column.ndim not in (1, 2) or len(column) != len(features):
            raise ExchangeError(
                f"{name!r} is {list(column.shape)}, but there are {len(features)} rows of features; one row per patch "
                "is expected: the files belong to different runs, or the array is transposed"
            )


def check_xy(coords: NDArray[Any], name: str = "coords") -> NDArray[Any]:
    """The columns x and y of a coordinate array.

    Raises:
        ExchangeError: it has not at least two columns.
    """
    if coords.ndim != 2 or coords.shape[1] < 2:
        raise ExchangeError(f"{name!r} is {list(coords.shape)}, expected [patches, 2]")
    return coords[:, :2]


def nominal_magnification(mpp: float) -> int:
    """What systems that think in magnifications call a resolution: 10 / mpp, to the nearest whole number."""
    return max(1, round(10 / mpp))
