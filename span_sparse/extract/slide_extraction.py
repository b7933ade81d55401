"""How does one slide become one record of the store?

open → µm per pixel → tissue → lattice cells → patches in batches → encoder → record → store. The store writes a slide
under a temporary name and marks it complete last, so whatever ends the program leaves whole slides only.

Whatever goes wrong with a slide becomes its `SlideStatus`; nothing is raised, because the next slide has nothing to do
with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from span_sparse.errors import SpanError
from span_sparse.extract.checksum import slide_checksum
from span_sparse.extract.encoder import PatchEncoder
from span_sparse.extract.process_list import DONE, FAILED, PENDING, SlideStatus
from span_sparse.grid import Lattice, LatticeSpec
from span_sparse.store import FeatureStore, SlideMetadata, SlideRecord
from span_sparse.wsi import (
    SlideReader,
    TissueMask,
    TissueSettings,
    check_resolution,
    open_slide,
    resolve_mpp,
    segment_tissue,
    tissue_cells,
)
from span_sparse.wsi.reader import RESAMPLING
from span_sparse.wsi.tissue import require_cells, require_room, require_tissue


@dataclass(frozen=True, slots=True)
class SlideTask:
    """A slide to extract.

    Attributes:
        slide_id: its id.
        case_id: its patient.
        path: its file.
        cohort_mpp: µm per pixel from the cohort table, None where that is silent.
    """

    slide_id: str
    case_id: str
    path: Path
    cohort_mpp: float | None


@dataclass(frozen=True, slots=True)
class ExtractionSettings:
    """What decides the content of a record, apart from slide and encoder, and how it is computed.

    Attributes:
        spec: the lattice asked for.
        tissue: how tissue is found.
        min_tissue_fraction: least share of tissue of a patch, in (0, 1].
        batch_size: patches in memory at a time.
    """

    spec: LatticeSpec
    tissue: TissueSettings = field(default_factory=TissueSettings)
    min_tissue_fraction: float = 0.5
    batch_size: int = 256

    def differences(self, stored: SlideMetadata, encoder: PatchEncoder) -> list[str]:
        """In what a slide of the store was extracted otherwise, as `name: ours != stored`; empty when alike."""
        found = [f"encoder {text}" for text in encoder.identity.differences(stored.encoder)]
        pairs: list[tuple[str, Any, Any]] = [
            ("patch_size_px", self.spec.patch_size_px, stored.lattice.spec.patch_size_px),
            ("target_mpp", self.spec.target_mpp, stored.lattice.spec.target_mpp),
            *(
                (f"tissue settings {key}", ours, stored.provenance.get(key))
                for key, ours in self.as_provenance().items()
            ),
        ]
        return found + [f"{name}: {ours!r} != {theirs!r}" for name, ours, theirs in pairs if ours != theirs]

    def as_provenance(self) -> dict[str, Any]:
        """The settings that the store keeps and a resumed run compares."""
        return {"tissue": asdict(self.tissue), "min_tissue_fraction": self.min_tissue_fraction}


@dataclass(frozen=True, slots=True)
class SlideExtraction:
    """The work on one slide; picklable, called as `work(task, report)`.

    Attributes:
        store: folder of the store, which exists (unless `dry_run`).
        settings: see there.
        encoder: turns patches into features.
        overwrite: do not look whether the slide is there already.
        dry_run: stop before tissue and pixels; write nothing.
    """

    store: Path
    settings: ExtractionSettings
    encoder: PatchEncoder
    overwrite: bool = False
    dry_run: bool = False

    def __call__(self, task: SlideTask, report: Callable[[int], None]) -> SlideStatus:
        """Extract, and say how it went."""
        start = time.perf_counter()
        try:
            status = self._extract(task, report)
        except SpanError as error:
            status = SlideStatus(task.slide_id, FAILED, str(error))
        except Exception as error:  # whatever a library raises on a damaged file must not end the others' run
            status = SlideStatus(task.slide_id, FAILED, f"{task.path}: {type(error).__name__}: {error}")
        return SlideStatus(
            status.slide_id,
            status.status,
            status.error,
            time.perf_counter() - start,
            status.num_patches,
            status.resumed,
        )

    def _extract(self, task: SlideTask, report: Callable[[int], None]) -> SlideStatus:
        with open_slide(task.path) as slide:
            slide_mpp, mpp_source = resolve_mpp(slide, task.cohort_mpp)
            check_resolution(slide, slide_mpp, self.settings.spec)
            lattice = self.settings.spec.on_slide(slide_mpp)
            checksum = slide_checksum(task.path)
            stored = self._stored(task.slide_id)
            if stored is not None and self._is_same(stored, lattice, checksum):
                return SlideStatus(task.slide_id, DONE, num_patches=stored.num_patches, resumed=True)
            if self.dry_run:
                return SlideStatus(task.slide_id, PENDING)
            tissue = segment_tissue(slide, slide_mpp, self.settings.tissue)
            require_room(slide, lattice)
            require_tissue(tissue, self.settings.tissue, slide.path)
            grid = tissue_cells(tissue, lattice, slide.width_px0, slide.height_px0, self.settings.min_tissue_fraction)
            require_cells(grid, lattice, slide)
            record = SlideRecord(
                slide_id=task.slide_id,
                case_id=task.case_id,
                features=self._encode(slide, lattice, grid, report),
                grid=grid,
                coords=lattice.to_px0(grid),
                lattice=lattice,
                mpp_source=mpp_source,
                encoder=self.encoder.identity,
                slide_checksum=checksum,
                width_px0=slide.width_px0,
                height_px0=slide.height_px0,
                provenance=self._provenance(slide, tissue),
            )
        report(0)
        FeatureStore(self.store).write(record, overwrite=stored is not None)
        return SlideStatus(task.slide_id, DONE, num_patches=len(grid))

    def _stored(self, slide_id: str) -> SlideMetadata | None:
        if self.dry_run and not self.store.exists():
            return None
        store = FeatureStore(self.store)
        return store.metadata(slide_id) if store.has(slide_id) else None

    def _is_same(self, stored: SlideMetadata, lattice: Lattice, checksum: str) -> bool:
        """Complete, from the same file, at the same resolution, with the same settings."""
        return (
            not self.overwrite
            and stored.slide_checksum == checksum
            and stored.lattice == lattice
            and not self.settings.differences(stored, self.encoder)
        )

    def _encode(
        self, slide: SlideReader, lattice: Lattice, grid: NDArray[np.int32], report: Callable[[int], None]
    ) -> NDArray[np.floating[Any]]:
        """Features `[patches, channels]` in the encoder's precision, a batch of patches at a time."""
        identity, size = self.encoder.identity, lattice.spec.patch_size_px
        features = np.empty((len(grid), identity.dimension), dtype=identity.precision)
        for start in range(0, len(grid), self.settings.batch_size):
            cells = grid[start : start + self.settings.batch_size].tolist()
            patches = np.stack([slide.read_region(lattice.box(row, col), size) for row, col in cells])
            features[start : start + len(cells)] = self.encoder(patches)
            report(len(cells))
        return features

    def _provenance(self, slide: SlideReader, tissue: TissueMask) -> dict[str, Any]:
        """How the record was made; nothing that differs between two runs of the same program."""
        return {
            **self.settings.as_provenance(),
            "program": f"span-sparse {version('span-sparse')}",
            "slide_file": slide.path.name,
            "vendor": slide.vendor,
            "bounds_px0": None if slide.bounds is None else list(slide.bounds),
            "resampling": RESAMPLING,
            "tissue_threshold": tissue.threshold,
            "tissue_mask_mpp": tissue.mpp,
            "tissue_area_mm2": tissue.area_mm2,
        }
