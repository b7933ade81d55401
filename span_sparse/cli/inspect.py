"""What would the software see in this slide?

`span inspect SLIDE` prints format, size, levels, resolution and its source, tissue and patches, and writes the picture
in which all of it can be checked by eye. Nothing else is written, so it is the first thing to run on a new scanner.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from rich.table import Table

    from span_sparse.wsi import SlideReader

DESCRIPTION = "Show what is found in a slide (levels, resolution, tissue, patches) and write a QC picture."


def build_parser() -> ArgumentParser:
    """The options of `span inspect`."""
    parser = ArgumentParser(prog="span inspect", description=DESCRIPTION)
    parser.add_argument("slide", type=Path, help="slide file")
    parser.add_argument("--mpp", type=float | None, default=None, help="µm per pixel of the slide, instead of its tags")
    parser.add_argument("--patch-size", type=int, default=224, help="edge of a patch in pixels at the target mpp")
    parser.add_argument("--target-mpp", type=float, default=0.5, help="µm per pixel at which patches are read")
    parser.add_argument("--output", type=Path, default=Path(), help="folder of the picture (default: current folder)")
    return parser


def run(args: Namespace) -> int:
    """Print the facts, write `<slide name>_qc.png`; 0 when the slide can be extracted with these settings.

    Raises:
        SlideError: the slide cannot be opened or read, or holds no tissue (its picture is still written).
        LatticeError: it is smaller than a patch.
        MppError: its resolution is missing, implausible or coarser than the target.
    """
    from rich.console import Console

    from span_sparse.grid import LatticeSpec
    from span_sparse.wsi import TissueSettings, check_resolution, open_slide, resolve_mpp, segment_tissue, tissue_cells
    from span_sparse.wsi.qc_picture import write_qc_picture
    from span_sparse.wsi.tissue import require_cells, require_room, require_tissue

    console = Console(highlight=False)
    spec, settings = LatticeSpec(args.patch_size, args.target_mpp), TissueSettings()
    with open_slide(args.slide) as reader:
        table = _facts(reader)
        try:
            slide_mpp, source = resolve_mpp(reader, args.mpp)
            table.add_row("resolution", f"{slide_mpp:.6g} µm/px (source: {source})")
            table.add_row("extent", f"{_mm(reader.width_px0, slide_mpp)} × {_mm(reader.height_px0, slide_mpp)} mm")
            check_resolution(reader, slide_mpp, spec)
            lattice = spec.on_slide(slide_mpp)
            tissue = segment_tissue(reader, slide_mpp, settings)
            grid = tissue_cells(tissue, lattice, reader.width_px0, reader.height_px0)
            rows, cols = lattice.shape(reader.width_px0, reader.height_px0)
            table.add_row("tissue", f"{tissue.area_mm2:.4g} mm² (saturation > {tissue.threshold:.3f})")
            table.add_row("step", f"{lattice.step_px0} px = {lattice.step_um:.5g} µm")
            table.add_row("patches", f"{len(grid)} of {rows} × {cols} cells, {spec.patch_size_px} px each")
            args.output.mkdir(parents=True, exist_ok=True)
            picture = args.output / f"{reader.path.name}_qc.png"
            write_qc_picture(picture, reader, tissue, lattice, grid, source)
            table.add_row("picture", str(picture))
        finally:
            console.print(table)
        require_room(reader, lattice)
        require_tissue(tissue, settings, reader.path)
        require_cells(grid, lattice, reader)
    return 0


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
