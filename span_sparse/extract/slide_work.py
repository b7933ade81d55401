"""A worker's side of an extraction: planning slides, reading their cells, describing them.

Three kinds of requests, in any order, for any slides:

* **plan**: open → µm per pixel → is it in the store already? → tissue → cells of the lattice. The answer holds all that
  reading needs.
* **read**: some cells of a planned slide into a slot of pixels; where the encoder works here, their features.
* **describe**: what a planned slide needs besides before it is written, and reading need not wait for: the checksum of
  its file and its two pictures, outline and thumbnail.

A worker keeps the slide of its last request open, and the tissue of its last plans for their descriptions; another
worker finds that tissue again. Several workers may read the same slide.

A tile that cannot be read costs its patch: the reader, which opens the file again after an error, goes on with the next
cell. Whatever else goes wrong with a slide becomes its `SlideStatus`; nothing is
raised, because the next slide has nothing to do with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import SlideError, SpanError
from span_sparse.extract.checksum import slide_checksum
from span_sparse.extract.encoder import PatchEncoder
from span_sparse.extract.process_list import DONE, FAILED, PENDING, SlideStatus
from span_sparse.extract.settings import ExtractionSettings, SlideTask
from span_sparse.extract.slide_pictures import slide_pictures
from span_sparse.grid import Lattice
from span_sparse.store import FeatureStore, SlideMetadata, SlideRecord
from span_sparse.types import EncoderIdentity
from span_sparse.version import NAME, package_version
from span_sparse.wsi import (
    SlideReader,
    TissueMask,
    check_resolution,
    mpp_sources,
    open_slide,
    resolve_mpp,
    segment_tissue,
    tissue_cells,
)
from span_sparse.wsi.reader import RESAMPLING, resampling
from span_sparse.wsi.tissue import require_cells, require_room, require_tissue


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """Find out what is to be read of a slide; answered with a `Plan`."""

    task: SlideTask


@dataclass(frozen=True, slots=True, eq=False)
class ReadRequest:
    """Read some cells of a slide; answered with a `Batch`.

    Attributes:
        task: the slide.
        lattice: its lattice.
        cells: int32 `[cells, 2]`, at most a batch.
        start: position of the first among the slide's cells.
        slot: where the pixels go.
    """

    task: SlideTask
    lattice: Lattice
    cells: NDArray[np.int32]
    start: int
    slot: int


@dataclass(frozen=True, slots=True, eq=False)
class DescribeRequest:
    """Describe a planned slide; answered with a `Description`.

    Attributes:
        task: the slide.
        lattice: its lattice.
        cells: int32 `[cells, 2]`, all of its cells.
    """

    task: SlideTask
    lattice: Lattice
    cells: NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What a slide needs, or why it needs nothing.

    Attributes:
        outcome: the record without features (no rows) and checksum (empty), or the end of the work on this slide.
        pictures: content of the files about a slide whose work has ended, by suffix, `.geojson` and `.jpg`.
    """

    outcome: SlideRecord | SlideStatus
    pictures: dict[str, bytes]


@dataclass(frozen=True, slots=True, eq=False)
class Description:
    """What is written with a slide besides its features.

    Attributes:
        checksum: of its file.
        pictures: content of the files about it by suffix, `.geojson` and `.jpg`.
        error: why there is neither; empty when there are both.
    """

    checksum: str
    pictures: dict[str, bytes]
    error: str = ""


Request = PlanRequest | ReadRequest | DescribeRequest


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Cells that were read.

    Attributes:
        good: bool `[cells]`, those that could be; their patches lie one after the other in the slot.
        features: `[good cells, channels]`; None where the encoder works elsewhere.
        error: why the first of the others could not be read, or, if `good` is None, why nothing more can be done.
    """

    good: NDArray[np.bool_] | None
    features: NDArray[np.floating[Any]] | None = None
    error: str = ""


MAX_KEPT_TISSUES: Final = 2
"""Of plans whose description was not asked for yet; the mask of a large slide has 32 MB."""


class SlideWork:
    """The worker's side; picklable, called as `work(request, slots)`.

    Args:
        store: folder of the store.
        settings: see there.
        identity: of the encoder.
        encoder: turns patches into features; None where that happens elsewhere.
        overwrite: do not look whether a slide is there already.
        dry_run: stop before tissue and pixels.
    """

    def __init__(
        self,
        store: Path,
        settings: ExtractionSettings,
        identity: EncoderIdentity,
        encoder: PatchEncoder | None,
        *,
        overwrite: bool = False,
        dry_run: bool = False,
    ) -> None:
        self._store, self._settings, self._identity, self._encoder = store, settings, identity, encoder
        self._overwrite, self._dry_run = overwrite, dry_run
        self._open: SlideReader | None = None
        self._tissues: dict[str, TissueMask] = {}

    def __call__(self, request: Request, slots: NDArray[np.uint8]) -> Plan | Batch | Description:
        """Answer a request."""
        path = request.task.path
        try:
            if isinstance(request, PlanRequest):
                return self._plan(request.task)
            if isinstance(request, DescribeRequest):
                return self._describe(request)
            return self._read(request, slots[request.slot])
        except SpanError as error:
            reason = str(error)
        except Exception as error:  # whatever a library raises on a damaged file must not end the others' run
            reason = f"{path}: {type(error).__name__}: {error}"
        self.close()
        if isinstance(request, PlanRequest):
            return Plan(SlideStatus(request.task.slide_id, FAILED, reason), {})
        return Description("", {}, reason) if isinstance(request, DescribeRequest) else Batch(None, error=reason)

    def close(self) -> None:
        """Close the slide that is open."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _reader(self, path: Path) -> SlideReader:
        if self._open is None or self._open.path != path:
            self.close()
            self._open = open_slide(path)
        return self._open

    def _plan(self, task: SlideTask) -> Plan:
        slide, settings = self._reader(task.path), self._settings
        slide_mpp, mpp_source = resolve_mpp(slide, task.cohort_mpp)
        check_resolution(slide, slide_mpp, settings.spec, allow_upsampling=settings.allow_upsampling)
        lattice = settings.spec.on_slide(slide_mpp)
        stored = self._stored(task, slide, lattice)
        if stored is not None:
            failed = stored.provenance.get("num_failed_patches", 0)
            return Plan(
                SlideStatus(task.slide_id, DONE, num_patches=stored.num_patches, failed_patches=failed, resumed=True),
                {},
            )
        if self._dry_run:
            return Plan(SlideStatus(task.slide_id, PENDING), {})
        tissue = segment_tissue(slide, slide_mpp, task.tissue)
        size_px0 = slide.width_px0, slide.height_px0
        grid = tissue_cells(tissue, lattice, *size_px0, settings.min_tissue_fraction)
        try:
            require_room(slide, lattice)
            require_tissue(tissue, task.tissue, slide.path)
            require_cells(grid, lattice, slide)
        except SpanError as error:  # the pictures show why
            pictures = slide_pictures(slide, tissue, lattice, grid)
            return Plan(SlideStatus(task.slide_id, FAILED, str(error)), pictures)
        self._keep(task, tissue)
        return Plan(self._record(task, slide, tissue, lattice, grid, mpp_source), {})

    def _keep(self, task: SlideTask, tissue: TissueMask) -> None:
        self._tissues[task.slide_id] = tissue
        while len(self._tissues) > MAX_KEPT_TISSUES:
            del self._tissues[next(iter(self._tissues))]

    def _describe(self, request: DescribeRequest) -> Description:
        slide, task = self._reader(request.task.path), request.task
        tissue = self._tissues.pop(task.slide_id, None)
        if tissue is None:  # another worker planned it, or too many plans ago
            tissue = segment_tissue(slide, request.lattice.slide_mpp, task.tissue)
        pictures = slide_pictures(slide, tissue, request.lattice, request.cells)
        return Description(slide_checksum(task.path), pictures)

    def _record(
        self,
        task: SlideTask,
        slide: SlideReader,
        tissue: TissueMask,
        lattice: Lattice,
        grid: NDArray[np.int32],
        mpp_source: str,
    ) -> SlideRecord:
        return SlideRecord(
            slide_id=task.slide_id,
            case_id=task.case_id,
            features=np.empty((0, self._identity.dimension), self._identity.precision),
            grid=grid,
            coords=lattice.to_px0(grid),
            lattice=lattice,
            mpp_source=mpp_source,
            encoder=self._identity,
            slide_checksum="",
            width_px0=slide.width_px0,
            height_px0=slide.height_px0,
            provenance=self._provenance(task, slide, tissue),
        )

    def _resampling(self, slide: SlideReader, slide_mpp: float) -> str:
        lattice = self._settings.spec.on_slide(slide_mpp)
        return resampling(slide, lattice.step_px0 / lattice.spec.patch_size_px)

    def _stored(self, task: SlideTask, slide: SlideReader, lattice: Lattice) -> SlideMetadata | None:
        """The slide in the store, if it is complete, from the same file, resolution and settings, shrunk likewise."""
        if self._overwrite or (self._dry_run and not self._store.exists()):
            return None
        store = FeatureStore(self._store)
        if not store.has(task.slide_id):
            return None
        stored = store.metadata(task.slide_id)
        if stored.lattice != lattice or self._settings.differences_of_slide(stored, self._identity, task.tissue):
            return None
        if stored.provenance.get("resampling", RESAMPLING) != self._resampling(slide, lattice.slide_mpp):
            return None
        return stored if stored.slide_checksum == slide_checksum(task.path) else None

    def _provenance(self, task: SlideTask, slide: SlideReader, tissue: TissueMask) -> dict[str, Any]:
        """How the record was made; nothing that differs between two runs of the same program."""
        return {
            **self._settings.provenance(task.tissue),
            "program": f"{NAME} {package_version()}",
            "slide_file": slide.path.name,
            "vendor": slide.vendor,
            "bounds_px0": None if slide.bounds is None else list(slide.bounds),
            "resampling": self._resampling(slide, tissue.slide_mpp),
            "enlargement": max(1.0, tissue.slide_mpp / self._settings.spec.target_mpp),
            "mpp_sources": mpp_sources(slide, task.cohort_mpp),
            "tissue_threshold": tissue.threshold,
            "tissue_mask_mpp": tissue.mpp,
            "tissue_area_mm2": tissue.area_mm2,
            "tissue_removed_shares": tissue.removed_shares,
        }

    def _read(self, request: ReadRequest, pixels: NDArray[np.uint8]) -> Batch:
        size = request.lattice.spec.patch_size_px
        good = np.zeros(len(request.cells), np.bool_)
        num_good, first_error = 0, ""
        slide = self._reader(request.task.path)
        for index, (row, col) in enumerate(request.cells.tolist()):
            try:
                pixels[num_good] = slide.read_region(request.lattice.box(row, col), size)
            except SlideError as error:
                first_error = first_error or str(error)
                continue
            good[index] = True
            num_good += 1
        features = None
        if self._encoder is not None:
            features = checked(self._identity, self._encoder(pixels[:num_good]), num_good)
        return Batch(good, features, first_error)


def checked(identity: EncoderIdentity, features: NDArray[Any], num_patches: int) -> NDArray[np.floating[Any]]:
    """Features `[patches, dimension]` in the encoder's precision.

    Raises:
        ValueError: the encoder gave another shape.
    """
    features = np.asarray(features)
    if features.shape != (num_patches, identity.dimension):
        raise ValueError(
            f"the encoder {identity.name} gave features {list(features.shape)} for {num_patches} patches, "
            f"expected {[num_patches, identity.dimension]}"
        )
    return features.astype(identity.precision, copy=False)
