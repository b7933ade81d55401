"""How do outcomes become a prediction table, and how is a cohort predicted from a checkpoint?

Slides are read once, whatever the number of models, and what was said of them is handed on batch by batch: memory does
not grow with the cohort, and what is known need not wait for the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pandas as pd
import torch
from torch.utils.data import DataLoader

from span_sparse.datasets import SlideDataset, collate
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


@torch.inference_mode()
def stream_outcomes(
    ensemble: Ensemble, dataset: SlideDataset, *, batch_size: int = 1, num_workers: int = 0
) -> Iterator[tuple[Outcomes, ...]]:
    """The outcomes of one batch after the other, by each voice, on the CPU.

    Args:
        ensemble: of one model or more.
        dataset: slides.
        batch_size: slides a step.
        num_workers: reading processes.
    """
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=collate)
    for batch in loader:
        parts = ensemble.predict(batch.to(ensemble.models[0].device))
        yield tuple(
            Outcomes(part.indices.cpu(), {name: column.cpu() for name, column in part.columns.items()})
            for part in parts
        )


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
