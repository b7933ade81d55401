"""How do a store, a cohort table and a split become loaders for training, validation and test?

Everything that can be wrong with the data is found in `setup`, before the first step: a patient on two sides of a
split, a class without training slides, slides that are missing in the store, features of two encoders.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import BatchSampler, DataLoader

from span_sparse.cohort import CohortTable, read_cohort
from span_sparse.datasets.augment import AugmentationSettings
from span_sparse.datasets.batch import SlideSample
from span_sparse.datasets.batching import (
    EVALUATION_TOKENS_ON_GPU,
    TRAINING_TOKENS_ON_GPU,
    OrderedBatches,
    TokenBudgetSampler,
)
from span_sparse.datasets.loaders import SlideLoader, TrainingLoader
from span_sparse.datasets.prefetch import Placement, placement_for
from span_sparse.datasets.samplers import EvaluationSampler, TrainingSampler
from span_sparse.datasets.slide_dataset import SlideDataset, SlideItem
from span_sparse.datasets.splits import DEFAULT_SITE_COLUMN, require_trainable
from span_sparse.datasets.targets import read_targets
from span_sparse.datasets.task import AnyTask, ClassificationTask, SegmentationTask
from span_sparse.errors import CohortError, ConfigError, StoreError
from span_sparse.store import FeatureStore, LocallyCopiedStore

SPLITS = ("train", "val", "test")


class SlideDataModule(lightning.LightningDataModule):
    """Slides of a store with labels and splits of a cohort table.

    Args:
        store: folder of the feature store (`span extract` writes it).
        cohort: CSV with `slide_id, case_id`, the label and the split.
        label: column of the class names.
        split: column with `train`, `val` or `test` for every slide; slides without a value are left out.
        class_names: order of the classes; by default sorted names. The last one is the positive class of a binary task.
        task: anything but classification by `label` and `class_names`: a `MultiLabelTask`, `RegressionTask`,
            `SurvivalTask` or `SegmentationTask` of `span_sparse.datasets`.
        batch_size: slides a step and process. By default one; on a GPU, where neither this nor `max_tokens` nor
            `balance_classes` is given, a training step takes as many as have 100,000 patches together.
        max_tokens: in training, instead of `batch_size` slides, as many as have so many patches together (`batching`).
            On a GPU validation and test group slides so too, with 200,000 by default; it does not change their results
            but for rounding.
        max_tokens_per_slide: in training, a slide of more patches is a new random choice of so many in every epoch.
        num_workers: processes that read ahead; 0 reads in the training process.
        balance_classes: for classification: every class is drawn equally often in training. Not together with
            `class_weights`, which would correct twice, nor with `max_tokens`.
        augment: true: a random symmetry of the square for every training slide in every epoch. Settings, for example
            `{token_drop: 0.1}`: mirror, shear and rotation too, annealed over the trainer's `max_epochs`. false: none.
        cache_dir: folder on a fast disk of the node, for example `$SLURM_TMPDIR`: slides are copied there when they are
            first read, and read from there afterwards.
        cache_mib: memory for slides that have been read once, per process, in MiB.
        site_column: column of hospitals or scanners, if the table has it: a site that gives the class away is refused.
        allow_confounding: such a site is told, not refused.
        seed: of the order of the slides and of the augmentation.
    """

    def __init__(
        self,
        store: str,
        cohort: str,
        *,
        label: str = "label",
        split: str = "split",
        class_names: list[str] | None = None,
        task: AnyTask | None = None,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        max_tokens_per_slide: int | None = None,
        num_workers: int = 0,
        balance_classes: bool = False,
        augment: bool | AugmentationSettings = True,
        cache_dir: str | None = None,
        cache_mib: float = 1024.0,
        site_column: str = DEFAULT_SITE_COLUMN,
        allow_confounding: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._steps_are_chosen = batch_size is not None or max_tokens is not None or balance_classes
        batch_size = 1 if batch_size is None else batch_size
        if batch_size < 1 or num_workers < 0:
            raise ConfigError(f"batch_size {batch_size} must be at least 1, num_workers {num_workers} at least 0")
        for setting, limit in (("max_tokens", max_tokens), ("max_tokens_per_slide", max_tokens_per_slide)):
            if limit is not None and limit < 1:
                raise ConfigError(f"{setting} is {limit}, expected at least 1, or null for no limit")
        self.max_tokens, self.max_tokens_per_slide = max_tokens, max_tokens_per_slide
        self.store_path, self.cohort_path = Path(store), Path(cohort)
        if task is not None and (label != "label" or class_names):
            raise ConfigError(f"label {label!r} and class_names {class_names} belong to the task; give them there only")
        self.wanted_task: AnyTask = ClassificationTask(label, tuple(class_names or ())) if task is None else task
        if balance_classes and (max_tokens is not None or not isinstance(self.wanted_task, ClassificationTask)):
            raise ConfigError(
                "balance_classes draws slides by class: it needs a classification task and batch_size, not max_tokens"
            )
        self.balance_classes = balance_classes
        self.split_column = split
        self.batch_size, self.num_workers = batch_size, num_workers
        self.cache_dir = None if cache_dir is None else os.path.expandvars(cache_dir)
        if self.cache_dir is not None and "$" in self.cache_dir:
            raise ConfigError(f"cache_dir {cache_dir!r} names a variable that is not set here; set it, or give a path")
        self.site_column, self.allow_confounding = site_column, allow_confounding
        self.augment, self.cache_mib, self.seed = augment, cache_mib, seed
        self._slides_per_step = float(batch_size)
        self._task: AnyTask | None = None
        self._datasets: dict[str, SlideDataset] = {}

    @property
    def task(self) -> AnyTask:
        """What a model trained on these data is for, bound to the store's features; known after `setup`."""
        if self._task is None:
            self.setup()
        assert self._task is not None
        return self._task

    @property
    def slides_per_step(self) -> float:
        """Slides that a process has in a training step as a rule: `batch_size`, or the mean with `max_tokens`."""
        return self._slides_per_step

    def items(self, split: str) -> tuple[SlideItem, ...]:
        """The slides of a split, in the order of the cohort table."""
        return self._datasets[split].items if split in self._datasets else ()

    def setup(self, stage: str | None = None) -> None:
        """Reads the table, checks it against the store and builds the data sets; idempotent."""
        if self._task is not None:
            return
        self.wanted_task.check()
        cohort, store = read_cohort(self.cohort_path), self._store()
        cohort.check_no_leakage(self.split_column)
        split_of = cohort.splits(self.split_column)
        if idle := len(cohort.slide_ids) - len(split_of):
            rank_zero_info(
                f"note: {self.cohort_path}: {idle} of {len(cohort.slide_ids)} slides have no value in column "
                f"{self.split_column!r} and take no part"
            )
        task, target_of = read_targets(self.wanted_task, cohort, split_of, self.split_column)
        missing = [slide for slide in split_of if not store.has(slide)]
        if missing:
            raise StoreError(
                f"{self.store_path}: {len(missing)} of {len(split_of)} slides of {self.cohort_path} are not in the "
                f"store, first {missing[0]!r}; run `span extract` again (it resumes), or clear their split"
            )
        if isinstance(task, SegmentationTask):
            self._check_annotations(store, split_of, task)
        for split in SPLITS:
            items = [
                SlideItem(slide, cohort.case_of(slide), *target_of[slide])
                for slide, value in split_of.items()
                if value == split
            ]
            seed = self.seed if split == "train" and self.augment else None
            settings = self.augment if isinstance(self.augment, AugmentationSettings) else None
            if items:
                self._datasets[split] = SlideDataset(
                    store,
                    items,
                    augment_seed=seed,
                    augmentation=settings,
                    cache_mib=self.cache_mib,
                    max_tokens=self.max_tokens_per_slide,
                    subsample_seed=self.seed,
                    segmentation=task if isinstance(task, SegmentationTask) else None,
                )
        if "train" not in self._datasets or "val" not in self._datasets:
            raise CohortError(
                f"{self.cohort_path}: column {self.split_column!r} must put slides into train and val, "
                f"found {sorted(set(split_of.values()))}"
            )
        if isinstance(task, ClassificationTask):
            self._check_split(cohort, task)
        if isinstance(task, SegmentationTask):
            self._check_patch_classes(store, task)
        self._task = task.on(*store.common_identity(list(split_of)))
        if isinstance(store, LocallyCopiedStore):
            store.require_room(split_of)

    def _store(self) -> FeatureStore:
        if self.cache_dir is None:
            return FeatureStore(self.store_path)
        return LocallyCopiedStore(self.store_path, Path(self.cache_dir))

    def _check_split(self, cohort: CohortTable, task: ClassificationTask) -> None:
        """Refuses an empty class and a site that gives the class away."""
        told = require_trainable(
            cohort,
            self.split_column,
            label=task.column,
            site_column=self.site_column,
            allow_confounding=self.allow_confounding,
        )
        for problem in told:
            rank_zero_info(f"warning: {self.cohort_path}, {problem}")

    def _check_annotations(self, store: FeatureStore, split_of: dict[str, str], task: SegmentationTask) -> None:
        """Every slide of train and val is annotated, and all that are have the task's classes."""
        for slide, side in split_of.items():
            found = store.metadata(slide).ratio_classes
            absent = [name for name in task.classes if name not in found]
            if absent and (found or side != "test"):
                what = f"with {list(found)}, without {absent}" if found else "not at all"
                raise StoreError(
                    f"{self.store_path}: slide {slide!r} of split {side} is annotated {what}; run `span annotate` for "
                    f"the classes {list(task.classes)}, or clear its {self.split_column!r} in {self.cohort_path}"
                )

    def _check_patch_classes(self, store: FeatureStore, task: SegmentationTask) -> None:
        """Refuses a class that no training patch has; reads slides until all classes were seen."""
        absent = set(range(task.num_classes))
        for item in self.items("train"):
            ratios, found = store.read_ratios(item.slide_id), store.metadata(item.slide_id).ratio_classes
            if ratios is not None:
                columns = torch.from_numpy(ratios[:, [found.index(name) for name in task.classes]])
                absent -= set(task.patch_labels(columns).tolist())
            if not absent:
                return
        names = [task.class_names[label] for label in sorted(absent)]
        raise StoreError(
            f"{self.store_path}: no patch of the {len(self.items('train'))} training slides has the class {names[0]!r} "
            f"at the task's threshold {task.threshold:g} (share of a patch's area); lower the threshold, move "
            "annotated slides into train, or look at the annotations with `span inspect`"
        )

    def train_dataloader(self) -> DataLoader[SlideSample]:
        """Shuffled training slides."""
        dataset = self._datasets["train"]
        # a training limited by steps or time has no known number of epochs (None or -1): no annealing
        max_epochs = self.trainer.max_epochs if self.trainer is not None else None
        dataset.num_epochs = max_epochs if max_epochs is not None and max_epochs > 0 else None
        max_tokens = self._step_tokens()
        batches = self._training_batches(dataset, max_tokens)
        if self.trainer is not None:
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            batches.sampler.set_epoch(progress.processed)  # Lightning tells it when workers have begun to read
        order = {
            "slides": len(dataset),
            "processes": self._rank()[1],
            "batch_size": self.batch_size,
            "max_tokens": max_tokens,
            "balance_classes": self.balance_classes,
            "seed": self.seed,
        }
        return TrainingLoader(dataset, self.num_workers, batches=batches, order=order, placement=self._placement())

    def _step_tokens(self) -> int | None:
        """Most patches of a training step; None: it has `batch_size` slides."""
        if self._steps_are_chosen or not self._is_on_gpu():
            return self.max_tokens
        rank_zero_info(
            f"note: neither batch_size nor max_tokens is given: on a GPU a training step takes as many slides as have "
            f"{TRAINING_TOKENS_ON_GPU:,} patches together; batch_size: 1 trains slide by slide"
        )
        return TRAINING_TOKENS_ON_GPU

    def _training_batches(self, dataset: SlideDataset, max_tokens: int | None) -> Any:
        rank, world_size = self._rank()
        if max_tokens is None:
            labels = [item.label for item in dataset.items] if self.balance_classes else None
            sampler = TrainingSampler(len(dataset), seed=self.seed, rank=rank, world_size=world_size, balance=labels)
            return BatchSampler(sampler, self.batch_size, drop_last=False)  # pyright: ignore[reportArgumentType]
        budget = TokenBudgetSampler(
            dataset.num_tokens(), max_tokens=max_tokens, seed=self.seed, rank=rank, world_size=world_size
        )
        if budget.too_large:
            rank_zero_info(
                f"{len(budget.too_large)} of {len(dataset)} training slides have more than max_tokens "
                f"{max_tokens:,} patches, up to {max(budget.num_tokens):,}; each is a batch of its own "
                "(max_tokens_per_slide would train on a random choice of their patches)"
            )
        self._slides_per_step = len(dataset) / (len(budget) * world_size)
        return budget

    def val_dataloader(self) -> DataLoader[SlideSample]:
        """Validation slides, in order."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[SlideSample]:
        """Test slides, in order."""
        if "test" not in self._datasets:
            raise CohortError(f"{self.cohort_path}: column {self.split_column!r} puts no slide into test")
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: str) -> DataLoader[SlideSample]:
        dataset = self._datasets[split]
        rank, world_size = self._rank()
        sampler = EvaluationSampler(len(dataset), rank=rank, world_size=world_size)
        batches: dict[str, Any] = {"batch_size": self.batch_size, "sampler": sampler}
        if self._is_on_gpu():
            budget = EVALUATION_TOKENS_ON_GPU if self.max_tokens is None else self.max_tokens
            ordered = OrderedBatches(dataset.num_tokens(whole=True), max_tokens=budget, slides=sampler.indices)
            batches = {"batch_sampler": ordered}
        return SlideLoader(dataset, self.num_workers, placement=self._placement(), **batches)

    def _placement(self) -> Placement | None:
        """Training, validation and test on a GPU have their batches there, made ready ahead."""
        if self.trainer is None:
            return None
        network = getattr(self.trainer.lightning_module, "network", None)
        return placement_for(self.trainer.strategy.root_device, network)

    def _is_on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
