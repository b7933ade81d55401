"""How do outcomes become a prediction table, and how is a cohort predicted from a checkpoint?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd
import torch
from torch.utils.data import DataLoader

from span_sparse.datasets import SlideDataset, collate
from span_sparse.datasets.batch import NO_LABEL
from span_sparse.datasets.slide_dataset import SlideItem
from span_sparse.training.outcomes import OutcomeCollector, Outcomes
from span_sparse.training.slide_classifier import SlideClassifier


def prediction_frame(
    outcomes: Outcomes, items: Sequence[SlideItem], class_names: Sequence[str], *, split: Sequence[str], fold: str = ""
) -> pd.DataFrame:
    """One row a slide: `slide_id, case_id, fold, split, y_true, y_pred, prob_<class>…`.

    Args:
        outcomes: gathered outcomes; their indices point into `items`.
        items: the slides of the data set.
        class_names: in the order of the probabilities.
        split: split of every item.
        fold: name of the fold.
    """
    rows = []
    for index, label, probabilities in zip(
        outcomes.indices.tolist(), outcomes.labels.tolist(), outcomes.probabilities.double().tolist(), strict=True
    ):
        best = max(range(len(class_names)), key=lambda position: probabilities[position])
        rows.append(
            {
                "slide_id": items[index].slide_id,
                "case_id": items[index].case_id,
                "fold": fold,
                "split": split[index],
                "y_true": None if label == NO_LABEL else class_names[label],
                "y_pred": class_names[best],
                **{f"prob_{name}": value for name, value in zip(class_names, probabilities, strict=True)},
            }
        )
    return pd.DataFrame(rows)


@torch.inference_mode()
def predict_slides(
    model: SlideClassifier,
    dataset: SlideDataset,
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    progress: Iterable[int] | None = None,
) -> Outcomes:
    """Runs a classifier over slides of a store on the model's device.

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
