"""How does the demo become training data? By the same path as a real cohort: slides → tissue → features → store."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from rich.console import Console

from span_sparse.cohort import read_cohort
from span_sparse.datasets.augment import AugmentationSettings
from span_sparse.datasets.datamodule import SlideDataModule
from span_sparse.datasets.demo import DEMO_SPEC, make_demo_cohort
from span_sparse.datasets.demo_targets import NEST, SURVIVAL_TABLE, annotate_nests, write_survival_table
from span_sparse.datasets.task import ClassificationTask, SegmentationTask, SurvivalTask
from span_sparse.errors import SlideError
from span_sparse.extract import StainTextureEncoder, extract_cohort
from span_sparse.store import FeatureStore

_TASKS: Final = {
    "class": ClassificationTask(class_names=("scattered", "clustered")),
    "survival": SurvivalTask(),
    "nests": SegmentationTask((NEST,)),
}


class DemoDataModule(SlideDataModule):
    """The embedded demo cohort; made on first use, reused afterwards.

    Args:
        root: folder of the demo's slides, table and store.
        learn: the class of a slide, the survival of its patient, or the patches of its nests (`demo_targets`).
        batch_size: slides a step and process.
        num_workers: processes that read ahead.
        augment: as in `SlideDataModule`.
        seed: of the order of the slides and of the augmentation; the slides themselves are always the same.
        build_processes: processes that paint and read the slides.
    """

    def __init__(
        self,
        root: str = "data/demo",
        *,
        learn: Literal["class", "survival", "nests"] = "class",
        batch_size: int = 8,
        num_workers: int = 0,
        augment: bool | AugmentationSettings = True,
        seed: int = 0,
        build_processes: int = 2,
    ) -> None:
        folder = Path(root)
        super().__init__(
            store=str(folder / "features.zarr"),
            cohort=str(folder / (SURVIVAL_TABLE if learn == "survival" else "cohort.csv")),
            task=_TASKS[learn],
            batch_size=batch_size,
            num_workers=num_workers,
            augment=augment,
            seed=seed,
        )
        self.root, self.learn, self.build_processes = folder, learn, build_processes

    def prepare_data(self) -> None:
        """Paints the slides and extracts their features; Lightning calls this in one process only."""
        cohort = read_cohort(make_demo_cohort(self.root, num_processes=self.build_processes))
        complete = self.store_path.exists() and FeatureStore(self.store_path).slide_ids == cohort.slide_ids
        statuses = extract_cohort(
            cohort,
            self.root / "slides",
            self.store_path,
            spec=DEMO_SPEC,
            encoder=StainTextureEncoder(input_size_px=DEMO_SPEC.patch_size_px, mpp=DEMO_SPEC.target_mpp),
            workers=self.build_processes,
            console=None if complete else Console(stderr=True, highlight=False),
        )
        failed = [status for status in statuses if status.error]
        if failed:
            raise SlideError(f"{len(failed)} demo slides failed, first {failed[0].slide_id}: {failed[0].error}")
        if self.learn == "survival":
            write_survival_table(self.root)
        if self.learn == "nests":
            annotate_nests(self.root)
