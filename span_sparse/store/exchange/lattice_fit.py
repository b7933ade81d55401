"""On which lattice do these coordinates lie, and is that certain?

1. The step: what the file states, checked against the coordinates; else the greatest common divisor of their
   differences, if neighbours do lie that far apart; else what the caller thinks likely.
2. The origin: the most frequent residue of the coordinates, `coordinate mod step`.
3. The proof: every coordinate is exactly `origin + cell · step`, and no cell has two patches. Otherwise the
   coordinates are refused with their residues shown, or the user has chosen what to do about them (`Choices`).

All of it is int64. Coordinates that a format stores rounded (micrometres in float32, fractional strides) cannot be
proven so; a pitch is fitted to them, and each must lie within the format's own tolerance of it (`_fit_pitch`).

Dividing by the smallest difference and rounding instead gives every patch some cell, the wrong one for all of them as
soon as one patch lies off the lattice, and tells nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import LatticeError
from span_sparse.grid import MAX_CELL
from span_sparse.store.exchange.lattice_step import StepKnowledge, find_step

MAX_COORDINATE_PX0: Final = 2**40
"""No slide is a million million pixels wide; beyond it int64 products could overflow."""

MAX_CONTOURS: Final = 1000

_NUM_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user allows to be done to coordinates that are on no lattice.

    Attributes:
        snap: move every patch to the nearest cell.
        per_contour: move all patches with one residue together, as far as each group needs and no two collide.
        drop: leave out patches off the lattice, negative ones, and the second and later ones of a cell.
    """

    snap: bool = False
    per_contour: bool = False
    drop: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class LatticeFit:
    """Where the patches lie.

    Attributes:
        step_px0: distance of neighbouring cells.
        origin_px0: corner `(x, y)` of cell (0, 0), in [0, step).
        grid: int32 `[kept, 2]`, cells `(row, col)`.
        rows: int64 `[kept]`, ascending, the rows of the coordinates that were kept.
        report: plain JSON: how the step was found, residues, what was moved and dropped.
    """

    step_px0: int
    origin_px0: tuple[int, int]
    grid: NDArray[np.int32]
    rows: NDArray[np.int64]
    report: dict[str, Any]


def fit_lattice(coords_px0: NDArray[Any], knowledge: StepKnowledge, choices: Choices | None = None) -> LatticeFit:
    """The square lattice of top-left corners.

    Args:
        coords_px0: `[patches, 2]`, `(x, y)` in level-0 pixels, whole numbers unless the format has a tolerance.
        knowledge: what is known of the step.
        choices: what may be done to coordinates off the lattice; nothing by default.

    Raises:
        LatticeError: the coordinates are not numbers of pixels, are on no lattice, or contradict what is stated.
    """
    choices = choices or Choices()
    _check_numbers(coords_px0)
    rows = np.arange(len(coords_px0), dtype=np.int64)
    whole = bool((coords_px0 == np.rint(coords_px0)).all())
    if not whole and not knowledge.tolerance_px0:
        first = int(np.flatnonzero((coords_px0 != np.rint(coords_px0)).any(axis=1))[0])
        raise LatticeError(
            f"coordinates are fractions of pixels, first {tuple(coords_px0[first].tolist())} in row {first}; expected "
            "whole level-0 pixels: were they written in micrometres or at another level?"
        )
    negative = (coords_px0 <= -max(knowledge.tolerance_px0, 0.5)).any(axis=1)
    report: dict[str, Any] = {"negative": int(negative.sum())}
    if negative.any():
        if not choices.drop:
            first = int(np.flatnonzero(negative)[0])
            raise LatticeError(
                f"{int(negative.sum())} of {len(rows)} coordinates are negative, first "
                f"{tuple(coords_px0[first].tolist())} in row {first}; pass --drop to leave these patches out"
            )
        rows = rows[~negative]
        if not len(rows):
            raise LatticeError("all coordinates are negative: these are not pixels of a slide")
    kept = coords_px0[rows]
    if whole:
        exact = kept.astype(np.int64)
        try:
            step, source = find_step(exact, knowledge)
        except LatticeError:
            if not knowledge.tolerance_px0:
                raise
        else:
            if not knowledge.tolerance_px0 or not ((exact - exact[0]) % step).any():
                return _fit_exact(exact, rows, step, report | {"step_source": source}, choices)
    return _fit_pitch(kept.astype(np.float64), rows, knowledge, report, choices)


def _check_numbers(coords: NDArray[Any]) -> None:
    if coords.ndim != 2 or coords.shape[1] != 2 or coords.dtype.kind not in "iuf":
        raise LatticeError(f"coordinates must be numbers [patches, 2], found {coords.dtype} {list(coords.shape)}")
    if not len(coords):
        raise LatticeError("no patches: a slide without tissue is a failure, never an empty bag")
    bad = ~np.isfinite(coords).all(axis=1) if coords.dtype.kind == "f" else np.zeros(len(coords), bool)
    if bad.any():
        raise LatticeError(
            f"{int(bad.sum())} of {len(coords)} coordinates are NaN or infinite, first in row {np.flatnonzero(bad)[0]}"
        )
    if max(abs(float(coords.max())), abs(float(coords.min()))) > MAX_COORDINATE_PX0:
        raise LatticeError(f"coordinates up to {coords.max():g}: these are not pixels of a slide")


def _fit_exact(
    coords: NDArray[np.int64], rows: NDArray[np.int64], step: int, report: dict[str, Any], choices: Choices
) -> LatticeFit:
    residues, group, counts = np.unique(coords % step, axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    main = int(np.argmax(counts))
    origin = residues[main]
    off = group != main
    report |= {
        "exact": True, "off_lattice": int(off.sum()), "max_residual_px0": 0, "dropped": 0, "contours": [],
    }  # fmt: skip
    cells = np.floor_divide(coords - origin, step)
    if off.any():
        if choices.per_contour:
            cells, report["contours"] = _place_contours(coords, group, residues, counts, step)
        elif choices.snap:
            cells = np.maximum(_nearest(coords - origin, step), 0)
        elif choices.drop:
            coords, rows, cells = coords[~off], rows[~off], cells[~off]
        else:
            raise LatticeError(_residue_message(residues, counts, step, int(off.sum()), len(coords)))
        report["exact"] = not (choices.per_contour or choices.snap)
    moved = np.abs(coords - (origin + cells * step)).max(initial=0)
    report["max_residual_px0"] = int(moved)
    return _without_collisions(cells, rows, step, (int(origin[0]), int(origin[1])), report, choices)


def _nearest(offsets: NDArray[np.int64], step: int) -> NDArray[np.int64]:
    return np.floor_divide(2 * offsets + step, 2 * step)


def _place_contours(
    coords: NDArray[np.int64],
    group: NDArray[np.intp],
    residues: NDArray[np.int64],
    counts: NDArray[np.intp],
    step: int,
) -> tuple[NDArray[np.int64], list[dict[str, Any]]]:
    """Move every group of one residue as a whole, largest first, to the nearest place where no cell is taken.

    Returns:
        Cells `(col, row)` of every patch, and for every group its origin, shift `(x, y)` and size.

    Raises:
        LatticeError: there are too many groups to be contours.
    """
    if len(residues) > MAX_CONTOURS:
        raise LatticeError(
            f"{len(residues)} different origins for {len(coords)} patches: these are not contours; pass --snap instead"
        )
    order = np.argsort(-counts, kind="stable")
    origin = residues[order[0]]
    cells = np.empty_like(coords)
    taken: set[tuple[int, int]] = set()
    contours: list[dict[str, Any]] = []
    for index in order:
        members = group == index
        below = np.floor_divide(coords[members] - origin, step)
        remainder = (residues[index] - origin) % step
        candidates = [
            (int(np.abs(np.array(up) * step - remainder).max()), up)
            for up in ((0, 0), (0, 1), (1, 0), (1, 1))
            if (remainder != 0).any() or up == (0, 0)
        ]
        places = [below + np.array(up) for _, up in sorted(candidates) if (below + np.array(up)).min(initial=0) >= 0]
        free = (place for place in places if taken.isdisjoint(map(tuple, place.tolist())))
        chosen = next(free, places[0])
        taken.update(map(tuple, chosen.tolist()))
        cells[members] = chosen
        shift = (origin + chosen[0] * step) - coords[members][0]
        contours.append(
            {"origin_px0": residues[index].tolist(), "shift_px0": shift.tolist(), "patches": int(counts[index])}
        )
    return cells, contours


def _fit_pitch(
    coords: NDArray[np.float64],
    rows: NDArray[np.int64],
    knowledge: StepKnowledge,
    report: dict[str, Any],
    choices: Choices,
) -> LatticeFit:
    """Fit one pitch and two origins to rounded coordinates; each must lie within the tolerance."""
    if choices.per_contour:
        raise LatticeError("--per-contour needs whole-pixel coordinates, these are rounded; pass --snap instead")
    nominal = knowledge.stated_px0 or knowledge.likely_px0
    if nominal is None:
        raise LatticeError("the coordinates are rounded and the file does not state a step; pass --step")
    pitch = _refined_pitch(coords, nominal)
    if knowledge.stated_px0 is not None and abs(pitch - nominal) > max(knowledge.slack_px0, 0.5):
        raise LatticeError(
            f"a step of {nominal:g} px is stated, but the coordinates have a pitch of {pitch:.6g} px; correct the "
            f"statement, the µm per pixel, or pass --step {pitch:.6g}"
        )
    step = max(1, round(pitch))
    origins = np.array([_origin(coords[:, axis], pitch) for axis in (0, 1)])
    first = np.rint(origins / pitch)
    first = np.where(np.abs(origins - first * pitch) <= knowledge.tolerance_px0, first, np.floor(origins / pitch))
    start = np.clip(np.rint(origins - first * pitch), 0, step - 1).astype(np.int64)
    index = np.rint((coords - origins) / pitch)
    residual = np.abs(coords - (origins + index * pitch)).max(axis=1)
    off = residual > knowledge.tolerance_px0
    cells = np.maximum((index + first).astype(np.int64), 0)
    if off.any() and choices.drop and not choices.snap:
        cells, rows, coords, residual = cells[~off], rows[~off], coords[~off], residual[~off]
    elif off.any() and not choices.snap:
        raise LatticeError(
            f"{int(off.sum())} of {len(coords)} coordinates lie more than {knowledge.tolerance_px0:.4g} px from a "
            f"lattice of pitch {pitch:.6g} px (worst {residual.max():.4g} px); pass --snap to move them to the nearest "
            "cell, or --drop to leave them out"
        )
    moved = np.abs(coords - (start + cells * step)).max(initial=0)
    report |= {
        "exact": False, "step_source": f"fitted pitch {pitch:.3f} px", "off_lattice": int(off.sum()), "dropped": 0,
        "max_residual_px0": round(float(residual.max(initial=0)), 3), "max_displacement_px0": round(float(moved), 3),
        "contours": [],
    }  # fmt: skip
    return _without_collisions(cells, rows, step, (int(start[0]), int(start[1])), report, choices)


def _refined_pitch(coords: NDArray[np.float64], nominal: float) -> float:
    """Weighted least squares of coordinates over their index, both axes together."""
    pitch = nominal
    for _ in range(3):
        above = below = 0.0
        for axis in (0, 1):
            values, weights = np.unique(coords[:, axis], return_counts=True)
            index, regular = _walk(values, weights, pitch)
            values, weights = values[regular], weights[regular]
            index -= np.average(index, weights=weights)
            above += float((weights * index * (values - np.average(values, weights=weights))).sum())
            below += float((weights * index**2).sum())
        if below:
            pitch = above / below
    return pitch


def _walk(
    values: NDArray[np.float64], weights: NDArray[np.intp], pitch: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The index of each regular value, counted from one to the next so that a drift never adds up to a cell.

    Returns:
        Indices of the regular values, and which values these are: less than a quarter of the pitch off.
    """
    start = int(np.argmax(weights))
    index: dict[int, float] = {start: 0.0}
    for direction in (1, -1):
        last = start
        for here in range(start + direction, len(values) if direction > 0 else -1, direction):
            cells = (values[here] - values[last]) / pitch
            if abs(cells - np.rint(cells)) <= 0.25:
                index[here] = index[last] + float(np.rint(cells))
                last = here
    regular = np.zeros(len(values), bool)
    regular[list(index)] = True
    return np.array([index[here] for here in sorted(index)]), regular


def _origin(values: NDArray[np.float64], pitch: float) -> float:
    """Where the lattice begins: the most common value, moved by the median of what remains of the others."""
    unique, counts = np.unique(values, return_counts=True)
    anchor = float(unique[np.argmax(counts)])
    offsets = values - anchor
    remainders = offsets - np.rint(offsets / pitch) * pitch
    anchor += float(np.median(remainders))
    return anchor - float(np.rint((anchor - values.min()) / pitch)) * pitch


def _without_collisions(
    cells_xy: NDArray[np.int64],
    rows: NDArray[np.int64],
    step: int,
    origin: tuple[int, int],
    report: dict[str, Any],
    choices: Choices,
) -> LatticeFit:
    if not len(cells_xy):
        raise LatticeError("no patch is left: all lie off the lattice")
    if cells_xy.max() > MAX_CELL:
        raise LatticeError(f"cells up to {cells_xy.max()} with a step of {step} px: these are not pixels of a slide")
    _, first = np.unique(cells_xy, axis=0, return_index=True)
    num_doubled = len(cells_xy) - len(first)
    if num_doubled and not choices.drop:
        extra = np.setdiff1d(np.arange(len(cells_xy)), first)[0]
        twin = int(np.flatnonzero((cells_xy == cells_xy[extra]).all(axis=1))[0])
        raise LatticeError(
            f"{num_doubled} patches share a cell with another one, for example rows {int(rows[twin])} and "
            f"{int(rows[extra])}; pass --drop to keep the first of each"
        )
    kept = np.sort(first)
    report |= {"doubled": num_doubled, "step_px0": step, "origin_px0": list(origin)}
    report["dropped"] = report["negative"] + num_doubled + (report["off_lattice"] if choices.drop else 0)
    if choices.snap or choices.per_contour:
        report["dropped"] = report["negative"] + num_doubled
    return LatticeFit(step, origin, cells_xy[kept][:, ::-1].astype(np.int32), rows[kept], report)


def _residue_message(
    residues: NDArray[np.int64], counts: NDArray[np.intp], step: int, num_off: int, num_patches: int
) -> str:
    order = np.argsort(-counts, kind="stable")[:_NUM_SHOWN]
    shown = ", ".join(f"({residues[i][0]}, {residues[i][1]}) × {counts[i]}" for i in order)
    more = f" and {len(residues) - len(order)} more origins" if len(residues) > len(order) else ""
    return (
        f"{num_off} of {num_patches} patches lie off the lattice of step {step} px; origins (x, y) mod {step} × "
        f"patches: {shown}{more}; choose --per-contour (move each origin's patches together), --snap (each patch to "
        "the nearest cell), --drop (leave out all but the first origin's), or state another --step"
    )
