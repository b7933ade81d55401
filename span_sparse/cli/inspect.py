"""What would the software see in this slide?

`span inspect SLIDE` prints format, size, levels, what every source says of the resolution, tissue, artefacts and
patches, and writes the picture in which all of it can be checked by eye; with `--tissue-geojson` also the tissue's
outline, for QuPath. Nothing else is written, so it is the first thing to run on a new scanner.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from span_sparse.cli.tissue_option import TISSUE_HELP

if TYPE_CHECKING:
    from rich.table import Table

    from span_sparse.grid import Lattice
    from span_sparse.wsi import SlideReader, TissueMask, TissueSettings

DESCRIPTION = "Show what is found in a slide (levels, resolution, tissue, patches) and write a QC picture."


def build_parser() -> ArgumentParser:
    """The options of `span inspect`."""
    parser = ArgumentParser(prog="span inspect", description=DESCRIPTION)
    parser.add_argument("slide", type=Path, help="slide file")
    parser.add_argument("--mpp", type=float | None, default=None, help="µm per pixel of the slide, instead of its tags")
    parser.add_argument("--patch-size", type=int, default=224, help="edge of a patch in pixels at the target mpp")
    parser.add_argument("--target-mpp", type=float, default=0.5, help="µm per pixel at which patches are read")
    parser.add_argument("--allow-upsampling", action="store_true", help="enlarge patches if the slide is coarser")
    parser.add_argument("--tissue", type=dict[str, bool | float | str], default={}, help=TISSUE_HELP)
    parser.add_argument("--tissue-mask", type=Path | None, default=None, help="PNG, TIFF or GeoJSON that says so")
    parser.add_argument(
        "--tissue-mask-origin", type=str, default="slide", help="the mask shows the whole slide, or its bounds (QuPath)"
    )
    parser.add_argument(
        "--tissue-geojson", type=Path | None, default=None, help="write the tissue's outline, as QuPath counts pixels"
    )
    parser.add_argument("--output", type=Path, default=Path(), help="folder of the picture (default: current folder)")
    return parser


def run(args: Namespace) -> int:
    """Print the facts, write `<slide name>_qc.png`; 0 when the slide can be extracted with these settings.

    Raises:
        SlideError: the slide cannot be opened or read, or holds no tissue (its picture is still written).
        LatticeError: it is smaller than a patch.
        MppError: its resolution is missing, implausible, contradictory or coarser than the target.
        ConfigError: tissue settings that cannot work.
        AnnotationError: the tissue mask cannot be used.
    """
    from rich.console import Console

    from span_sparse.cli.tissue_option import tissue_settings
    from span_sparse.grid import LatticeSpec
    from span_sparse.wsi import check_resolution, mpp_sources, open_slide, resolve_mpp, segment_tissue, tissue_cells
    from span_sparse.wsi.qc_picture import write_qc_picture
    from span_sparse.wsi.tissue import require_cells, require_room, require_tissue

    console = Console(highlight=False)
    spec, settings = LatticeSpec(args.patch_size, args.target_mpp), tissue_settings(args.tissue)
    if args.tissue_mask is not None:
        settings = settings.with_mask_file(args.tissue_mask, args.tissue_mask_origin)
    with open_slide(args.slide) as reader:
        table = _facts(reader)
        try:
            for said_by, value in mpp_sources(reader, args.mpp).items():
                table.add_row(f"µm/px: {said_by}", value if isinstance(value, str) else f"{value:.6g}")
            slide_mpp, source = resolve_mpp(reader, args.mpp)
            table.add_row("resolution", f"{slide_mpp:.6g} µm/px (source: {source})")
            table.add_row("extent", f"{_mm(reader.width_px0, slide_mpp)} × {_mm(reader.height_px0, slide_mpp)} mm")
            enlargement = check_resolution(reader, slide_mpp, spec, allow_upsampling=args.allow_upsampling)
            lattice = spec.on_slide(slide_mpp)
            table.add_row("reading", _reading(reader, lattice, enlargement))
            tissue = segment_tissue(reader, slide_mpp, settings)
            grid = tissue_cells(tissue, lattice, reader.width_px0, reader.height_px0)
            rows, cols = lattice.shape(reader.width_px0, reader.height_px0)
            table.add_row("tissue", _tissue(tissue, settings))
            for name, share in tissue.removed_shares.items():
                table.add_row(f"removed: {name}", f"{share:.1%} of the area")
            table.add_row("step", f"{lattice.step_px0} px = {lattice.step_um:.5g} µm")
            table.add_row("patches", f"{len(grid)} of {rows} × {cols} cells, {spec.patch_size_px} px each")
            args.output.mkdir(parents=True, exist_ok=True)
            picture = args.output / f"{reader.path.name}_qc.png"
            write_qc_picture(picture, reader, tissue, lattice, grid, source)
            table.add_row("picture", str(picture))
            if args.tissue_geojson is not None:
                _write_outline(args.tissue_geojson, reader, tissue)
                table.add_row("outline", str(args.tissue_geojson))
        finally:
            console.print(table)
        require_room(reader, lattice)
        require_tissue(tissue, settings, reader.path)
        require_cells(grid, lattice, reader)
    return 0


def _reading(reader: SlideReader, lattice: Lattice, enlargement: float) -> str:
    """From which level patches are read, and how they get their size."""
    from span_sparse.wsi import pick_level
    from span_sparse.wsi.reader import resampling

    needed = lattice.step_px0 / lattice.spec.patch_size_px
    level = pick_level(reader.level_downsamples, needed)
    factor, filters = needed / reader.level_downsamples[level], resampling(reader, needed)
    if enlargement > 1:
        return f"level {level}, enlarged {1 / factor:.4g} times ({filters})"
    return f"level {level}, " + (f"reduced {factor:.4g} times ({filters})" if factor != 1 else "as it is")


def _tissue(tissue: TissueMask, settings: TissueSettings) -> str:
    """Area and how it was found."""
    found = f"{tissue.area_mm2:.4g} mm² by {tissue.method}"
    if settings.mask_file:
        return f"{found} ({settings.mask_file})"
    what = "saturation" if tissue.method == "otsu" else "stain density"
    return f"{found} ({what} > {tissue.threshold:.3f})"


def _write_outline(path: Path, reader: SlideReader, tissue: TissueMask) -> None:
    """QuPath shows the bounds of a slide only, and counts from their corner."""
    from span_sparse.wsi import tissue_polygons
    from span_sparse.wsi.geojson import write_geojson

    bounds = reader.bounds
    write_geojson(path, tissue_polygons(tissue, (0, 0) if bounds is None else (bounds.x0, bounds.y0)))


def _facts(reader: SlideReader) -> Table:
    """What the file says of itself."""
    from rich.table import Table

    table = Table("property", "value", title=reader.path.name.replace("[", "\\["), title_justify="left")
    table.add_row("format", reader.vendor)
    table.add_row("size", f"{reader.width_px0} × {reader.height_px0} px")
    for level, ((width, height), factor) in enumerate(
        zip(reader.level_shapes, reader.level_downsamples, strict=True),
    ):
        table.add_row(f"level {level}", f"{width} × {height} px, downsample {factor:.6g}")
    bounds = reader.bounds
    table.add_row(
        "bounds", "whole slide" if bounds is None else f"({bounds.x0}, {bounds.y0}) – ({bounds.x1}, {bounds.y1})"
    )
    return table


def _mm(length_px0: int, slide_mpp: float) -> str:
    return f"{length_px0 * slide_mpp / 1000:.3g}"
