"""May this record enter the store?

1. Kinds and shapes of the arrays: nothing else can be asked before these are right.
2. The attributes (`schema.validate_attributes`).
3. The values: finite features, cells on the slide, each once, coordinates that are the cells' corners.

All problems of a step are reported together; a user who repairs one at a time extracts a slide as many times.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from span_sparse.store.schema import (
    ARRAY_COORDS,
    ARRAY_FAILED_GRID,
    ARRAY_FEATURES,
    ARRAY_GRID,
    ARRAY_RATIOS,
    ARRAY_SOURCE_ROWS,
    OPTIONAL_ARRAYS,
    SlideMetadata,
    SlideRecord,
    validate_attributes,
)


def validate_record(record: SlideRecord) -> list[str]:
    """Every problem that keeps a record out of the store, empty when there is none."""
    problems = validate_arrays(record.features, record.grid, record.coords)
    if problems:
        return problems
    metadata = record.metadata()
    problems = validate_attributes(metadata.as_attributes())
    problems += validate_optional_arrays(record.optional_arrays(), metadata)
    return problems or validate_contents(record)


def validate_arrays(features: object, grid: object, coords: object) -> list[str]:
    """Problems of the arrays' kinds and shapes: nothing else can be asked before these are right."""
    problems: list[str] = []
    expected = ((ARRAY_GRID, grid, np.int32), (ARRAY_COORDS, coords, np.int64))
    if not isinstance(features, np.ndarray) or features.ndim != 2 or features.dtype not in (np.float16, np.float32):
        problems.append(f"features must be float16 or float32 [patches, channels], found {_describe(features)}")
    for name, array, dtype in expected:
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 2 or array.shape[1] != 2:
            problems.append(f"{name} must be {np.dtype(dtype).name} [patches, 2], found {_describe(array)}")
    if problems:
        return problems
    lengths = {ARRAY_FEATURES: len(features), ARRAY_GRID: len(grid), ARRAY_COORDS: len(coords)}  # type: ignore[arg-type]
    if len(set(lengths.values())) > 1:
        return [f"the arrays must have one row per patch, found {lengths}"]
    if lengths[ARRAY_FEATURES] == 0:
        return ["no patches: a slide without tissue is a failure, never an empty bag"]
    return []


def validate_optional_arrays(arrays: Mapping[str, object], metadata: SlideMetadata) -> list[str]:
    """Problems of the optional arrays' kinds and shapes."""
    columns = {ARRAY_RATIOS: len(metadata.ratio_classes), ARRAY_FAILED_GRID: 2, ARRAY_SOURCE_ROWS: 1}
    problems: list[str] = []
    for name, array in arrays.items():
        rows = None if name == ARRAY_FAILED_GRID else metadata.num_patches
        wanted = (rows or "cells", columns.get(name, "axes"))
        if (
            not isinstance(array, np.ndarray)
            or array.dtype.name not in OPTIONAL_ARRAYS[name]
            or array.ndim != 2
            or 0 in array.shape
            or any(isinstance(want, int) and want != got for want, got in zip(wanted, array.shape, strict=True))
        ):
            dtypes = " or ".join(OPTIONAL_ARRAYS[name])
            problems.append(f"{name} must be {dtypes} [{wanted[0]}, {wanted[1]}], found {_describe(array)}")
    return problems


def validate_contents(record: SlideRecord) -> list[str]:
    """Problems of the values, for arrays whose kinds and shapes are right."""
    problems: list[str] = []
    channels, precision = record.features.shape[1], record.features.dtype.name
    if channels != record.encoder.dimension:
        problems.append(f"features have {channels} channels, the encoder's dimension is {record.encoder.dimension}")
    if precision != record.encoder.precision:
        problems.append(f"features are {precision}, the encoder's precision is {record.encoder.precision}")
    num_bad = int(np.count_nonzero(~np.isfinite(record.features).all(axis=1)))
    if num_bad:
        problems.append(f"features of {num_bad} of {len(record.features)} patches hold NaN or infinite values")
    return problems + _validate_grid(record) + _validate_optional_contents(record)


def _validate_optional_contents(record: SlideRecord) -> list[str]:
    problems: list[str] = []
    ratios, failed, rows = record.ratios, record.failed_grid, record.source_rows
    if ratios is not None and (num_bad := int((~((ratios >= 0) & (ratios <= 1))).any(axis=1).sum())):
        problems.append(f"ratios must lie in [0, 1], those of {num_bad} of {len(ratios)} patches do not")
    if failed is not None:
        keys = _cell_keys(failed)
        shape = np.array(record.lattice.shape(record.width_px0, record.height_px0))
        if (failed < 0).any() or (failed >= shape).any() or len(np.unique(keys)) < len(keys):
            problems.append("failed_grid must hold cells of the slide, each once")
        if np.isin(keys, _cell_keys(record.grid)).any():
            problems.append("failed_grid holds cells that have a patch")
    if rows is not None and ((rows < 0).any() or len(np.unique(rows)) < len(rows)):
        problems.append("source_rows must be different rows from 0 on")
    return problems


def _validate_grid(record: SlideRecord) -> list[str]:
    problems: list[str] = []
    grid = record.grid
    num_negative = int(np.count_nonzero((grid < 0).any(axis=1)))
    if num_negative:
        problems.append(f"{num_negative} cells are negative, first {_first_row(grid, (grid < 0).any(axis=1))}")
    rows, cols = record.lattice.shape(record.width_px0, record.height_px0)
    outside = (grid >= np.array([rows, cols])).any(axis=1)
    if outside.any():
        step_px0 = record.lattice.step_px0
        problems.append(
            f"{int(outside.sum())} cells lie outside the slide, first {_first_row(grid, outside)}; a slide of "
            f"{record.width_px0} × {record.height_px0} px has {rows} rows and {cols} columns of {step_px0} px"
        )
    num_duplicates = len(grid) - len(np.unique(_cell_keys(grid)))
    if num_duplicates:
        problems.append(f"{num_duplicates} cells occur more than once")
    off = (record.lattice.to_px0(grid) != record.coords).any(axis=1)
    if off.any():
        first = int(np.flatnonzero(off)[0])
        cell, corner = tuple(grid[first].tolist()), tuple(record.coords[first].tolist())
        problems.append(
            f"coords of {int(off.sum())} patches are not their cell × {record.lattice.step_px0} px "
            f"from {record.lattice.origin_px0}: "
            f"patch {first} in cell (row, col) {cell} has (x, y) {corner}"
        )
    return problems


def row_major_order(grid: NDArray[np.int32]) -> NDArray[np.intp]:
    """The permutation that sorts cells by row, then column, int `[patches]`."""
    return np.argsort(_cell_keys(grid), kind="stable")


def is_row_major(grid: NDArray[np.int32]) -> bool:
    """True when cells come strictly sorted by row, then column."""
    keys = _cell_keys(grid)
    return bool((keys[1:] > keys[:-1]).all())


def _cell_keys(grid: NDArray[np.int32]) -> NDArray[np.int64]:
    return (grid[:, 0].astype(np.int64) << 32) + grid[:, 1]


def _first_row(grid: NDArray[np.int32], mask: NDArray[np.bool_]) -> str:
    return f"(row, col) {tuple(grid[int(np.flatnonzero(mask)[0])].tolist())}"


def _describe(array: object) -> str:
    if isinstance(array, np.ndarray):
        return f"{array.dtype} {list(array.shape)}"
    return type(array).__name__
