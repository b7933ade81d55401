"""How do outcomes become a prediction table, and how is a cohort predicted from a checkpoint?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd
import torch
from torch.utils.data import DataLoader

from span_sparse.datasets import SlideDataset, collate
from span_sparse.datasets.slide_dataset import SlideItem
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
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=collate)
    collector = OutcomeCollector()
    for _, batch in zip(range(len(loader)) if progress is None else progress, loader, strict=True):
        collector.add(model.predict_step(batch.to(model.device)))
    return collector.gather()
