"""How does slide2vec lay out features?

`tile_embeddings/<slide>.pt` or `.npz` with `<slide>.meta.json`, and `tiles/<slide>.coordinates.npz` (`x` and `y`, int64
at level 0, `tile_index`, `tissue_fractions`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import ExchangeError
from span_sparse.files import write_atomically
from span_sparse.store.exchange.lattice_step import StepKnowledge
from span_sparse.store.exchange.layout import (
    ExportSlide,
    Files,
    Format,
    check_features,
    check_rows,
    list_files,
    one_folder,
    read_json_object,
)
from span_sparse.store.exchange.numpy_files import read_npz, write_npz
from span_sparse.store.exchange.source import (
    MAX_KEPT_VALUES,
    Request,
    SourceSlide,
    Stated,
    TensorFiles,
    encode,
)


def _find(folder: Path) -> dict[str, Files]:
    embeddings = one_folder(folder, "tile_embeddings", what="embeddings")
    if embeddings is None:
        raise ExchangeError(f"{folder} holds no folder tile_embeddings/")
    found: dict[str, Files] = {}
    for slide, path in (list_files(embeddings, ".npz") | list_files(embeddings, ".pt")).items():
        coordinates = embeddings.parent / "tiles" / f"{slide}.coordinates.npz"
        meta = embeddings / f"{slide}.meta.json"
        found[slide] = (path, coordinates, *((meta,) if meta.is_file() else ()))
    return found


def _evidence(folder: Path) -> str | None:
    return next((f"a folder {path.relative_to(folder)}" for path in folder.rglob("tile_embeddings")), None)


def _read(files: Files, request: Request, tensors: TensorFiles) -> SourceSlide:
    features, name = _features(files[0], tensors)
    cut = read_npz(files[1])
    if not {"x", "y"} <= set(cut):
        raise ExchangeError(f"{files[1]} has the arrays {', '.join(cut)}, expected x and y")
    meta: dict[str, Any] = read_json_object(files[-1]) if files[-1].suffix == ".json" else {}
    space = str(meta.get("coordinate_space", "level_0"))
    if "0" not in space:
        raise ExchangeError(f"{files[-1]}: coordinates are in {space!r}, expected those of level 0")
    per_patch = {key: array for key, array in cut.items() if array.ndim == 1 and len(array) == len(features)}
    others = {key: array for key, array in cut.items() if key not in per_patch}
    columns = {key: per_patch[key] for key in ("x", "y", *per_patch) if key in per_patch and _is_number(per_patch[key])}
    check_rows(features, {key: cut[key] for key in ("x", "y")})
    edge = meta.get("tile_size_lv0")
    kept = {key: encode(array) for key, array in (others | per_patch).items() if _is_kept(key, array, columns)}
    return SourceSlide(
        features=features,
        coords_px0=np.stack([cut["x"], cut["y"]], axis=1),
        columns=columns,
        step=StepKnowledge(likely_px0=float(edge) if edge else None),
        mpp=request.slide_mpp(),
        patch_px0=Stated(float(edge), "tile_size_lv0") if edge else None,
        attributes={"meta": meta, "extras": kept, "file": {"suffix": files[0].suffix, "array": name}},
        not_kept=tuple(f"{key}: {array.dtype}" for key, array in cut.items() if key not in columns and key not in kept),
    )


def _features(path: Path, tensors: TensorFiles) -> tuple[NDArray[Any], str]:
    if path.suffix == ".pt":
        return check_features(tensors.read(path)), ""
    arrays = {name: array for name, array in read_npz(path).items() if array.ndim == 2}
    if len(arrays) != 1:
        raise ExchangeError(f"{path} has {len(arrays)} matrices ({', '.join(arrays)}), expected one of features")
    (name, features), *_ = arrays.items()
    return check_features(features), name


def _is_number(array: NDArray[Any]) -> bool:
    return array.dtype.kind in "iuf"


def _is_kept(name: str, array: NDArray[Any], columns: dict[str, NDArray[Any]]) -> bool:
    return name not in columns and array.size <= MAX_KEPT_VALUES


def _outputs(slide_id: str) -> tuple[str, ...]:
    return (
        f"tile_embeddings/{slide_id}.pt",
        f"tile_embeddings/{slide_id}.meta.json",
        f"tiles/{slide_id}.coordinates.npz",
    )


def _write(slide: ExportSlide, folder: Path, tensors: TensorFiles) -> None:
    record = slide.record
    embeddings, meta, coordinates = (folder / name for name in _outputs(record.slide_id))
    columns = dict(slide.columns) or {
        "x": record.coords[:, 0],
        "y": record.coords[:, 1],
        "tile_index": np.arange(len(record.coords)),
    }
    source = slide.attributes.get("file", {})
    described = slide.attributes.get("meta") or {
        "tile_size_lv0": slide.patch_px0,
        "coordinate_space": "level_0",
        "num_tiles": len(record.coords),
        "feature_dim": record.encoder.dimension,
        "encoder_name": record.encoder.name,
    }
    write_npz(coordinates, columns | slide.decoded("extras"))
    write_atomically(meta, json.dumps(described, indent=2).encode())
    if source.get("suffix") == ".npz":
        write_npz(embeddings.with_suffix(".npz"), {source["array"]: slide.features()})
    else:
        tensors.write(embeddings, slide.features())


SLIDE2VEC = Format(
    "slide2vec", "tile_embeddings/<slide>.pt or .npz, tiles/<slide>.coordinates.npz", _find, _evidence, _read, _outputs,
    _write,
)  # fmt: skip
