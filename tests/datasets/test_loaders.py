from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import torch

from span_sparse.datasets.datamodule import SlideDataModule
from span_sparse.datasets.loaders import TrainingLoader
from span_sparse.errors import CheckpointError


def loader(cohort, **settings) -> TrainingLoader:
    data = SlideDataModule(str(cohort.store), str(cohort.csv), **settings)
    data.setup()
    found = data.train_dataloader()
    assert isinstance(found, TrainingLoader)
    return found


def slides(batches) -> list[list[int]]:
    return [batch.indices.tolist() for batch in batches]


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"batch_size": 4}, {"max_tokens": 40}])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_it_goes_on_after_every_batch(tiny_cohort, settings, num_workers) -> None:
    """With workers, too, which have read ahead when the state is taken."""
    whole = loader(tiny_cohort, **settings)
    order = slides(whole)
    assert sum(map(len, order)) == 6
    for taken in range(len(order)) if num_workers == 0 else [len(order) // 2]:
        first = loader(tiny_cohort, num_workers=num_workers, **settings)
        batches = iter(first)
        for _ in range(taken):
            next(batches)
        second = loader(tiny_cohort, num_workers=num_workers, **settings)
        second.load_state_dict(first.state_dict())
        assert len(second) == len(order)
        rest = iter(second)
        assert second.state_dict()["batches_taken"] == taken
        assert slides(rest) == order[taken:]
        assert slides(second) == order  # the next epoch is whole
        assert second.state_dict()["batches_taken"] == len(order)


def test_the_order_is_that_of_a_plain_loader(tiny_cohort) -> None:
    from torch.utils.data import DataLoader

    from span_sparse.datasets.batch import collate
    from span_sparse.datasets.samplers import TrainingSampler

    ours = loader(tiny_cohort, batch_size=4, seed=3)
    sampler = TrainingSampler(6, seed=3)
    plain = DataLoader(ours.dataset, batch_size=4, sampler=sampler, collate_fn=collate)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        ours.batch_sampler.sampler.set_epoch(epoch)
        for mine, theirs in zip(ours, plain, strict=True):
            assert mine.indices.tolist() == theirs.indices.tolist()
            assert torch.equal(mine.coords, theirs.coords)  # the augmentation of that epoch


def test_an_epoch_of_another_order_cannot_go_on_in_its_middle_but_at_its_end(tiny_cohort) -> None:
    first = loader(tiny_cohort, batch_size=1)
    batches = iter(first)
    next(batches)
    other = loader(tiny_cohort, batch_size=2, seed=5)
    message = r"after batch 1 of 6 of an epoch .* batch_size: 2 != 1; seed: 5 != 0\. Go on with the same settings"
    with pytest.raises(CheckpointError, match=message):
        other.load_state_dict(first.state_dict())
    list(batches)
    other.load_state_dict(first.state_dict())
    assert slides(other) == []
    assert sum(map(len, slides(other))) == 6


def test_reading_draws_nothing_from_the_global_generator(tiny_cohort) -> None:
    before = torch.get_rng_state()
    for num_workers in (0, 1):
        list(loader(tiny_cohort, num_workers=num_workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("split", ["train", "val"])
def test_workers_sleep_through_the_signals_of_a_cluster(tiny_cohort, split) -> None:
    data = SlideDataModule(str(tiny_cohort.store), str(tiny_cohort.csv), num_workers=2)
    data.setup()
    others = set(multiprocessing.active_children())
    batches = iter(data.train_dataloader() if split == "train" else data.val_dataloader())
    next(batches)
    workers = set(multiprocessing.active_children()) - others
    assert len(workers) == 2
    for worker in workers:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            os.kill(worker.pid, number)
    assert sum(batch.num_slides for batch in batches) == (5 if split == "train" else 3)


def test_workers_end_with_the_program() -> None:
    """Python ends what is left of them with SIGTERM and waits; they do not hear it."""
    code = (
        "from span_sparse.datasets import loaders\n"
        "loaders.collate = list\n"
        "loader = loaders.SlideLoader(list(range(6)), 2, batch_size=1)\n"
        "batches = iter(loader)\n"
        "print(next(batches))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "[0]\n"), done.stderr
