"""How do outcomes become a prediction table, and how is a cohort predicted from a checkpoint?

Slides are read once, whatever the number of models, and what was said of them is handed on batch by batch: memory does
not grow with the cohort, and what is known need not wait for the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch

from span_sparse.datasets import SlideDataset
from span_sparse.datasets.batching import OrderedBatches
from span_sparse.datasets.loaders import SlideLoader
from span_sparse.datasets.prefetch import placement_for
from span_sparse.datasets.slide_dataset import SlideItem
from span_sparse.training.ensemble import Ensemble
from span_sparse.training.outcomes import OutcomeCollector, Outcomes
from span_sparse.training.task_module import TaskModule


def prediction_frame(
    model: TaskModule, outcomes: Outcomes, items: Sequence[SlideItem], *, split: Sequence[str], fold: str = ""
) -> pd.DataFrame:
    """One row a slide: `slide_id, case_id, fold, split`, then the columns of the model's task.

    Args:
        model: says what its outcomes mean.
        outcomes: gathered outcomes; their indices point into `items`.
        items: the slides of the data set.
        split: split of every item.
        fold: name of the fold.
    """
    indices = outcomes.indices.tolist()
    return pd.DataFrame(
        {
            "slide_id": [items[index].slide_id for index in indices],
            "case_id": [items[index].case_id for index in indices],
            "fold": fold,
            "split": [split[index] for index in indices],
            **model.prediction_columns(outcomes),
        }
    )


class _Pending(NamedTuple):
    """Outcomes on their way to the CPU."""

    parts: tuple[Outcomes, ...]
    arrived: Any

    def read(self) -> tuple[Outcomes, ...]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.parts


@torch.inference_mode()
def stream_outcomes(
    ensemble: Ensemble,
    dataset: SlideDataset,
    *,
    batch_size: int = 1,
    max_tokens: int | None = None,
    num_workers: int = 0,
) -> Iterator[tuple[Outcomes, ...]]:
    """The outcomes of one batch after the other, by each voice, on the CPU; slides in the order of the data set.

    On a GPU the next batch is asked for before the outcomes of the last one are waited for.

    Args:
        ensemble: of one model or more.
        dataset: slides.
        batch_size: slides a step.
        max_tokens: instead of `batch_size` slides, as many as have so many patches together.
        num_workers: reading processes.
    """
    device = ensemble.models[0].device
    batches: dict[str, Any] = {"batch_size": batch_size}
    if max_tokens is not None:
        batches = {"batch_sampler": OrderedBatches(dataset.num_tokens(whole=True), max_tokens=max_tokens)}
    loader = SlideLoader(dataset, num_workers, placement=placement_for(device, ensemble), **batches)
    pending = (_to_cpu(ensemble.predict(batch.to(device))) for batch in loader)
    yield from _one_behind(pending) if device.type == "cuda" else (one.read() for one in pending)


def _to_cpu(parts: tuple[Outcomes, ...]) -> _Pending:
    """Starts the copies; on the CPU there is nothing to copy."""
    arrived = None
    if parts[0].indices.is_cuda:
        move = {"device": "cpu", "non_blocking": True}
        parts = tuple(
            Outcomes(part.indices.to(**move), {name: column.to(**move) for name, column in part.columns.items()})
            for part in parts
        )
        arrived = torch.cuda.Event()
        arrived.record()
    return _Pending(parts, arrived)


def _one_behind(pending: Iterator[_Pending]) -> Iterator[tuple[Outcomes, ...]]:
    """Reads each entry when the next one was asked for; what is known is told before an error of the next."""
    before = None
    try:
        for now in pending:
            if before is not None:
                yield before.read()
            before = now
    except Exception:
        if before is not None:
            yield before.read()
        raise
    if before is not None:
        yield before.read()


def predict_slides(
    model: TaskModule,
    dataset: SlideDataset,
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    progress: Iterable[int] | None = None,
) -> Outcomes:
    """Runs a model over slides of a store on the model's device.

    Args:
        model: in evaluation mode.
        dataset: slides.
        batch_size: slides a step.
        num_workers: reading processes.
        progress: an iterable advanced once a batch, for a progress bar.
    """
    collector = OutcomeCollector()
    batches = stream_outcomes(Ensemble([model]), dataset, batch_size=batch_size, num_workers=num_workers)
    num_batches = -(-len(dataset) // batch_size)
    for _, (part,) in zip(range(num_batches) if progress is None else progress, batches, strict=True):
        collector.add(part)
    return collector.gather()


def rows_of(model: TaskModule, outcomes: Outcomes) -> list[dict[str, object]]:
    """The task's columns of the prediction table for each slide, plain values.

    Args:
        model: says what its outcomes mean.
        outcomes: of some slides.
    """
    columns = model.prediction_columns(outcomes)
    return [{name: values[row] for name, values in columns.items()} for row in range(len(outcomes.indices))]
