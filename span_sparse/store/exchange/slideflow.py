"""How does slideflow lay out features?

`<slide>.pt` (features), `<slide>.index.npz` or `.npy` (tile CENTRES in level-0 pixels), `bags_config.json`. A tile is
`int(tile_um / mpp)` level-0 pixels wide; its corner is the centre minus half of that, rounded down.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from span_sparse.errors import ExchangeError
from span_sparse.files import write_atomically
from span_sparse.store.exchange.lattice_step import StepKnowledge
from span_sparse.store.exchange.layout import (
    ExportSlide,
    Files,
    Format,
    check_features,
    check_rows,
    check_xy,
    list_files,
    read_json_object,
)
from span_sparse.store.exchange.numpy_files import read_npy, read_npz, write_npy, write_npz
from span_sparse.store.exchange.source import Request, SourceSlide, Stated, TensorFiles

CONFIG: Final = "bags_config.json"


def _find(folder: Path) -> dict[str, Files]:
    found: dict[str, Files] = {}
    for slide, path in list_files(folder, ".pt").items():
        index = [path.with_name(f"{path.stem}.index{suffix}") for suffix in (".npz", ".npy")]
        config = [place / CONFIG for place in (path.parent, folder) if (place / CONFIG).is_file()]
        found[slide] = (path, next((one for one in index if one.is_file()), index[0]), *config[:1])
    return found


def _evidence(folder: Path) -> str | None:
    for pattern in (CONFIG, "*.index.npz", "*.index.npy"):
        for path in folder.rglob(pattern):
            return f"{path.relative_to(folder)}"
    return None


def _read(files: Files, request: Request, tensors: TensorFiles) -> SourceSlide:
    features = check_features(tensors.read(files[0]))
    centres = read_npy(files[1]) if files[1].suffix == ".npy" else read_npz(files[1]).get("arr_0")
    if centres is None:
        raise ExchangeError(f"{files[1]} has no array 'arr_0'")
    columns = {"coords": centres}
    check_rows(features, columns)
    config: dict[str, Any] = read_json_object(files[-1]) if files[-1].name == CONFIG else {}
    mpp = request.slide_mpp()
    tile_um, tile_px = config.get("tile_um"), config.get("tile_px")
    stated = Stated(int(float(tile_um) / mpp.value), "tile_um / mpp") if isinstance(tile_um, (int, float)) else None
    edge = request.choose("patch_px0", stated, "the patch's edge in level-0 pixels (a number tile_um)")
    return SourceSlide(
        features=features,
        coords_px0=check_xy(centres) - int(edge.value / 2),
        columns=columns,
        step=StepKnowledge(likely_px0=edge.value),
        mpp=mpp,
        target_mpp=Stated(tile_um / tile_px, "tile_um / tile_px") if stated and tile_um and tile_px else None,
        patch_size_px=Stated(tile_px, "tile_px") if tile_px else None,
        patch_px0=edge,
        encoder_name=_extractor(config),
        attributes={"config": config, "index": {"suffix": files[1].suffix}},
    )


def _extractor(config: dict[str, Any]) -> str | None:
    found = config.get("extractor")
    name = found.get("class", found.get("name")) if isinstance(found, dict) else found
    return name if isinstance(name, str) else None


def _outputs(slide_id: str) -> tuple[str, ...]:
    return f"{slide_id}.pt", f"{slide_id}.index.npz"


def _write(slide: ExportSlide, folder: Path, tensors: TensorFiles) -> None:
    record, lattice = slide.record, slide.record.lattice
    features, index = (folder / name for name in _outputs(record.slide_id))
    config = slide.attributes.get("config") or {
        "extractor": record.encoder.name,
        "normalizer": None,
        "num_features": record.encoder.dimension,
        "tile_px": lattice.spec.patch_size_px,
        "tile_um": lattice.patch_px0 * lattice.slide_mpp,
    }
    _write_config(folder / CONFIG, config)
    centres = slide.columns.get("coords", record.coords + slide.patch_px0 // 2)
    tensors.write(features, slide.features(np.float32))
    if slide.attributes.get("index", {}).get("suffix") == ".npy":
        write_npy(index.with_suffix(".npy"), centres)
    else:
        write_npz(index, {"arr_0": centres})


def _write_config(path: Path, config: dict[str, Any]) -> None:
    """One file says it for all slides of the folder; where tiles have other sizes they need another folder."""
    if path.is_file():
        there = read_json_object(path)
        wrong = [key for key in ("extractor", "num_features", "tile_px") if there.get(key) != config.get(key)]
        wide = [float(values.get("tile_um") or 0) for values in (there, config)]
        if wrong or abs(wide[0] - wide[1]) > 0.02 * max(wide):
            raise ExchangeError(
                f"{path} describes other features ({', '.join(wrong) or 'tile_um'}); use another folder"
            )
        return
    write_atomically(path, json.dumps(config, indent=2).encode())


SLIDEFLOW = Format(
    "slideflow", "<slide>.pt with <slide>.index.npz and bags_config.json", _find, _evidence, _read, _outputs, _write
)
