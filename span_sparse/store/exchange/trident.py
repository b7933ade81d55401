"""How does TRIDENT lay out features?

`features_<encoder>/<slide>.h5` with `features` and `coords` (int64, top-left corners at level 0); or `.pt` files whose
coordinates are in `patches/<slide>_patches.h5`, row by row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    nominal_magnification,
    one_folder,
    peek,
)
from span_sparse.store.exchange.source import Request, SourceSlide, Stated, TensorFiles


def _find(folder: Path) -> dict[str, Files]:
    features = one_folder(folder, "features_*", what="features") or folder
    found: dict[str, Files] = {slide: (path,) for slide, path in list_files(features, ".h5").items()}
    for slide, path in list_files(features, ".pt").items():
        patches = features.parent / "patches" / f"{slide}_patches.h5"
        if slide not in found:
            found[slide] = (path, patches)
    return found


def _evidence(folder: Path) -> str | None:
    seen = peek(folder, "**/features_*/**/*") or peek(folder)
    if seen and {"features", "coords"} <= set(seen[1]) and "patch_size_level0" in seen[1]["coords"]:
        return f"features and coords with patch_size_level0 in {seen[0].relative_to(folder)}"
    return None


def _read(files: Files, request: Request, tensors: TensorFiles) -> SourceSlide:
    attributes: dict[str, Any] = {}
    lost: list[str] = []
    with open_hdf5(files[-1]) as file:
        coords = read_dataset(file, "coords")
        for place in ("/", "coords", "features"):
            if place in file:
                attributes[place], missing = read_attributes(file[place])  # type: ignore[arg-type]
                lost += missing
        features = read_dataset(file, "features") if len(files) == 1 else tensors.read(files[0])
        attributes["extras"], missing = read_extras(file, ("features", "coords"))
    check_features(features)
    check_rows(features, {"coords": coords})
    said = plain(attributes["coords"])
    patch, edge, overlap = (_number(said, name) for name in ("patch_size", "patch_size_level0", "overlap"))
    step = None if edge is None or patch is None else edge - round((overlap or 0) * edge / patch)
    power, target = _number(said, "level0_magnification"), _number(said, "target_magnification")
    width, height = _number(said, "level0_width"), _number(said, "level0_height")
    return SourceSlide(
        features=features,
        coords_px0=check_xy(coords),
        columns={"coords": coords},
        # the patch is floored and the step rounded there: they may differ by a pixel
        step=StepKnowledge(stated_px0=step, slack_px0=1.0),
        mpp=request.slide_mpp(Stated(10 / power, "level0_magnification") if power else None),
        target_mpp=Stated(10 / target, "10 / target_magnification") if target else None,
        patch_size_px=Stated(patch, "patch_size") if patch else None,
        patch_px0=Stated(edge, "patch_size_level0") if edge else None,
        size_px0=(round(width), round(height), "level0_width, level0_height") if width and height else None,
        encoder_name=plain(attributes.get("features", {})).get("encoder"),
        attributes=attributes,
        not_kept=(*lost, *missing),
    )


def _number(values: dict[str, Any], name: str) -> float | None:
    """A number of the attributes; None where there is none or it is 'None'."""
    value = values.get(name)
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ExchangeError(f"attribute {name!r} of the coordinates is {value!r}, expected a number") from error


def _outputs(slide_id: str) -> tuple[str, ...]:
    return (f"{slide_id}.h5",)


def _write(slide: ExportSlide, folder: Path, tensors: TensorFiles) -> None:
    record, lattice = slide.record, slide.record.lattice
    patch = lattice.spec.patch_size_px
    stated = {
        "patch_size": patch,
        "patch_size_level0": slide.patch_px0,
        "level0_magnification": nominal_magnification(lattice.slide_mpp),
        "target_magnification": nominal_magnification(lattice.spec.target_mpp),
        "overlap": round(lattice.overlap_px0 * patch / slide.patch_px0),
        "name": record.slide_id,
        "savetodir": "None",
        "level0_width": record.width_px0,
        "level0_height": record.height_px0,
    }
    extras = slide.decoded("extras")
    write_hdf5(
        folder / _outputs(record.slide_id)[0],
        {"features": slide.features(), "coords": slide.coords()} | extras,
        {
            "/": slide.decoded("/"),
            "coords": slide.decoded("coords") or stated,
            "features": slide.decoded("features")
            or {"name": record.slide_id, "savetodir": "None", "encoder": record.encoder.name},
        },
    )


TRIDENT = Format("trident", "features_<encoder>/<slide>.h5 or .pt", _find, _evidence, _read, _outputs, _write)
