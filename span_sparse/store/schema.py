"""What does the store hold for a slide, and is this a valid one?

`SlideRecord` is what is written and read, `SlideMetadata` the same without the arrays. `validate_*` returns every
problem it finds, `parse_*` raises `StoreError` with all of them in one message; the arrays are judged in `checks.py`.
The normative text is FORMAT.md beside this file; the names used on disk are the constants below.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import StoreError
from span_sparse.grid import Lattice, LatticeSpec
from span_sparse.types import EncoderIdentity

FORMAT_NAME: Final = "span-sparse-features"
FORMAT_VERSION: Final = 2
"""What is written."""

KNOWN_VERSIONS: Final = (1, 2)
"""What is read."""

KEY_FORMAT: Final = "format"
KEY_VERSION: Final = "version"
KEY_SLIDE_ID: Final = "slide_id"
KEY_CASE_ID: Final = "case_id"
KEY_NUM_PATCHES: Final = "num_patches"
KEY_LATTICE: Final = "lattice"
KEY_SLIDE_MPP: Final = "slide_mpp"
KEY_STEP_PX0: Final = "step_px0"
KEY_ORIGIN_PX0: Final = "origin_px0"
KEY_OVERLAP_PX0: Final = "overlap_px0"
KEY_MPP_SOURCE: Final = "mpp_source"
KEY_ENCODER: Final = "encoder"
KEY_SLIDE_CHECKSUM: Final = "slide_checksum"
KEY_WIDTH_PX0: Final = "width_px0"
KEY_HEIGHT_PX0: Final = "height_px0"
KEY_PROVENANCE: Final = "provenance"
KEY_COMPLETE: Final = "complete"
KEY_OPTIONAL_ARRAYS: Final = "optional_arrays"
KEY_RATIO_CLASSES: Final = "ratio_classes"

ARRAY_FEATURES: Final = "features"
ARRAY_GRID: Final = "grid"
ARRAY_COORDS: Final = "coords"
ARRAYS: Final = (ARRAY_FEATURES, ARRAY_GRID, ARRAY_COORDS)

ARRAY_RATIOS: Final = "ratios"
ARRAY_FAILED_GRID: Final = "failed_grid"
ARRAY_SOURCE_ROWS: Final = "source_rows"
ARRAY_SOURCE_COORDS: Final = "source_coords"
OPTIONAL_ARRAYS: Final[dict[str, tuple[str, ...]]] = {
    ARRAY_RATIOS: ("float32",),
    ARRAY_FAILED_GRID: ("int32",),
    ARRAY_SOURCE_ROWS: ("int64",),
    ARRAY_SOURCE_COORDS: ("int32", "int64", "float32", "float64"),
}
"""Arrays that a slide may have besides, with their dtypes; all but `failed_grid` have one row per patch."""

PRECISIONS: Final = ("float16", "float32")

_VERSION_2_DEFAULTS: Final[dict[str, Any]] = {KEY_OPTIONAL_ARRAYS: [], KEY_RATIO_CLASSES: []}
"""What a slide of version 1 would say if it could."""

_TEXT_KEYS: Final = (KEY_SLIDE_ID, KEY_MPP_SOURCE, KEY_SLIDE_CHECKSUM)
_COUNT_KEYS: Final = (KEY_NUM_PATCHES, KEY_WIDTH_PX0, KEY_HEIGHT_PX0)
_ENCODER_TYPES: Final[dict[str, type]] = {
    "name": str,
    "revision": str,
    "readout": str,
    "dimension": int,
    "input_size_px": int,
    "mpp": float,
    "precision": str,
}
_LATTICE_TYPES: Final[dict[str, type]] = {
    "patch_size_px": int,
    "target_mpp": float,
    KEY_SLIDE_MPP: float,
    KEY_STEP_PX0: int,
}


@dataclass(frozen=True, slots=True)
class SlideMetadata:
    """Everything the store says about a slide but its arrays.

    Attributes:
        slide_id: the slide's id, any text.
        case_id: the patient or case, None when unknown.
        num_patches: rows of the arrays, at least 1.
        lattice: the lattice the patches were cut on, with the slide's µm per pixel.
        mpp_source: where the slide's µm per pixel come from, for example `openslide` or `cohort`.
        encoder: identity of the encoder.
        slide_checksum: of the slide file, as `algorithm:hexadecimal`.
        width_px0: width of the slide in level-0 pixels.
        height_px0: height of the slide in level-0 pixels.
        provenance: plain JSON about how the features were made; the reader gives it no meaning.
        optional_arrays: names of the optional arrays the slide has, sorted.
        ratio_classes: annotation class of each column of `ratios`; empty without that array.
    """

    slide_id: str
    case_id: str | None
    num_patches: int
    lattice: Lattice
    mpp_source: str
    encoder: EncoderIdentity
    slide_checksum: str
    width_px0: int
    height_px0: int
    provenance: dict[str, Any]
    optional_arrays: tuple[str, ...] = ()
    ratio_classes: tuple[str, ...] = ()

    def as_attributes(self) -> dict[str, Any]:
        """The attributes of the slide's group, `complete` included."""
        return {
            KEY_FORMAT: FORMAT_NAME,
            KEY_VERSION: FORMAT_VERSION,
            KEY_SLIDE_ID: self.slide_id,
            KEY_CASE_ID: self.case_id,
            KEY_NUM_PATCHES: self.num_patches,
            KEY_LATTICE: {
                **self.lattice.spec.as_dict(),
                KEY_SLIDE_MPP: self.lattice.slide_mpp,
                KEY_STEP_PX0: self.lattice.step_px0,
                KEY_ORIGIN_PX0: list(self.lattice.origin_px0),
                KEY_OVERLAP_PX0: self.lattice.overlap_px0,
            },
            KEY_MPP_SOURCE: self.mpp_source,
            KEY_ENCODER: self.encoder.as_dict(),
            KEY_SLIDE_CHECKSUM: self.slide_checksum,
            KEY_WIDTH_PX0: self.width_px0,
            KEY_HEIGHT_PX0: self.height_px0,
            KEY_PROVENANCE: self.provenance,
            KEY_OPTIONAL_ARRAYS: list(self.optional_arrays),
            KEY_RATIO_CLASSES: list(self.ratio_classes),
            KEY_COMPLETE: True,
        }


@dataclass(frozen=True, slots=True, eq=False)
class SlideRecord:
    """One slide as it is written and read.

    Attributes:
        slide_id: the slide's id, any text.
        case_id: the patient or case, None when unknown.
        features: `[patches, channels]` in the encoder's precision, float16 or float32.
        grid: int32 `[patches, 2]`, lattice cells `(row, col)`.
        coords: int64 `[patches, 2]`, top-left corners `(x, y)` in level-0 pixels; equals `lattice.to_px0(grid)`.
        lattice: the lattice the patches were cut on.
        mpp_source: where the slide's µm per pixel come from.
        encoder: identity of the encoder.
        slide_checksum: of the slide file, as `algorithm:hexadecimal`.
        width_px0: width of the slide in level-0 pixels.
        height_px0: height of the slide in level-0 pixels.
        provenance: plain JSON about how the features were made.
        ratios: float32 `[patches, classes]`, share of each patch's area that annotations of a class cover, in [0, 1].
        ratio_classes: the classes of `ratios`, in the order of its columns.
        failed_grid: int32 `[cells, 2]`, cells `(row, col)` with tissue that could not be read and have no patch.
        source_rows: int64 `[patches, 1]`, the patch's row in the file it was imported from.
        source_coords: `[patches, axes]`, that file's coordinates as they are there, in its dtype.
    """

    slide_id: str
    case_id: str | None
    features: NDArray[np.floating[Any]]
    grid: NDArray[np.int32]
    coords: NDArray[np.int64]
    lattice: Lattice
    mpp_source: str
    encoder: EncoderIdentity
    slide_checksum: str
    width_px0: int
    height_px0: int
    provenance: dict[str, Any]
    ratios: NDArray[np.float32] | None = None
    ratio_classes: tuple[str, ...] = ()
    failed_grid: NDArray[np.int32] | None = None
    source_rows: NDArray[np.int64] | None = None
    source_coords: NDArray[Any] | None = None

    def optional_arrays(self) -> dict[str, NDArray[Any]]:
        """The optional arrays the record has, by name, sorted."""
        return {name: getattr(self, name) for name in sorted(OPTIONAL_ARRAYS) if getattr(self, name) is not None}

    def metadata(self) -> SlideMetadata:
        """The record without its arrays."""
        return SlideMetadata(
            slide_id=self.slide_id,
            case_id=self.case_id,
            num_patches=len(self.features),
            lattice=self.lattice,
            mpp_source=self.mpp_source,
            encoder=self.encoder,
            slide_checksum=self.slide_checksum,
            width_px0=self.width_px0,
            height_px0=self.height_px0,
            provenance=self.provenance,
            optional_arrays=tuple(self.optional_arrays()),
            ratio_classes=self.ratio_classes,
        )


def validate_attributes(attributes: object) -> list[str]:
    """Every problem of a slide group's attributes, empty when there is none."""
    if not isinstance(attributes, dict):
        return [f"attributes must be a JSON object, found {type(attributes).__name__}"]
    values: dict[str, Any] = attributes  # pyright: ignore[reportUnknownVariableType]
    problems = validate_format(values)
    if values.get(KEY_COMPLETE) is not True:
        problems.append("not marked complete: the slide was not written to its end; extract it again")
    for key in _TEXT_KEYS:
        if not isinstance(values.get(key), str) or not values[key]:
            problems.append(f"attribute {key!r} must be a non-empty text, found {_show(values.get(key))}")
    case_id = values.get(KEY_CASE_ID)
    if KEY_CASE_ID not in values or not (case_id is None or (isinstance(case_id, str) and case_id)):
        problems.append(f"attribute {KEY_CASE_ID!r} must be a non-empty text or null, found {_show(case_id)}")
    problems += [
        f"attribute {key!r} must be a positive integer, found {_show(values.get(key))}"
        for key in _COUNT_KEYS
        if not _is_positive(values.get(key), int)
    ]
    problems += _validate_fields(KEY_ENCODER, values.get(KEY_ENCODER), _ENCODER_TYPES)
    values = values if values.get(KEY_VERSION) != 1 else _VERSION_2_DEFAULTS | values
    problems += _validate_lattice(values.get(KEY_LATTICE), optional=values.get(KEY_VERSION) == 1)
    problems += _validate_optional(values)
    encoder = values.get(KEY_ENCODER)
    if isinstance(encoder, dict) and encoder.get("precision") not in PRECISIONS:  # pyright: ignore[reportUnknownMemberType]
        problems.append(f"encoder precision must be one of {', '.join(PRECISIONS)}")
    problems += _validate_provenance(values.get(KEY_PROVENANCE))
    return problems


def parse_attributes(attributes: object, where: str) -> SlideMetadata:
    """The metadata in a slide group's attributes.

    Args:
        attributes: the group's attributes as read from JSON.
        where: names the slide and store in the message.

    Raises:
        StoreError: naming every problem.
    """
    raise_problems(where, validate_attributes(attributes))
    values: dict[str, Any] = attributes  # type: ignore[assignment]  # checked above
    lattice = values[KEY_LATTICE]
    x0, y0 = lattice.get(KEY_ORIGIN_PX0, (0, 0))
    return SlideMetadata(
        slide_id=values[KEY_SLIDE_ID],
        case_id=values[KEY_CASE_ID],
        num_patches=values[KEY_NUM_PATCHES],
        lattice=Lattice(
            spec=LatticeSpec.from_dict(lattice),
            slide_mpp=float(lattice[KEY_SLIDE_MPP]),
            step_px0=lattice[KEY_STEP_PX0],
            origin_px0=(x0, y0),
            overlap_px0=lattice.get(KEY_OVERLAP_PX0, 0),
        ),
        mpp_source=values[KEY_MPP_SOURCE],
        encoder=EncoderIdentity.from_dict(values[KEY_ENCODER]),
        slide_checksum=values[KEY_SLIDE_CHECKSUM],
        width_px0=values[KEY_WIDTH_PX0],
        height_px0=values[KEY_HEIGHT_PX0],
        provenance=values[KEY_PROVENANCE],
        optional_arrays=tuple(values.get(KEY_OPTIONAL_ARRAYS, ())),
        ratio_classes=tuple(values.get(KEY_RATIO_CLASSES, ())),
    )


def validate_format(attributes: dict[str, Any]) -> list[str]:
    """Problems of the format name and version, which root and slide groups both carry."""
    if attributes.get(KEY_FORMAT) != FORMAT_NAME:
        return [f"attribute {KEY_FORMAT!r} must be {FORMAT_NAME!r}, found {attributes.get(KEY_FORMAT)!r}"]
    version = attributes.get(KEY_VERSION)
    if version not in KNOWN_VERSIONS or isinstance(version, bool):
        known = " and ".join(map(str, KNOWN_VERSIONS))
        return [
            f"format version {version!r} is not known, this program reads versions {known}; "
            "use the release that wrote the store, or extract again"
        ]
    return []


def raise_problems(where: str, problems: list[str]) -> None:
    """Raise `StoreError` naming all problems, if there are any."""
    if problems:
        raise StoreError(f"{where}: " + "; ".join(problems))


def _show(value: object) -> str:
    plain = value is None or type(value) in (bool, int, float, str)
    return f"{value!r:.80}" if plain else f"{value!r:.80} of type {type(value).__name__}"


def _is_positive(value: object, kind: type) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        return False
    return 0 < value < float("inf")


def _validate_fields(key: str, values: object, types: dict[str, type]) -> list[str]:
    if not isinstance(values, dict):
        return [f"attribute {key!r} must be an object with {', '.join(types)}, found {values!r}"]
    problems: list[str] = []
    for name, kind in types.items():
        value: object = values.get(name)  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        good = isinstance(value, str) and value != "" if kind is str else _is_positive(value, kind)
        if not good:
            wanted = {str: "a non-empty text", int: "a positive integer", float: "a positive number"}[kind]
            problems.append(f"{key} {name!r} must be {wanted}, found {_show(value)}")
    return problems


def _validate_lattice(values: object, *, optional: bool) -> list[str]:
    problems = _validate_fields(KEY_LATTICE, values, _LATTICE_TYPES)
    if problems or not isinstance(values, dict):
        return problems
    step: int = values[KEY_STEP_PX0]
    origin: object = values.get(KEY_ORIGIN_PX0, [0, 0] if optional else None)
    overlap: object = values.get(KEY_OVERLAP_PX0, 0 if optional else None)
    if not (isinstance(origin, list) and len(origin) == 2 and all(type(x) is int and 0 <= x < step for x in origin)):
        problems.append(f"lattice {KEY_ORIGIN_PX0!r} must be two integers in [0, {step}), found {_show(origin)}")
    if type(overlap) is not int or overlap <= -step:
        problems.append(f"lattice {KEY_OVERLAP_PX0!r} must be an integer above -{step}, found {_show(overlap)}")
    return problems


def _validate_optional(values: dict[str, Any]) -> list[str]:
    problems: list[str] = []
    names: Any = values.get(KEY_OPTIONAL_ARRAYS)
    classes: Any = values.get(KEY_RATIO_CLASSES)
    if not _are_unique_texts(names) or not set(names) <= set(OPTIONAL_ARRAYS):
        known = ", ".join(OPTIONAL_ARRAYS)
        problems.append(f"attribute {KEY_OPTIONAL_ARRAYS!r} must list some of {known}, found {_show(names)}")
    elif not _are_unique_texts(classes) or bool(classes) != (ARRAY_RATIOS in names):
        problems.append(
            f"attribute {KEY_RATIO_CLASSES!r} must name each class of the array {ARRAY_RATIOS!r} once, and be empty "
            f"without that array, found {_show(classes)}"
        )
    return problems


def _are_unique_texts(values: object) -> bool:
    if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
        return False
    return len(set(values)) == len(values)


def _validate_provenance(provenance: object) -> list[str]:
    try:
        same = isinstance(provenance, dict) and json.loads(json.dumps(provenance, allow_nan=False)) == provenance
    except (TypeError, ValueError, RecursionError):
        same = False
    return [] if same else [f"attribute {KEY_PROVENANCE!r} must be a plain JSON object, found {provenance!r:.80}"]
