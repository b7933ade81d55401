"""How does STAMP lay out features?

`<slide>.h5` with `feats` (float16) and `coords` (float32, top-left corners in micrometres).

Tiles are cut `ceil(256 / mpp)` pixels wide inside super-tiles of a whole multiple of 256 µm, so that the pitch drifts
and starts again: coordinates lie within an eighth of a tile of a regular lattice, not on one. Version 1 wrote them in
units of 256/224 µm and no attributes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import numpy as np

from span_sparse.errors import ExchangeError
from span_sparse.store.exchange.hdf5 import open_hdf5, plain, read_attributes, read_dataset, read_extras, write_hdf5
from span_sparse.store.exchange.lattice_step import StepKnowledge
from span_sparse.store.exchange.layout import (
    ExportSlide,
    Files,
    Format,
    check_features,
    check_rows,
    check_xy,
    list_files,
    peek,
)
from span_sparse.store.exchange.source import Request, SourceSlide, Stated, TensorFiles

TILE_UM: Final = 256.0
TILE_PX: Final = 224
_MAX_DRIFT: Final = 1 / 8
_RUN: Final = re.compile(r".+-[0-9a-f]{8}")


def _find(folder: Path) -> dict[str, Files]:
    runs = [path for path in sorted(folder.iterdir()) if path.is_dir() and _RUN.fullmatch(path.name)]
    if len(runs) > 1:
        names = ", ".join(path.name for path in runs[:6])
        raise ExchangeError(f"{folder} holds the features of several runs: {names}; name the one to import")
    return {slide: (path,) for slide, path in list_files(runs[0] if runs else folder, ".h5").items()}


def _evidence(folder: Path) -> str | None:
    seen = peek(folder)
    if seen and {"feats", "coords"} <= set(seen[1]):
        return f"feats and coords in {seen[0].relative_to(folder)}"
    return None


def _read(files: Files, request: Request, tensors: TensorFiles) -> SourceSlide:
    with open_hdf5(files[0]) as file:
        attributes: dict[str, Any] = {}
        attributes["/"], lost = read_attributes(file)
        said = plain(attributes["/"])
        if said.get("feat_type", "tile") != "tile":
            raise ExchangeError(f"it holds vectors of a whole {said['feat_type']}, expected those of its tiles")
        features, coords = check_features(read_dataset(file, "feats")), read_dataset(file, "coords")
        attributes["extras"], missing = read_extras(file, ("feats", "coords"))
    check_rows(features, {"coords": coords})
    if said.get("unit", "um") != "um":
        raise ExchangeError(f"{files[0]}: coordinates are in {said['unit']!r}, expected 'um'")
    tile_um = float(said.get("tile_size_um", said.get("tile_size", TILE_UM)))
    tile_px = float(said.get("tile_size_px", TILE_PX))
    um_per_unit = 1.0 if "unit" in said or "stamp_version" in said else TILE_UM / TILE_PX
    mpp = request.slide_mpp()
    tile_px0 = tile_um / mpp.value
    return SourceSlide(
        features=features,
        coords_px0=check_xy(coords).astype(np.float64) * um_per_unit / mpp.value,
        columns={"coords": coords},
        step=StepKnowledge(stated_px0=tile_px0, slack_px0=2.0, tolerance_px0=max(2.0, tile_px0 * _MAX_DRIFT)),
        mpp=mpp,
        target_mpp=Stated(tile_um / tile_px, "tile_size_um / tile_size_px"),
        patch_size_px=Stated(tile_px, "tile_size_px"),
        patch_px0=Stated(round(tile_px0), "tile_size_um / mpp"),
        encoder_name=said.get("extractor"),
        attributes=attributes,
        not_kept=(*lost, *missing),
    )


def _outputs(slide_id: str) -> tuple[str, ...]:
    return (f"{slide_id}.h5",)


def _write(slide: ExportSlide, folder: Path, tensors: TensorFiles) -> None:
    record, lattice = slide.record, slide.record.lattice
    coords = slide.columns.get("coords")
    stated = {
        "stamp_version": "2.4.0",
        "extractor": record.encoder.name,
        "unit": "um",
        "tile_size_um": lattice.patch_px0 * lattice.slide_mpp,
        "tile_size_px": lattice.spec.patch_size_px,
        "code_hash": "None",
        "feat_type": "tile",
    }
    write_hdf5(
        folder / _outputs(record.slide_id)[0],
        {
            "feats": slide.features(),
            "coords": (record.coords * lattice.slide_mpp).astype(np.float32) if coords is None else coords,
        }
        | slide.decoded("extras"),
        {"/": stated if coords is None else slide.decoded("/")},
    )


STAMP = Format("stamp", "<slide>.h5 with feats and coords in µm", _find, _evidence, _read, _outputs, _write)
