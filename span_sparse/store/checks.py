"""May this record enter the store?

1. Kinds and shapes of the arrays: nothing else can be asked before these are right.
2. The attributes (`schema.validate_attributes`).
3. The values: finite features, cells on the slide, each once, coordinates that are the cells' corners.

All problems of a step are reported together; a user who repairs one at a time extracts a slide as many times.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from span_sparse.store.schema import (
    ARRAY_COORDS,
    ARRAY_FEATURES,
    ARRAY_GRID,
    SlideRecord,
    validate_attributes,
)


def validate_record(record: SlideRecord) -> list[str]:
    """Every problem that keeps a record out of the store, empty when there is none."""
    problems = validate_arrays(record.features, record.grid, record.coords)
    if problems:
        return problems
    problems = validate_attributes(record.metadata().as_attributes())
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
    return problems + _validate_grid(record)


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
            f"coords of {int(off.sum())} patches are not their cell × {record.lattice.step_px0} px: "
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
