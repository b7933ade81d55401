"""How does CLAM lay out features?

`h5_files/<slide>.h5` (`features` and `coords`, no attributes) or `pt_files/<slide>.pt` (features alone), joined row by
row with `patches/<slide>.h5`, which has the coordinates and how they were cut.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    one_folder,
    peek,
)
from span_sparse.store.exchange.source import Request, SourceSlide, Stated, TensorFiles


def _find(folder: Path) -> dict[str, Files]:
    with_coords = one_folder(folder, "h5_files", what="features")
    without = one_folder(folder, "pt_files", what="features")
    patches = one_folder(folder, "patches", what="patches")
    found: dict[str, Files] = {}
    for slide, path in list_files(with_coords or folder, ".h5").items():
        inside = path.relative_to(folder).parts
        if with_coords or "patches" not in inside:
            found[slide] = (path,)
    for slide, path in list_files(without, ".pt").items() if without else ():
        found.setdefault(slide, (path,))
    if patches:
        cut = list_files(patches, ".h5")
        found = {slide: (*files, cut[slide]) if slide in cut else files for slide, files in found.items()}
    return found


def _evidence(folder: Path) -> str | None:
    for name in ("h5_files", "pt_files"):
        if (folder / name).is_dir() or any(path.is_dir() for path in folder.rglob(name)):
            return f"a folder {name}"
    seen = peek(folder)
    if seen and set(seen[1]) == {"features", "coords", "/"} and not seen[1]["coords"] | seen[1]["/"]:
        return f"features and coords without attributes in {seen[0].relative_to(folder)}"
    return None


def _read(files: Files, request: Request, tensors: TensorFiles) -> SourceSlide:
    attributes: dict[str, Any] = {"coords": {}, "extras": {}}
    columns: dict[str, NDArray[Any]] = {}
    lost: list[str] = []
    features_file, *patches = files
    if features_file.suffix == ".pt":
        features = tensors.read(features_file)
    else:
        with open_hdf5(features_file) as file:
            features, columns["coords"] = read_dataset(file, "features"), read_dataset(file, "coords")
            attributes["extras"], lost = read_extras(file, ("features", "coords"))
    check_features(features)
    if patches:
        with open_hdf5(patches[0]) as file:
            cut = read_dataset(file, "coords")
            attributes["coords"], missing = read_attributes(file["coords"])  # type: ignore[arg-type]
            lost += missing
            columns.setdefault("coords", cut.astype(np.int32))
            columns["patches"] = cut
            lost += [f"patches: {name}" for name in file if name != "coords"]
    if not columns:
        raise ExchangeError(f"{features_file} has no coordinates; put the folder `patches` of the same run beside it")
    check_rows(features, columns)
    if patches and not np.array_equal(columns["coords"], columns["patches"]):
        raise ExchangeError(
            f"{features_file} and {patches[0]} have different coordinates; the features were made from other patches"
        )
    said = plain(attributes["coords"])
    downsample = _downsample(said)
    patch = float(said["patch_size"]) if "patch_size" in said else None
    edge = Stated(round(patch * downsample), "patch_size × downsample") if patch and downsample else None
    return SourceSlide(
        features=features,
        coords_px0=check_xy(columns["patches" if patches else "coords"]),
        columns=columns,
        step=_step(said, edge),
        mpp=request.slide_mpp(),
        patch_size_px=_patch_size(said, patch),
        patch_px0=edge,
        size_px0=_size(said, downsample),
        attributes=attributes,
        not_kept=tuple(lost),
    )


def _downsample(said: dict[str, Any]) -> float | None:
    """How much coarser than level 0 the patches were read."""
    if "level0_patch_size" in said and "patch_size" in said:
        return float(said["level0_patch_size"]) / float(said["patch_size"])
    if "downsample" not in said:
        return None
    values = np.atleast_1d(np.asarray(said["downsample"], dtype=np.float64))
    level = int(said.get("patch_level", 0))
    is_pair = len(values) == 2 and abs(values[0] - values[1]) <= 0.01 * values[0]  # along x and y
    chosen = values[0] if len(values) == 1 or is_pair else values[min(level, len(values) - 1)]
    custom = np.max(np.asarray(said.get("custom_downsample", 1), dtype=np.float64))
    return float(chosen) * float(custom)


def _step(said: dict[str, Any], edge: Stated | None) -> StepKnowledge:
    """CLAM does not write its step; the variant that rescales does."""
    if "level0_step_size" in said:
        return StepKnowledge(stated_px0=float(said["level0_step_size"]))
    return StepKnowledge(likely_px0=edge.value if edge else None)


def _patch_size(said: dict[str, Any], patch: float | None) -> Stated | None:
    if "output_patch_size" in said:
        return Stated(float(said["output_patch_size"]), "output_patch_size")
    return Stated(patch, "patch_size") if patch else None


def _size(said: dict[str, Any], downsample: float | None) -> tuple[int, int, str] | None:
    if "level0_dim" in said:
        width, height = (int(extent) for extent in np.asarray(said["level0_dim"]).tolist())
        return width, height, "level0_dim"
    dims = np.asarray(said.get("level_dim", ()))
    if dims.shape != (2,) or (said.get("patch_level", 0) and not downsample):
        return None
    factor = 1.0 if not said.get("patch_level") else float(downsample or 1)
    return round(dims[0] * factor), round(dims[1] * factor), "level_dim × downsample" if factor != 1 else "level_dim"


def _outputs(slide_id: str) -> tuple[str, ...]:
    return f"h5_files/{slide_id}.h5", f"pt_files/{slide_id}.pt", f"patches/{slide_id}.h5"


def _write(slide: ExportSlide, folder: Path, tensors: TensorFiles) -> None:
    record = slide.record
    with_coords, without, patches = (folder / name for name in _outputs(record.slide_id))
    features = slide.features(np.float32)
    size = np.array([record.width_px0, record.height_px0])
    stated = {
        "patch_size": slide.patch_px0,
        "patch_level": 0,
        "downsample": np.ones(2),
        "downsampled_level_dim": size,
        "level_dim": size,
        "name": record.slide_id,
        "save_path": "None",
    }
    cut = slide.columns.get("patches", slide.record.coords)
    write_hdf5(patches, {"coords": cut}, {"coords": slide.decoded("coords") or stated})
    tensors.write(without, features)
    write_hdf5(with_coords, {"features": features, "coords": slide.coords("int32")} | slide.decoded("extras"))


CLAM = Format("clam", "h5_files/ or pt_files/, with patches/<slide>.h5", _find, _evidence, _read, _outputs, _write)
