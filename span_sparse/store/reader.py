"""Which slides are in the store, and what does it hold for one of them?

Everything read here may come from someone else: names are decoded and compared with the id inside, links that lead out
of the store are refused, metadata are checked before an array is allocated, and nothing is ever unpickled. A slide is
there when its group says `complete: true`; half-written ones live under another name and are ignored.

Checksums are compared the first time an open store reads a slide and not again until its files change: they would
double the price of every epoch.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import StoreError
from span_sparse.grid import LatticeSpec
from span_sparse.store.checks import validate_arrays, validate_optional_arrays
from span_sparse.store.naming import TEMPORARY_PREFIX, group_name, slide_id_of
from span_sparse.store.schema import (
    ARRAY_COORDS,
    ARRAY_FEATURES,
    ARRAY_GRID,
    ARRAY_RATIOS,
    ARRAYS,
    KEY_COMPLETE,
    OPTIONAL_ARRAYS,
    SlideMetadata,
    SlideRecord,
    parse_attributes,
    raise_problems,
    validate_format,
)
from span_sparse.store.shard import METADATA_FILE, SHARD_FILE, array_checksum, read_array, read_json
from span_sparse.store.writer import create_root, remove_leftovers, write_slide
from span_sparse.types import EncoderIdentity

_Generation = tuple[int, int, int]


class FeatureStore:
    """A folder of slides' features, format version 1 or 2 (see FORMAT.md).

    Attributes:
        path: the store's folder.

    Raises:
        StoreError: the folder is missing, is not a store, or has an unknown format version.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._resolved = self.path.resolve()
        self._verified: dict[str, _Generation] = {}
        _check_root(self.path)

    @classmethod
    def create(cls, path: Path) -> FeatureStore:
        """Make an empty store, or open the one that is there; safe when several processes do it at once.

        Raises:
            StoreError: the folder holds something that is not a store, or cannot be written.
        """
        create_root(Path(path))
        return cls(path)

    @property
    def slide_ids(self) -> tuple[str, ...]:
        """Ids of the complete slides, sorted; read from the folder each time."""
        names = (entry.name for entry in self.path.iterdir() if not entry.name.startswith(("_", "zarr.json")))
        return tuple(sorted(slide_id for name in names if (slide_id := self._complete_id(name)) is not None))

    def has(self, slide_id: str) -> bool:
        """Whether the slide is in the store, complete."""
        return self._complete_id(group_name(slide_id)) is not None

    def metadata(self, slide_id: str) -> SlideMetadata:
        """Everything about a slide but its arrays.

        Raises:
            StoreError: the slide is not in the store, not complete, or its attributes are not valid.
        """
        group = self.path / group_name(slide_id)
        where = f"slide {slide_id!r} in {self.path}"
        if not group.exists():
            raise StoreError(f"{where} does not exist; run `span extract` for it, or take it out of the cohort table")
        self._check_inside(group / METADATA_FILE)
        if not (group / METADATA_FILE).exists():
            raise StoreError(f"{where} is not complete: {METADATA_FILE} is missing; extract it again")
        document = read_json(group / METADATA_FILE)
        is_group = isinstance(document, dict) and (document.get("zarr_format"), document.get("node_type")) == (
            3,
            "group",
        )
        if not is_group:
            raise StoreError(f"{where}: {METADATA_FILE} is not a Zarr v3 group; the store is damaged")
        metadata = parse_attributes(document.get("attributes"), where)
        if metadata.slide_id != slide_id:
            raise StoreError(f"{where} says it is slide {metadata.slide_id!r}; a folder of the store was renamed")
        return metadata

    def read(self, slide_id: str) -> SlideRecord:
        """A slide with its arrays, rows sorted by (row, col).

        Raises:
            StoreError: the slide is missing, not complete, truncated or corrupt.
        """
        for _ in range(5):
            before = self._generation(slide_id)
            try:
                record = self._read_once(slide_id, verify=self._verified.get(slide_id) != before)
            except StoreError:
                if self._generation(slide_id) == before:
                    raise
                continue
            if self._generation(slide_id) == before:
                self._verified[slide_id] = before
                return record
        raise StoreError(f"slide {slide_id!r} in {self.path} is being replaced again and again; read it later")

    def read_ratios(self, slide_id: str) -> NDArray[np.float32] | None:
        """Annotation overlaps of a slide alone, `[patches, ratio_classes]`; None when it is not annotated.

        Raises:
            StoreError: the slide is missing, not complete, truncated or corrupt.
        """
        if ARRAY_RATIOS not in self.metadata(slide_id).optional_arrays:
            return None
        folder = self.path / group_name(slide_id) / ARRAY_RATIOS
        for name in (METADATA_FILE, SHARD_FILE):
            self._check_inside(folder / name)
        return read_array(folder, OPTIONAL_ARRAYS[ARRAY_RATIOS], verify=True)

    def content_checksum(self, slide_id: str) -> str:
        """Changes whenever features, grid or ratios of the slide do; reads the stored checksums, not the arrays.

        Raises:
            StoreError: the slide is missing, not complete or truncated.
        """
        metadata = self.metadata(slide_id)
        group = self.path / group_name(slide_id)
        digest = hashlib.sha256()
        kinds: dict[str, tuple[str, ...]] = {ARRAY_FEATURES: (metadata.encoder.precision,), ARRAY_GRID: ("int32",)}
        if ARRAY_RATIOS in metadata.optional_arrays:
            kinds[ARRAY_RATIOS] = OPTIONAL_ARRAYS[ARRAY_RATIOS]
            digest.update(repr(metadata.ratio_classes).encode())
        for name, dtypes in kinds.items():
            self._check_inside(group / name / METADATA_FILE)
            self._check_inside(group / name / SHARD_FILE)
            digest.update(b"\0" + name.encode() + b"\0" + array_checksum(group / name, dtypes))
        return digest.hexdigest()

    def write(self, record: SlideRecord, overwrite: bool = False) -> None:
        """Write a slide; the store has the whole slide afterwards or, after a crash, what it had before.

        Args:
            record: the slide; its rows may come in any order and are stored sorted by (row, col).
            overwrite: replace the slide if it is there. An incomplete one is always replaced.

        Raises:
            StoreError: the slide is there already, or the record is not valid: every problem is named.
        """
        if not overwrite and self.has(record.slide_id):
            raise StoreError(f"slide {record.slide_id!r} is already in {self.path}; pass overwrite to replace it")
        leftover = (self.path / group_name(record.slide_id)).exists()
        write_slide(self.path, record, replace=overwrite or leftover)

    def common_identity(self, slide_ids: Iterable[str] | None = None) -> tuple[EncoderIdentity, LatticeSpec]:
        """Encoder and lattice that all slides share.

        Args:
            slide_ids: the slides that matter, all when None.

        Raises:
            StoreError: there are no slides, or two differ; names them and the fields.
        """
        chosen = list(self.slide_ids if slide_ids is None else slide_ids)
        if not chosen:
            raise StoreError(f"{self.path} holds no slides; run `span extract` first")
        first = self.metadata(chosen[0])
        for slide_id in chosen[1:]:
            differences = identity_differences(first, self.metadata(slide_id))
            if differences:
                raise StoreError(
                    f"slides {chosen[0]!r} and {slide_id!r} in {self.path} have different features "
                    f"({'; '.join(differences)}); keep one store per encoder and lattice"
                )
        return first.encoder, first.lattice.spec

    def remove_leftovers(self, older_than_s: float = 3600.0) -> list[str]:
        """Delete what killed writers left in the store more than `older_than_s` seconds ago; returns the names."""
        return remove_leftovers(self.path, older_than_s, time.time())

    def _complete_id(self, name: str) -> str | None:
        try:
            slide_id = slide_id_of(name)
            path = self.path / name / METADATA_FILE
            self._check_inside(path)
            attributes = read_json(path)["attributes"]
            return slide_id if attributes[KEY_COMPLETE] is True else None
        except (StoreError, KeyError, TypeError):
            return None

    def _read_once(self, slide_id: str, *, verify: bool) -> SlideRecord:
        metadata = self.metadata(slide_id)
        group = self.path / group_name(slide_id)
        for array in (*ARRAYS, *metadata.optional_arrays):
            self._check_inside(group / array / METADATA_FILE)
            self._check_inside(group / array / SHARD_FILE)
        features = read_array(group / ARRAY_FEATURES, (metadata.encoder.precision,), verify=verify)
        grid = read_array(group / ARRAY_GRID, ("int32",), verify=verify)
        coords = read_array(group / ARRAY_COORDS, ("int64",), verify=verify)
        optional = {
            name: read_array(group / name, OPTIONAL_ARRAYS[name], verify=verify) for name in metadata.optional_arrays
        }
        where = f"slide {slide_id!r} in {self.path}"
        raise_problems(where, validate_arrays(features, grid, coords) or validate_optional_arrays(optional, metadata))
        if features.shape != (metadata.num_patches, metadata.encoder.dimension):
            raise StoreError(
                f"{where}: features are {list(features.shape)}, its attributes say "
                f"{[metadata.num_patches, metadata.encoder.dimension]}; the store is damaged"
            )
        return SlideRecord(
            slide_id=slide_id,
            case_id=metadata.case_id,
            features=features,
            grid=grid,
            coords=coords,
            lattice=metadata.lattice,
            mpp_source=metadata.mpp_source,
            encoder=metadata.encoder,
            slide_checksum=metadata.slide_checksum,
            width_px0=metadata.width_px0,
            height_px0=metadata.height_px0,
            provenance=metadata.provenance,
            ratio_classes=metadata.ratio_classes,
            **optional,
        )

    def _generation(self, slide_id: str) -> _Generation:
        """Changes whenever the slide is replaced."""
        try:
            status = (self.path / group_name(slide_id) / METADATA_FILE).stat()
        except OSError:
            return 0, 0, 0
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _check_inside(self, path: Path) -> None:
        """Refuse a file that a link takes out of the store."""
        try:
            resolved = path.resolve()
        except (OSError, RuntimeError) as error:  # Python before 3.13 says RuntimeError for links in a circle
            raise StoreError(f"{path} cannot be followed: {error}") from error
        if not resolved.is_relative_to(self._resolved):
            raise StoreError(f"{path} leads out of the store through a link, to {resolved}; refused")


def identity_differences(first: SlideMetadata, second: SlideMetadata) -> list[str]:
    """Fields of encoder and lattice in which two slides differ, as `name: first != second`."""
    differences = [f"encoder {text}" for text in first.encoder.differences(second.encoder)]
    mine, theirs = first.lattice.spec.as_dict(), second.lattice.spec.as_dict()
    return differences + [f"lattice {key}: {mine[key]} != {theirs[key]}" for key in mine if mine[key] != theirs[key]]


def _check_root(path: Path) -> None:
    advice = "name the folder that `span extract --store` wrote"
    if not path.exists():
        raise StoreError(f"there is no store at {path}: no such folder; {advice}")
    if not path.is_dir():
        raise StoreError(f"there is no store at {path}: it is a file; {advice}")
    document_path = path / METADATA_FILE
    if not document_path.exists():
        entries = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(TEMPORARY_PREFIX))
        found = f"it holds {', '.join(entries[:3])}" if entries else "the folder is empty"
        raise StoreError(f"there is no store at {path}: {METADATA_FILE} is missing, {found}; {advice}")
    document = read_json(document_path)
    attributes = document.get("attributes") if isinstance(document, dict) else None
    if not isinstance(attributes, dict):
        raise StoreError(f"{document_path} is not the root group of a store; {advice}")
    raise_problems(str(path), validate_format(attributes))
