"""How do PatchPreprocess and the authors' SPAN lay out features?

`<slide>.h5` with `feats`, `cords` (int64) and perhaps `ratios`, `label`, `caption`. What `cords` count is written
nowhere, so there are three formats:

* `span`: 224 × the cell's index, whatever the patch's edge in pixels; what the authors' loader expects. Exports always
  write this.
* `patchpreprocess`: level-0 pixels, as its rescaling mode names the pictures.
* `span-st`: cell indices, in the pairs of spatial transcriptomics: `gene/<id>.h5` has the places and
  `imge_<model>/<id>.h5` the features of the picture, row by row.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import ExchangeError, LatticeError
from span_sparse.grid import LatticeSpec
from span_sparse.store.exchange.hdf5 import open_hdf5, read_dataset, read_extras, write_hdf5
from span_sparse.store.exchange.lattice_step import StepKnowledge, neighbour_distances
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
from span_sparse.store.exchange.source import Request, SourceSlide, TensorFiles

CELL_PX: Final = 224
"""What the authors' loader divides coordinates by."""

_FEATURE_NAMES: Final = ("feats", "x")
_COORDS_NAMES: Final = ("cords", "pos")
_ST_GENES: Final = "mol_feats"
_ST_COLUMNS: Final = ("float_cords", "orig_cords", "total_umi_counts")


def _find(folder: Path) -> dict[str, Files]:
    found: dict[str, Files] = {slide: (path,) for slide, path in list_files(folder, ".h5").items()}
    if not found and list_files(folder, ".pkl"):
        raise ExchangeError(
            f"{folder} holds .pkl files; they are programs as much as data and are never loaded here: write h5 files "
            "with the tool that made them"
        )
    return found


def _find_pairs(folder: Path) -> dict[str, Files]:
    pictures = one_folder(folder, "imge_*", what="picture features")
    genes = one_folder(folder, "gene", what="places")
    if pictures is None or genes is None:
        raise ExchangeError(f"{folder} lacks a folder gene/ or imge_<model>/; both are needed, features have no places")
    places = list_files(genes, ".h5")
    return {
        slide: (path, places.get(slide, genes / f"{slide}.h5")) for slide, path in list_files(pictures, ".h5").items()
    }


def _evidence(folder: Path, *, cells: bool) -> str | None:
    seen = peek(folder)
    if seen is None or not ({*_COORDS_NAMES} & set(seen[1])) or not ({*_FEATURE_NAMES} & set(seen[1])):
        return None
    where = seen[0].relative_to(folder)
    with open_hdf5(seen[0]) as file:
        coords = read_dataset(file, _name(file, _COORDS_NAMES)).astype(np.int64)
    on_cells = not (coords % CELL_PX).any()
    near = neighbour_distances(check_xy(coords))
    if cells and on_cells:
        return f"feats and cords in multiples of {CELL_PX} in {where}"
    if not cells and (not on_cells or (len(near) and near.min() > CELL_PX)):
        return f"feats and cords {near.min() if len(near) else '?'} px apart in {where}"
    return None


def _pair_evidence(folder: Path) -> str | None:
    pictures = [path.name for path in folder.glob("imge_*") if path.is_dir()]
    return f"folders gene and {pictures[0]}" if pictures and (folder / "gene").is_dir() else None


def _name(file: Any, names: tuple[str, ...]) -> str:
    return next((name for name in names if name in file), names[0])


def _read(files: Files, request: Request, tensors: TensorFiles, *, cells: bool) -> SourceSlide:
    with open_hdf5(files[0]) as file:
        names = _name(file, _FEATURE_NAMES), _name(file, _COORDS_NAMES)
        features, coords = check_features(read_dataset(file, names[0])), read_dataset(file, names[1])
        ratios = read_dataset(file, "ratios") if "ratios" in file else None
        extras, lost = read_extras(file, (*names, "ratios"))
    columns: dict[str, NDArray[Any]] = {"coords": coords}
    if ratios is not None:
        columns["ratios"] = ratios
    check_rows(features, columns)
    attributes = {"extras": extras, "names": {"features": {"text": names[0]}, "coords": {"text": names[1]}}}
    corners, step = _from_cells(check_xy(coords), CELL_PX, request) if cells else (check_xy(coords), StepKnowledge())
    return SourceSlide(
        features=features,
        coords_px0=corners,
        columns=columns,
        step=step,
        mpp=request.slide_mpp(),
        ratios=None if ratios is None else ratios.reshape(len(features), -1)[:, 0],
        attributes=attributes,
        not_kept=tuple(lost),
    )


def _read_pair(files: Files, request: Request, tensors: TensorFiles) -> SourceSlide:
    with open_hdf5(files[0]) as file:
        features = check_features(read_dataset(file, "mor_feats"))
    with open_hdf5(files[1]) as file:
        columns = {"coords": read_dataset(file, "cords")}
        columns |= {name: read_dataset(file, name) for name in _ST_COLUMNS if name in file}
        extras, lost = read_extras(file, ("cords", _ST_GENES, *_ST_COLUMNS))
        lost += [f"{_ST_GENES}: features of another kind"] if _ST_GENES in file else []
    check_rows(features, columns)
    corners, step = _from_cells(check_xy(columns["coords"], "cords"), 1, request)
    return SourceSlide(
        features=features,
        coords_px0=corners,
        columns=columns,
        step=step,
        mpp=request.slide_mpp(),
        attributes={"extras": extras},
        not_kept=tuple(lost),
    )


def _from_cells(coords: NDArray[Any], per_cell: int, request: Request) -> tuple[NDArray[np.int64], StepKnowledge]:
    """Corners in level-0 pixels of coordinates that count cells, and the step."""
    cells, rest = np.divmod(coords, per_cell)
    if coords.dtype.kind not in "iu" or rest.any():
        raise LatticeError(
            f"cords are not all multiples of {per_cell}; if they are level-0 pixels, pass --format patchpreprocess"
        )
    step = request.settings.step_px0
    if step is None:
        mpp = request.slide_mpp().value
        size = round(request.choose("patch_size_px", None, "the patch size in pixels").value)
        target = request.choose("target_mpp", None, "the µm per pixel of the patches").value
        step = LatticeSpec(size, target).on_slide(mpp).step_px0
    return cells.astype(np.int64) * step, StepKnowledge(stated_px0=step)


def _outputs(slide_id: str) -> tuple[str, ...]:
    return (f"{slide_id}.h5",)


def _write(slide: ExportSlide, folder: Path, tensors: TensorFiles) -> None:
    cells = slide.record.grid[:, ::-1].astype(np.int64) * CELL_PX
    _write_h5(slide, folder, cells)


def _write_pixels(slide: ExportSlide, folder: Path, tensors: TensorFiles) -> None:
    _write_h5(slide, folder, slide.coords())


def _write_h5(slide: ExportSlide, folder: Path, coords: NDArray[Any]) -> None:
    names = slide.decoded("names") or {"features": "feats", "coords": "cords"}
    datasets: dict[str, Any] = {names["features"]: slide.features(np.float32), names["coords"]: coords}
    ratios = slide.record.ratios
    if "ratios" in slide.columns:
        datasets["ratios"] = slide.columns["ratios"]
    elif ratios is not None:
        # the share that any annotation covers; the authors' format knows one class
        datasets["ratios"] = ratios[:, 0] if ratios.shape[1] == 1 else np.minimum(ratios.sum(axis=1), 1)
    write_hdf5(folder / _outputs(slide.record.slide_id)[0], datasets | slide.decoded("extras"))


def _pair_outputs(slide_id: str) -> tuple[str, ...]:
    return f"gene/{slide_id}.h5", f"imge_features/{slide_id}.h5"


def _write_pair(slide: ExportSlide, folder: Path, tensors: TensorFiles) -> None:
    genes, pictures = (folder / name for name in _pair_outputs(slide.record.slide_id))
    cells = slide.columns.get("coords", slide.record.grid[:, ::-1].astype(np.int64))
    others = {name: column for name, column in slide.columns.items() if name != "coords"}
    write_hdf5(genes, {"cords": cells} | others | slide.decoded("extras"))
    write_hdf5(pictures, {"mor_feats": slide.features(np.float32)})


SPAN = Format(
    "span", "<slide>.h5 with feats and cords = 224 × cell", _find, partial(_evidence, cells=True),
    partial(_read, cells=True), _outputs, _write,
)  # fmt: skip
PATCHPREPROCESS = Format(
    "patchpreprocess", "<slide>.h5 with feats and cords in level-0 pixels", _find, partial(_evidence, cells=False),
    partial(_read, cells=False), _outputs, _write_pixels,
)  # fmt: skip
SPAN_ST = Format(
    "span-st", "gene/<id>.h5 and imge_<model>/<id>.h5", _find_pairs, _pair_evidence, _read_pair, _pair_outputs,
    _write_pair,
)  # fmt: skip
