"""What is kept of a slide for people, beside its features?

Two small files in folders beside the store, named like the slide's folder in the store:

* `STORE.tissue/<slide>.geojson`: outline of the tissue in level-0 pixels;
* `STORE.qc/<slide>.jpg`: thumbnail with outline (green) and the cells that become patches (blue), for the page of the
  cohort. `span inspect` draws a large one, with scale bar and figures.

They are made where the slide is open, as bytes, and written where the slide's record is, before it: what is complete in
the store has its pictures.
"""

from __future__ import annotations

import io
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion

from span_sparse.errors import SlideError
from span_sparse.grid import Lattice
from span_sparse.store.naming import group_name
from span_sparse.wsi import SlideReader, TissueMask, read_thumbnail
from span_sparse.wsi.polygons import tissue_polygons
from span_sparse.wsi.thumbnail import thumbnail_shape

OUTLINE: Final = ".geojson"
THUMBNAIL: Final = ".jpg"
FOLDERS: Final = {OUTLINE: "tissue", THUMBNAIL: "qc"}

LONGEST_EDGE_PX: Final = 480
"""Of a thumbnail: legible on a phone, and a cohort of 1,000 slides has 30 MB of them."""

JPEG_QUALITY: Final = 80
OUTLINE_COLOUR: Final = (0, 122, 51)
CELL_COLOUR: Final = (0, 68, 204)


def picture_path(store: Path, slide_id: str, suffix: str) -> Path:
    """Where the outline or the thumbnail of a slide lies."""
    return store.with_name(f"{store.name}.{FOLDERS[suffix]}") / f"{group_name(slide_id)}{suffix}"


def slide_pictures(
    reader: SlideReader, tissue: TissueMask, lattice: Lattice, grid: NDArray[np.int32]
) -> dict[str, bytes]:
    """Content of the files by suffix; a slide that cannot be read as a whole has no thumbnail.

    Args:
        reader: the open slide.
        tissue: its tissue, possibly none.
        lattice: its lattice.
        grid: cells that become patches, int32 `[patches, 2]`.
    """
    pictures = {OUTLINE: json.dumps(tissue_polygons(tissue), allow_nan=False).encode()}
    with suppress(SlideError):  # the patches will tell
        pictures[THUMBNAIL] = _thumbnail(reader, tissue, lattice, grid)
    return pictures


def _thumbnail(reader: SlideReader, tissue: TissueMask, lattice: Lattice, grid: NDArray[np.int32]) -> bytes:
    scale_px0 = max(1, math.ceil(max(reader.width_px0, reader.height_px0) / LONGEST_EDGE_PX))
    rgb = read_thumbnail(reader, scale_px0, np.zeros(thumbnail_shape(reader, scale_px0), np.bool_))
    rows, cols = (
        np.minimum(np.arange(num_pixels) * scale_px0 // tissue.scale_px0, num_cells - 1)
        for num_pixels, num_cells in zip(rgb.shape[:2], tissue.mask.shape, strict=True)
    )
    _draw_cells(rgb, lattice, grid, scale_px0)
    mask = tissue.mask[np.ix_(rows, cols)]
    inner = np.asarray(binary_erosion(mask, iterations=2), dtype=np.bool_)
    rgb[mask & ~inner] = OUTLINE_COLOUR
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format="jpeg", quality=JPEG_QUALITY, subsampling="4:4:4")  # thin lines
    return file.getvalue()


def _draw_cells(rgb: NDArray[np.uint8], lattice: Lattice, grid: NDArray[np.int32], scale_px0: int) -> None:
    """Tint the cells, and separate them by lines where they are large enough to be told apart."""
    if not len(grid):
        return
    is_patch = np.zeros(grid.max(axis=0) + 1, np.bool_)
    is_patch[grid[:, 0], grid[:, 1]] = True
    along = [np.arange(num_pixels) * scale_px0 // lattice.step_px0 for num_pixels in rgb.shape[:2]]
    inside = [cells < limit for cells, limit in zip(along, is_patch.shape, strict=True)]
    tint = np.ix_(*inside)
    drawn = is_patch[np.ix_(*(cells[known] for cells, known in zip(along, inside, strict=True)))]
    share = np.where(drawn, 0.2, 0.0)
    if lattice.step_px0 >= 5 * scale_px0:
        edges = [np.diff(cells[known], prepend=-1) > 0 for cells, known in zip(along, inside, strict=True)]
        share[drawn & (edges[0][:, None] | edges[1][None, :])] = 0.6
    pixels = rgb[tint]
    rgb[tint] = (pixels + (np.array(CELL_COLOUR) - pixels) * share[..., None]).astype(np.uint8)
