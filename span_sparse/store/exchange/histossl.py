"""How does HistoSSLscaling lay out features?

`<slide>/features.npy`, float `[patches, 3 + channels]`: DeepZoom level, x and y of the tile, features.

A DeepZoom level halves the one above it; the last is the slide itself, level `ceil(log2(longer side))`. A tile of the
level `k` below that is `tile · 2^k` level-0 pixels wide, so the slide's size and the tile's are needed, or `--step`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import ExchangeError
from span_sparse.store.exchange.lattice_step import StepKnowledge
from span_sparse.store.exchange.layout import ExportSlide, Files, Format, check_features, list_files
from span_sparse.store.exchange.numpy_files import read_npy, write_npy
from span_sparse.store.exchange.source import Request, SourceSlide, Stated, TensorFiles


def _find(folder: Path) -> dict[str, Files]:
    return {slide: (path,) for slide, path in list_files(folder, "/features.npy", "**/*").items()}


def _evidence(folder: Path) -> str | None:
    return next((f"{path.relative_to(folder)}" for path in folder.rglob("features.npy")), None)


def _read(files: Files, request: Request, tensors: TensorFiles) -> SourceSlide:
    table = read_npy(files[0])
    if table.ndim != 2 or (len(table) and table.shape[1] < 4):
        raise ExchangeError(f"{files[0]} is {list(table.shape)}, expected [patches, 3 + channels]")
    features = check_features(np.ascontiguousarray(table[:, 3:]))
    places = table[:, :3]
    levels = np.unique(places[:, 0])
    if len(levels) > 1 or not np.isfinite(places).all() or (places != np.rint(places)).any():
        raise ExchangeError(
            f"{files[0]}: the first three columns must be one DeepZoom level and whole tile addresses, found levels "
            f"{levels[:4].tolist()}"
        )
    mpp = request.slide_mpp()
    tile = request.choose("patch_size_px", None, "the tile's edge in pixels")
    step, below = _step(int(levels[0]), round(tile.value), request)
    return SourceSlide(
        features=features,
        coords_px0=places[:, 1:].astype(np.int64) * step,
        columns={"places": np.ascontiguousarray(places)},
        step=StepKnowledge(stated_px0=step),
        mpp=mpp,
        target_mpp=Stated(mpp.value * below, "DeepZoom level"),
        patch_size_px=tile,
        patch_px0=Stated(step, "DeepZoom level × tile"),
        attributes={"table": {"dtype": table.dtype.name}},
    )


def _step(level: int, tile_px: int, request: Request) -> tuple[int, float]:
    """Level-0 pixels of a tile, and how much coarser than level 0 it is."""
    if request.settings.step_px0 is not None:
        return request.settings.step_px0, request.settings.step_px0 / tile_px
    if request.width_px0 is None or request.height_px0 is None:
        raise ExchangeError(
            "how large a DeepZoom tile is follows from the slide's size: put columns width_px0 and height_px0 into "
            "the cohort table, or pass --step"
        )
    below = (max(request.width_px0, request.height_px0) - 1).bit_length() - level
    if below < 0:
        raise ExchangeError(f"DeepZoom level {level} is larger than the slide; check width_px0 and height_px0")
    return tile_px << below, float(1 << below)


def _outputs(slide_id: str) -> tuple[str, ...]:
    return (f"{slide_id}/features.npy",)


def _write(slide: ExportSlide, folder: Path, tensors: TensorFiles) -> None:
    features = slide.features()
    table = np.concatenate([_places(slide, features.dtype), features], axis=1)
    write_npy(folder / _outputs(slide.record.slide_id)[0], table)


def _places(slide: ExportSlide, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Level and addresses in the features' dtype.

    Raises:
        ExchangeError: the lattice is not one that DeepZoom has, or the dtype cannot hold the numbers.
    """
    if "places" in slide.columns:
        return slide.columns["places"]
    lattice, record = slide.record.lattice, slide.record
    times, rest = divmod(lattice.step_px0, lattice.spec.patch_size_px)
    if rest or times & (times - 1) or lattice.origin_px0 != (0, 0) or lattice.overlap_px0:
        raise ExchangeError(
            f"patches of {lattice.step_px0} px from {lattice.origin_px0} are no DeepZoom tiles of "
            f"{lattice.spec.patch_size_px} px; this format cannot say where they lie"
        )
    level = (max(record.width_px0, record.height_px0) - 1).bit_length() - (times.bit_length() - 1)
    places = np.concatenate([np.full((len(record.grid), 1), level), record.grid[:, ::-1]], axis=1)
    if (places.astype(dtype) != places).any():
        raise ExchangeError(
            f"tile addresses up to {places.max()} are not exact in {dtype}; this format keeps one dtype"
        )
    return places.astype(dtype)


HISTOSSL = Format("histossl", "<slide>/features.npy", _find, _evidence, _read, _outputs, _write)
