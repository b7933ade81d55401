"""Which patches did a model's answer come from? Scores of every patch, out of the model itself.

| score | what it is |
|---|---|
| `attention_stage<k>_head<h>` | weight of the patch's cell of stage k for the first global token, which is read out |
| `attention` | mean over the heads of the first stage that has them; of attention pooling its weights |
| `gradient_x_input` | Σ over channels of (feature − its mean over the slide) · ∂answer/∂feature |
| `logit_<class>`, `prob_<class>` | of segmenters, what they say of the patch itself |

1. One forward pass gives answer and attention, one backward pass from the answer to the features the gradient.
2. Rows are sorted by (row, col), the store's order, whatever order the batch had.

The answer that is differentiated is the evidence for what was predicted: the log-odds of the predicted class. Its
plain logit would not do, since adding the same number to all logits changes the gradient and no probability.

The gradient is multiplied with what sets the patch apart from the slide's mean patch, the first-order change of the
answer if the mean patch lay there instead. Networks that normalise every patch do not notice when a patch is scaled, so
the plain product is zero for each of them.

A weight says where the model looked, not what it concluded; whether an answer hangs on the patches with high scores is
measured by taking them away (`subset_answer`, `span_sparse.heatmaps.faithfulness`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32
from numpy.typing import NDArray
from torch import Tensor

from span_sparse.datasets import SlideBatch
from span_sparse.datasets.batch import NO_LABEL
from span_sparse.errors import ConfigError
from span_sparse.losses import discrete_survival
from span_sparse.models import SpanMil, SpanUnet, attention_maps
from span_sparse.models.pooling import AttentionMil
from span_sparse.training.patch_segmenter import PatchSegmenter
from span_sparse.training.slide_classifier import SlideClassifier
from span_sparse.training.slide_tasks import MultiLabelClassifier
from span_sparse.training.survival_model import SurvivalModel
from span_sparse.training.task_module import TaskModule

ATTENTION = "attention"
GRADIENT = "gradient_x_input"


@dataclass(frozen=True, slots=True, eq=False)
class PatchScores:
    """Scores of one slide's patches, on the CPU.

    Attributes:
        names: of the scores.
        values: one row a patch, ordered by (row, col).
        grid: `(row, col)` of every row.
    """

    names: tuple[str, ...]
    values: Float[Tensor, "patches scores"]
    grid: Int32[Tensor, "patches 2"]


def patch_scores(model: TaskModule, batch: SlideBatch) -> list[PatchScores]:
    """The scores of every patch, slide by slide.

    Args:
        model: in evaluation mode.
        batch: on the model's device, slides in any company, patches in any order.

    Returns:
        One entry a slide; all have the same names.
    """
    with torch.inference_mode(False), torch.enable_grad():
        scores = _segmenter_scores(model, batch) if isinstance(model, PatchSegmenter) else _slide_scores(model, batch)
    names = tuple(scores)
    values = torch.stack([score.detach().float() for score in scores.values()], dim=1).cpu()
    coords = batch.coords.cpu()
    by_slide = []
    for slide in range(batch.num_slides):
        rows = (coords[:, 0] == slide).nonzero().squeeze(1)
        grid = coords[rows, 1:]
        order = (grid[:, 0].long() * 2**32 + grid[:, 1]).argsort()
        by_slide.append(PatchScores(names, values[rows[order]], grid[order]))
    return by_slide


def default_score(model: TaskModule, names: tuple[str, ...]) -> str:
    """The score to show when nobody asks for another one."""
    if isinstance(model, PatchSegmenter):
        return f"prob_{foreground_classes(model)[0]}"
    return ATTENTION if ATTENTION in names else GRADIENT


def foreground_classes(model: PatchSegmenter) -> tuple[str, ...]:
    """The classes of a segmenter that are of interest: all but the background."""
    names = model.task.class_names
    return names if model.task.background is None else names[1:]


def patches_of_classes(model: PatchSegmenter, scores: PatchScores) -> dict[str, Bool[Tensor, " patches"]]:
    """Which patches belong to each class of interest: at the decision threshold, of three or more the most probable."""
    names = foreground_classes(model)
    known = torch.stack([scores.values[:, scores.names.index(f"prob_{name}")] for name in names], dim=1)
    rest = 1 - known.sum(dim=1, keepdim=True)
    probabilities = known if model.task.background is None else torch.cat([rest, known], dim=1)
    if model.is_binary:
        labels = (probabilities[:, 1] >= model.decision_threshold.cpu()).long()
    else:
        labels = probabilities.argmax(dim=1)
    return {name: labels == model.task.class_names.index(name) for name in names}


def _slide_scores(model: TaskModule, batch: SlideBatch) -> dict[str, Tensor]:
    features = batch.features.detach().clone().requires_grad_()
    network = model.network
    scores: dict[str, Tensor] = {}
    if isinstance(network, SpanMil):
        output = network.run(features, model.place(batch), batch.num_slides)
        logits, scores = output.logits, _attention(attention_maps(output))
    else:
        logits = network(features, batch.coords, batch.num_slides)
        if isinstance(network, AttentionMil):
            scores[ATTENTION] = network.attention(features, batch.coords, batch.num_slides)
    (gradient,) = torch.autograd.grad(_evidence(model, logits.float()).sum(), features)
    slides = batch.coords[:, 0].long()
    sums = features.new_zeros(batch.num_slides, features.shape[1]).index_add(0, slides, features)
    means = sums / torch.bincount(slides, minlength=batch.num_slides).unsqueeze(1)
    return scores | {GRADIENT: (gradient * (features - means[slides])).sum(dim=1)}


def _segmenter_scores(model: PatchSegmenter, batch: SlideBatch) -> dict[str, Tensor]:
    assert isinstance(model.network, SpanUnet)
    names = foreground_classes(model)
    with torch.no_grad():
        output = model.network.run(batch.features, model.place(batch), batch.num_slides)
    logits = output.logits.float()
    probabilities = logits.softmax(dim=1)
    if model.is_binary:
        logits = torch.cat([-logits, logits], dim=1)
        probabilities = logits.sigmoid()
    columns = [model.task.class_names.index(name) for name in names]
    scores = {f"prob_{name}": probabilities[:, column] for name, column in zip(names, columns, strict=True)}
    scores |= {f"logit_{name}": logits[:, column] for name, column in zip(names, columns, strict=True)}
    return scores | _attention(attention_maps(output))


def _attention(maps: list[Tensor | None]) -> dict[str, Tensor]:
    """Of every stage that has attention and of each of its heads, for the first global token."""
    scores: dict[str, Tensor] = {}
    for stage, weights in enumerate(maps):
        if weights is not None:
            # only at the finest stage is a weight a patch's own; at stage k it belongs to a cell of up to 4ᵏ patches
            scores.setdefault(ATTENTION, weights[0].mean(dim=0))
            scores |= {f"{ATTENTION}_stage{stage}_head{head}": row for head, row in enumerate(weights[0])}
    return scores


def _evidence(model: TaskModule, logits: Tensor) -> Tensor:
    """What speaks for the prediction of each slide, `[slides]`."""
    if isinstance(model, SlideClassifier):
        predicted = logits.argmax(dim=1, keepdim=True)
        others = logits.scatter(1, predicted, -torch.inf)
        return logits.gather(1, predicted)[:, 0] - others.logsumexp(dim=1)
    if isinstance(model, MultiLabelClassifier):
        return logits.amax(dim=1)
    if isinstance(model, SurvivalModel) and model.loss == "nll":
        return discrete_survival(logits).risk
    return logits[:, 0]


def subset_answer(
    model: TaskModule, features: Float[Tensor, "patches channels"], grid: Int32[Tensor, "patches 2"]
) -> Callable[[NDArray[np.integer]], float]:
    """What a model would say of a slide of which only some patches are left.

    Args:
        model: of slides, in evaluation mode.
        features: of the whole slide.
        grid: `(row, col)` of every patch.

    Returns:
        A function of the rows that are left, at least one: the probability of the class that is predicted for the whole
        slide (of several questions: of the most probable one), or the risk or number.

    Raises:
        ConfigError: a segmenter, which has an answer for every patch of its own.
    """
    if isinstance(model, PatchSegmenter):
        raise ConfigError(
            "a segmenter answers for each patch; leaving patches out has no answer of the slide to change"
        )

    def outputs(rows: Tensor) -> Tensor:
        coords = torch.cat([grid.new_zeros(len(rows), 1), grid[rows]], dim=1)
        label, index = torch.tensor([NO_LABEL]), torch.tensor([0])
        logits = model(SlideBatch(coords, features[rows], label, index).to(model.device)).float()[0]
        if isinstance(model, SlideClassifier):
            return logits.softmax(dim=0)
        if isinstance(model, MultiLabelClassifier):
            return logits.sigmoid()
        return _evidence(model, logits.unsqueeze(0))

    with torch.no_grad():
        position = int(outputs(torch.arange(len(grid))).argmax())

    @torch.no_grad()
    def answer(rows: NDArray[np.integer]) -> float:
        return float(outputs(torch.from_numpy(np.array(rows, dtype=np.int64, order="C")))[position])

    return answer
