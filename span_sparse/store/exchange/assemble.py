"""How does a slide of another system become a record of the store?

1. Its corners are fitted to a lattice (`lattice_fit`), with the choices the user made.
2. What the file states and what the user says are put together: resolution, sizes, the encoder's identity. Where both
   speak the user wins, and both are recorded; where they cannot both be true the slide is refused.
3. Everything the file said, and everything done to it, goes into the provenance under `imported`.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from span_sparse.errors import ExchangeError, LatticeError
from span_sparse.grid import Lattice, LatticeSpec
from span_sparse.store.exchange.lattice_fit import Choices, LatticeFit, fit_lattice
from span_sparse.store.exchange.lattice_step import StepKnowledge
from span_sparse.store.exchange.layout import IMPORTED, Files, check_features
from span_sparse.store.exchange.source import ImportSettings, Request, SourceSlide, pack_columns
from span_sparse.store.schema import SlideRecord
from span_sparse.types import EncoderIdentity

CHECKSUM_ALGORITHM: Final = "source-sha256"
"""Not of the slide, which an import does not see, but of the files the features came from."""

_MAX_MAGNIFICATION_RATIO: Final = math.sqrt(2)
"""Scanners' '20x' differ by some ten per cent; beyond this factor another magnification is nearer."""

_PIECE_BYTES: Final = 2**20


def describe_files(files: Files, folder: Path) -> list[dict[str, Any]]:
    """Path below the folder, size and sha256 of each file; of a folder, of all files in it together.

    Raises:
        OSError: a file cannot be read.
    """
    return [
        {"path": _inside(path, folder), "bytes": size, "sha256": digest}
        for path in files
        for size, digest in [_digest(path)]
    ]


def checksum(described: list[dict[str, Any]]) -> str:
    """One checksum of all files of a slide."""
    text = "\n".join(entry["sha256"] for entry in described)
    return f"{CHECKSUM_ALGORITHM}:{hashlib.sha256(text.encode()).hexdigest()}"


def _inside(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def _digest(path: Path) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    members = sorted(member for member in path.rglob("*") if member.is_file()) if path.is_dir() else [path]
    for member in members:
        if path.is_dir():
            digest.update(f"{member.relative_to(path).as_posix()}\0{member.stat().st_size}\0".encode())
        with member.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
                size += len(piece)
    return size, digest.hexdigest()


def assemble(source: SourceSlide, request: Request, format_name: str, described: list[dict[str, Any]]) -> SlideRecord:
    """The record of a slide.

    Args:
        source: what its files say.
        request: what the user says.
        format_name: of the format it was read as.
        described: its files, from `describe_files`.

    Raises:
        LatticeError: the coordinates lie on no lattice.
        ExchangeError: something is missing or contradictory.
    """
    settings = request.settings
    features = check_features(source.features)
    fit = _fit(source, settings)
    lattice = _lattice(source, request, fit)
    coords = lattice.to_px0(fit.grid)
    width, height, size_source = _size(source, request, lattice, coords)
    encoder, encoder_sources = _encoder(source, request, lattice)
    packed, layout = pack_columns(source.columns)
    provenance = {
        "format": format_name,
        "files": described,
        "attributes": dict(source.attributes),
        "columns": layout,
        "not_kept": list(source.not_kept),
        "num_source_rows": len(features),
        "lattice": fit.report,
        "declared_size_px0": list(source.size_px0[:2]) if source.size_px0 else None,
        "declared_encoder": source.encoder_name,
        "sources": {"size": size_source, **encoder_sources, **_lattice_sources(source, request)},
        "settings": settings.as_dict(),
    }
    ratios, classes = _ratios(source, settings, fit)
    return SlideRecord(
        slide_id=request.slide_id,
        case_id=request.case_id,
        features=features if len(fit.rows) == len(features) else features[fit.rows],
        grid=fit.grid,
        coords=coords,
        lattice=lattice,
        mpp_source=source.mpp.source,
        encoder=encoder,
        slide_checksum=checksum(described),
        width_px0=width,
        height_px0=height,
        provenance={IMPORTED: provenance},
        ratios=ratios,
        ratio_classes=classes,
        source_rows=fit.rows[:, None],
        source_coords=packed[fit.rows],
    )


def _fit(source: SourceSlide, settings: ImportSettings) -> LatticeFit:
    coords = source.coords_px0[:, ::-1] if settings.transposed else source.coords_px0
    knowledge = source.step
    if settings.step_px0 is not None:
        knowledge = replace(knowledge, stated_px0=float(settings.step_px0), slack_px0=0.0)
    elif settings.patch_px0 is not None and knowledge.likely_px0 is None:
        knowledge = StepKnowledge(
            knowledge.stated_px0, knowledge.slack_px0, float(settings.patch_px0), knowledge.tolerance_px0
        )
    return fit_lattice(coords, knowledge, Choices(settings.snap, settings.per_contour, settings.drop))


def _lattice(source: SourceSlide, request: Request, fit: LatticeFit) -> Lattice:
    size = request.choose("patch_size_px", source.patch_size_px, "the patch's edge in pixels, as the encoder saw it")
    target = request.choose("target_mpp", source.target_mpp, "the µm per pixel at which patches were read")
    edge = round(_patch_px0(source, request, fit))
    mpp = source.mpp.value
    read_mpp = edge * mpp / size.value
    if max(read_mpp / target.value, target.value / read_mpp) > _MAX_MAGNIFICATION_RATIO:
        raise ExchangeError(
            f"a patch of {edge} px of level 0 at {mpp:g} µm/px (from {source.mpp.source}) is {edge * mpp:.4g} µm wide, "
            f"but {size.value:g} px at {target.value:g} µm/px (from {target.source}) are "
            f"{size.value * target.value:.4g} µm: correct the µm per pixel of the slide, --target-mpp or --patch-size"
        )
    spec = LatticeSpec(round(size.value), float(target.value))
    return Lattice(spec, mpp, fit.step_px0, fit.origin_px0, edge - fit.step_px0)


def _patch_px0(source: SourceSlide, request: Request, fit: LatticeFit) -> float:
    if request.settings.patch_px0 is None and source.patch_px0 is None:
        return fit.step_px0
    return request.choose("patch_px0", source.patch_px0, "the patch's edge in level-0 pixels").value


def _lattice_sources(source: SourceSlide, request: Request) -> dict[str, str]:
    edge = request.settings.patch_px0
    stated = source.patch_px0.source if source.patch_px0 else "the step: patches do not overlap"
    return {
        "patch_size_px": request.choose("patch_size_px", source.patch_size_px, "").source,
        "target_mpp": request.choose("target_mpp", source.target_mpp, "").source,
        "patch_px0": "option --patch-px0" if edge is not None else stated,
    }


def _size(
    source: SourceSlide, request: Request, lattice: Lattice, coords: np.ndarray[Any, Any]
) -> tuple[int, int, str]:
    """Width and height in level-0 pixels, never less than the patches reach."""
    reach = coords.max(axis=0) + lattice.patch_px0
    if request.width_px0 is not None and request.height_px0 is not None:
        declared = request.width_px0, request.height_px0, "cohort"
    elif source.size_px0 is not None:
        declared = source.size_px0
    elif request.settings.size_from_patches:
        return int(reach[0]), int(reach[1]), "extent of the patches"
    else:
        raise ExchangeError(
            "the slide's size is not in the file; put columns width_px0 and height_px0 into the cohort table, or pass "
            "--size-from-patches to take the patches' extent"
        )
    width, height, said_by = declared
    if (coords.max(axis=0) >= (width, height)).any():
        swapped = bool((coords.max(axis=0)[::-1] < (width, height)).all())
        raise LatticeError(
            f"patches begin at up to {tuple(coords.max(axis=0).tolist())}, but the slide is {width} × {height} px "
            f"(from {said_by}); "
            + (
                "with x and y exchanged they would fit: pass --transposed"
                if swapped
                else "are these level-0 pixels of this slide? Correct the size, or leave it out of the table"
            )
        )
    if reach[0] > width or reach[1] > height:
        said_by = f"extent of the patches, beyond the declared {width} × {height} ({said_by})"
    return max(width, int(reach[0])), max(height, int(reach[1])), said_by


_EXAMPLES: Final = {
    "--encoder-name": "uni_v1",
    "--encoder-revision": "1",
    "--encoder-readout": "cls",
    "--encoder-input": "224",
}


def _encoder(source: SourceSlide, request: Request, lattice: Lattice) -> tuple[EncoderIdentity, dict[str, str]]:
    settings = request.settings
    said = {
        "name": (settings.encoder_name, source.encoder_name, "--encoder-name"),
        "revision": (settings.encoder_revision, None, "--encoder-revision"),
        "readout": (settings.encoder_readout, None, "--encoder-readout"),
        "input_size_px": (settings.encoder_input_px, None, "--encoder-input"),
    }
    if missing := [option for given, stated, option in said.values() if given is None and not stated]:
        known = f", only that it is {source.encoder_name!r}" if source.encoder_name else ""
        raise ExchangeError(
            f"the files do not say which encoder made the features{known}; pass {', '.join(missing)}, for example "
            + " ".join(f"{option} {_EXAMPLES[option]}" for option in missing)
        )
    values = {name: stated if given is None else given for name, (given, stated, _) in said.items()}
    sources = {
        f"encoder {name}": "file" if given is None else f"option {option}" for name, (given, _, option) in said.items()
    }
    spec = lattice.spec
    identity = EncoderIdentity(
        name=str(values["name"]),
        revision=str(values["revision"]),
        readout=str(values["readout"]),
        dimension=source.features.shape[1],
        input_size_px=int(values["input_size_px"] or 0),
        # the encoder sees the whole patch, enlarged or reduced to its input
        mpp=spec.patch_size_um / int(values["input_size_px"] or 1),
        precision=source.features.dtype.name,
    )
    return identity, sources


def _ratios(
    source: SourceSlide, settings: ImportSettings, fit: LatticeFit
) -> tuple[np.ndarray[Any, Any] | None, tuple[str, ...]]:
    if source.ratios is None:
        return None, ()
    if settings.ratio_class is None:
        raise ExchangeError("the file has annotation ratios without the name of their class; pass --ratio-class")
    return source.ratios[fit.rows, None].astype(np.float32), (settings.ratio_class,)
