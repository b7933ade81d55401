"""How does AtlasPatch lay out features?

`patches/<slide>.h5` with `coords` (int32: x, y, read width, read height, level) and `features/<name>`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from span_sparse.errors import ExchangeError
from span_sparse.store.exchange.hdf5 import (
    members,
    open_hdf5,
    plain,
    read_attributes,
    read_dataset,
    read_extras,
    write_hdf5,
)
from span_sparse.store.exchange.lattice_step import StepKnowledge
from span_sparse.store.exchange.layout import (
    ExportSlide,
    Files,
    Format,
    check_features,
    check_rows,
    check_xy,
    list_files,
    one_folder,
    peek,
)
from span_sparse.store.exchange.source import Request, SourceSlide, Stated, TensorFiles


def _find(folder: Path) -> dict[str, Files]:
    patches = one_folder(folder, "patches", what="patches") or folder
    return {slide: (path,) for slide, path in list_files(patches, ".h5").items()}


def _evidence(folder: Path) -> str | None:
    seen = peek(folder, "**/patches/**/*") or peek(folder)
    if seen and "features/" in seen[1] and "coords" in seen[1]:
        return f"coords and a group features in {seen[0].relative_to(folder)}"
    return None


def _read(files: Files, request: Request, tensors: TensorFiles) -> SourceSlide:
    with open_hdf5(files[0]) as file:
        coords = read_dataset(file, "coords")
        groups = members(file).get("features")
        if not isinstance(groups, h5py.Group):
            raise ExchangeError("there is no group 'features'; extract features first")
        key = _key(list(groups), request)
        features = check_features(read_dataset(groups, key))
        attributes: dict[str, Any] = {}
        lost: list[str] = [f"features/{name}" for name in groups if name != key]
        for place, node in (("/", file), ("coords", file["coords"]), (f"features/{key}", groups[key])):
            attributes[place], missing = read_attributes(node)  # type: ignore[arg-type]
            lost += missing
        attributes["extras"], missing = read_extras(file, ("coords", "features"))
    check_rows(features, {"coords": coords})
    said = plain(attributes["/"]) | plain(attributes["coords"])
    edge, patch = said.get("patch_size_level0"), said.get("patch_size")
    return SourceSlide(
        features=features,
        coords_px0=check_xy(coords),
        columns={"coords": coords},
        step=StepKnowledge(likely_px0=float(edge) if edge else None),
        mpp=request.slide_mpp(),
        patch_size_px=Stated(float(patch), "patch_size") if patch else None,
        patch_px0=Stated(float(edge), "patch_size_level0") if edge else None,
        encoder_name=key,
        attributes=attributes | {"key": {"name": {"text": key}}},
        not_kept=(*lost, *missing),
    )


def _key(names: list[str], request: Request) -> str:
    wanted = request.settings.features_key
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted not in names:
        found = ", ".join(names) or "none"
        raise ExchangeError(f"choose one of the features in the file with --features-key: {found} (asked for {wanted})")
    return wanted


def _outputs(slide_id: str) -> tuple[str, ...]:
    return (f"patches/{slide_id}.h5",)


def _write(slide: ExportSlide, folder: Path, tensors: TensorFiles) -> None:
    record, edge = slide.record, slide.patch_px0
    key = slide.decoded("key").get("name", record.encoder.name)
    coords = slide.coords("int32")
    attributes = {place: slide.decoded(place) for place in ("/", "coords", f"features/{key}")}
    if "coords" not in slide.columns:
        rest = np.tile(np.array([edge, edge, 0], np.int32), (len(coords), 1))
        coords = np.concatenate([coords, rest], axis=1)
        attributes["/"] = {"patch_size": record.lattice.spec.patch_size_px, "patch_size_level0": edge}
    datasets = {"coords": coords, f"features/{key}": slide.features(np.float32)}
    write_hdf5(folder / _outputs(record.slide_id)[0], datasets | slide.decoded("extras"), attributes)


ATLASPATCH = Format(
    "atlaspatch", "patches/<slide>.h5 with coords and features/<name>", _find, _evidence, _read, _outputs, _write
)
