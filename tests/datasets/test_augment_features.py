"""What augmentation does to features, and how it reaches training; where patches go: test_augment.py."""

from __future__ import annotations

import math
from contextvars import Context

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import Trainer

from span_sparse.datasets.augment import (
    AugmentationSettings,
    add_noise,
    keep_patches,
    mix_features,
)
from span_sparse.datasets.datamodule import SlideDataModule
from span_sparse.datasets.slide_dataset import EpochIndex, SlideDataset, SlideItem
from span_sparse.errors import ConfigError
from span_sparse.store import FeatureStore

FULL = AugmentationSettings(probability=1.0, token_drop=0.3, feature_noise=0.2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def square(side: int) -> torch.Tensor:
    return torch.cartesian_prod(torch.arange(side), torch.arange(side))


class TestDropAndNoise:
    def test_drop_keeps_about_the_share_and_the_order(self) -> None:
        kept = keep_patches(20_000, 0.3, seeded())
        assert abs(len(kept) - 14_000) < 4 * math.sqrt(20_000 * 0.21)
        assert torch.equal(kept, kept.unique())

    def test_drop_keeps_at_least_one_patch(self) -> None:
        counts = [len(keep_patches(3, 0.95, seeded(seed))) for seed in range(200)]
        assert min(counts) == 1
        assert {int(keep_patches(3, 0.95, seeded(seed))[0]) for seed in range(200)} == {0, 1, 2}
        assert keep_patches(1, 0.95, seeded()).tolist() == [0]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_noise_is_relative_to_each_channel(self, dtype: torch.dtype) -> None:
        scale = torch.tensor([0.01, 1.0, 30.0, 0.0])
        features = (torch.randn(20_000, 4, generator=seeded(1)) * scale + 2).to(dtype)
        before = features.clone()
        noisy = add_noise(features, 0.25, seeded())
        assert noisy.dtype == dtype
        assert torch.equal(features, before)
        change = noisy.float() - features.float()
        assert change.std(0).tolist() == pytest.approx((0.25 * scale).tolist(), rel=0.05)
        assert change.mean(0).abs().max() < 4 * 0.25 * 30 / math.sqrt(20_000)
        one = features[:1]
        assert torch.equal(add_noise(one, 0.25, seeded()), one)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_mixup_stays_between_two_patches_of_the_slide(self, dtype: torch.dtype) -> None:
        features = torch.eye(50, dtype=dtype) * 8
        mixed = mix_features(features, 0.4, seeded())
        assert mixed.dtype == dtype
        mixed = mixed.float() / 8
        own, others = mixed.diagonal(), mixed - torch.diag(mixed.diagonal())
        torch.testing.assert_close(own + others.sum(dim=1), torch.ones(50), atol=2e-3, rtol=0)
        assert 0.6 - 1e-3 <= own.min() < 0.65  # own share 1 - U(0, 0.4)
        assert ((others > 0).sum(dim=1) <= 1).all()
        assert 0.15 < others.sum(dim=1)[others.sum(dim=1) > 0].mean() < 0.25
        assert torch.equal(mix_features(features, 0.0, seeded()), features)


class TestTraining:
    ITEMS = (SlideItem("s03", "p03", 1), SlideItem("s00", "p00", 0))

    def slides(self, cohort, seed: int = 0, **options) -> SlideDataset:
        return SlideDataset(
            FeatureStore(cohort.store), self.ITEMS, augment_seed=seed, **{"augmentation": FULL, **options}
        )

    def test_a_slide_depends_on_seed_epoch_and_index_alone(self, tiny_cohort) -> None:
        requests = [EpochIndex(index, epoch) for epoch in range(5) for index in (0, 1)]
        cached, uncached = self.slides(tiny_cohort, cache_mib=10.0), self.slides(tiny_cohort)
        forwards = {request: cached[request] for request in requests}
        torch.manual_seed(123)
        for request in reversed(requests):
            assert torch.equal(uncached[request].grid, forwards[request].grid)
            assert torch.equal(uncached[request].features, forwards[request].features)
        assert len({tuple(sample.grid.flatten().tolist()) for sample in forwards.values()}) == len(requests)
        twice = SlideDataset(uncached.store, self.ITEMS[:1] * 2, augment_seed=0, augmentation=FULL)
        assert twice[EpochIndex(0, 0)].grid.tolist() != twice[EpochIndex(1, 0)].grid.tolist()
        other = self.slides(tiny_cohort, seed=1)
        assert any(other[request].grid.tolist() != forwards[request].grid.tolist() for request in requests)

    def test_what_is_cached_stays_as_stored(self, tiny_cohort) -> None:
        data = self.slides(tiny_cohort, cache_mib=10.0)
        for epoch in range(5):
            data[EpochIndex(0, epoch)]
        record = FeatureStore(tiny_cohort.store).read("s03")
        assert data[0].features.numpy().tobytes() == record.features.tobytes()
        assert data[0].grid.numpy().tobytes() == record.grid.tobytes()

    def test_the_last_epochs_are_calmer(self, tiny_cohort) -> None:
        plain = self.slides(tiny_cohort)[0].grid
        data = self.slides(tiny_cohort, augmentation=AugmentationSettings(final_factor=0.0), num_epochs=50)
        changed = [not torch.equal(data[EpochIndex(0, epoch)].grid, plain) for epoch in range(50)]
        assert sum(changed[:10]) >= 8
        assert sum(changed[40:]) <= 3
        assert not changed[49]

    def test_nonsense_is_refused_before_training(self, tiny_cohort) -> None:
        data = SlideDataModule(
            str(tiny_cohort.store), str(tiny_cohort.csv), augment=AugmentationSettings(token_drop=2.0)
        )
        with pytest.raises(ConfigError, match=r"token_drop is 2\.0.* data\.augment"):
            data.setup()

    def test_the_data_module_knows_the_number_of_epochs(self, tiny_cohort, tmp_path) -> None:
        for max_epochs, expected in ((7, 7), (-1, None)):
            data = SlideDataModule(str(tiny_cohort.store), str(tiny_cohort.csv), augment=FULL)
            data.setup()
            data.trainer = Trainer(
                accelerator="cpu", max_epochs=max_epochs, logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
            )  # fmt: skip
            assert data.train_dataloader().dataset.num_epochs == expected
            assert data.val_dataloader().dataset.augment_seed is None
        no_trainer = SlideDataModule(str(tiny_cohort.store), str(tiny_cohort.csv), augment=FULL, batch_size=6)
        no_trainer.setup()
        (batch,) = no_trainer.train_dataloader()
        assert batch.num_slides == 6
        assert len(batch.coords.unique(dim=0)) == len(batch.features)

    @pytest.mark.parametrize(
        ("given_as", "expected"),
        [
            ("true", True),
            ("false", False),
            ("{}", AugmentationSettings()),
            ("{token_drop: 0.1, max_tilt_degrees: 15}", AugmentationSettings(token_drop=0.1, max_tilt_degrees=15.0)),
        ],
    )
    def test_in_yaml(self, tiny_cohort, given_as: str, expected) -> None:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(SlideDataModule, "data")
        text = (
            f"data: {{class_path: {SlideDataModule.__module__}.SlideDataModule, init_args: "
            f"{{store: {tiny_cohort.store}, cohort: {tiny_cohort.csv}, augment: {given_as}}}}}"
        )
        # A context of its own: what an earlier `parse_args` of this process leaves behind changes what `{}` becomes.
        config = Context().run(parser.parse_string, text)
        assert parser.instantiate(config).data.augment == expected
