"""Scores of patches against a dense recomputation, brute force, and what must never change them."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from span_sparse.datasets import (
    ClassificationTask,
    MultiLabelTask,
    RegressionTask,
    SegmentationTask,
    SlideBatch,
    SurvivalTask,
)
from span_sparse.errors import ConfigError
from span_sparse.grid import LatticeSpec
from span_sparse.losses import discrete_survival
from span_sparse.models import AttentionPoolingConfig, MeanPoolingConfig, SpanMilConfig, SpanUnetConfig
from span_sparse.models.config import SpanSurvivalConfig
from span_sparse.training import (
    MultiLabelClassifier,
    PatchSegmenter,
    SlideClassifier,
    SlideRegressor,
    SurvivalModel,
    TaskModule,
)
from span_sparse.training.explain import default_score, patch_scores, patches_of_classes, subset_answer
from span_sparse.types import EncoderIdentity

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
import dense_span
from random_slides import batch_of, random_slide, shake

ENCODER = EncoderIdentity("stain-texture", "1", "descriptor", 16, 32, 1.0, "float32")
SPEC = LatticeSpec(32, 1.0)
SMALL = {"head_channels": 8, "window_size": 2}
MODELS = {
    "mil": (SlideClassifier, ClassificationTask(class_names=("a", "b", "c")), SpanMilConfig(stages="121", **SMALL)),
    "pooling": (SlideClassifier, ClassificationTask(class_names=("a", "b")), AttentionPoolingConfig(hidden=8)),
    "mean": (SlideClassifier, ClassificationTask(class_names=("a", "b")), MeanPoolingConfig(hidden=8)),
    "questions": (MultiLabelClassifier, MultiLabelTask(("q", "r")), SpanMilConfig(stages="11", **SMALL)),
    "number": (SlideRegressor, RegressionTask("age"), SpanMilConfig(stages="11", **SMALL)),
    "survival": (SurvivalModel, SurvivalTask(), SpanSurvivalConfig(stages="11", **SMALL)),
    "segmenter": (PatchSegmenter, SegmentationTask(("tumor",)), SpanUnetConfig(stages="11-1", **SMALL)),
    "segmenter of three": (
        PatchSegmenter, SegmentationTask(("tumor", "stroma")), SpanUnetConfig(stages="11-1", **SMALL),
    ),
}  # fmt: skip


def model_of(name: str) -> TaskModule:
    kind, task, network = MODELS[name]
    model = kind(network, task=task.on(ENCODER, SPEC).as_dict())
    shake(model.network)
    return model.eval()


def batch(*slides: tuple[Tensor, Tensor]) -> SlideBatch:
    """Of pairs of grid and features."""
    return SlideBatch(
        coords=batch_of(*(grid for grid, _ in slides)),
        features=torch.cat([features for _, features in slides]),
        labels=torch.full((len(slides),), -1),
        indices=torch.arange(len(slides)),
    )


def slide(num_patches: int, seed: int) -> tuple[Tensor, Tensor]:
    """In the store's order."""
    grid = random_slide(num_patches, 11, seed)
    grid = grid[(grid[:, 0] * 100 + grid[:, 1]).argsort()]
    return grid, torch.randn(num_patches, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MODELS)
def test_neither_row_order_nor_batch_mates_matter(name: str) -> None:
    model, slides = model_of(name), [slide(count, seed) for seed, count in enumerate([23, 1, 40])]
    alone = [patch_scores(model, batch(one))[0] for one in slides]
    shuffled = []
    for grid, features in slides:
        order = torch.randperm(len(grid))
        shuffled.append((grid[order], features[order]))
    together = batch(*shuffled)
    mixed = torch.randperm(len(together.coords))  # the slides' rows one among the other
    together = dataclasses.replace(together, coords=together.coords[mixed], features=together.features[mixed])
    with torch.inference_mode():  # a caller that needs no gradients
        company = patch_scores(model, together)
    for (grid, _), one, other in zip(slides, alone, company, strict=True):
        assert one.names == other.names
        assert torch.equal(one.grid, grid)
        assert torch.equal(other.grid, grid)
        torch.testing.assert_close(other.values, one.values, rtol=1e-4, atol=1e-5)
        assert not one.values.requires_grad


def test_attention_is_what_a_dense_evaluation_computes(monkeypatch) -> None:
    config = SpanMilConfig(stages="121", **SMALL)
    task = ClassificationTask(class_names=("a", "b", "c")).on(ENCODER, SPEC)
    model = SlideClassifier(config, task=task.as_dict()).eval()
    shake(model.network)
    grid, features = slide(37, 5)
    recorded: list[Tensor] = []

    def full_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5).softmax(dim=-1)
        recorded.append(weights)
        return torch.einsum("hij,jhd->ihd", weights, v)

    monkeypatch.setattr(dense_span, "full_attention", full_attention)
    num_heads = config.widths(16)[0] // 8
    dense_span.span_mil_logits(
        model.network.state_dict(), features, grid.long(), stages="121", heads=num_heads, window_size=2
    )
    writes = recorded[1::2]  # every layer reads, then writes the globals
    last_layers = [writes[0], writes[2], writes[3]]
    scores = patch_scores(model, batch((grid, features)))[0]
    expected_names = [f"attention_stage{stage}_head{head}" for stage in range(3) for head in range(num_heads)]
    assert scores.names == ("attention", *expected_names, "gradient_x_input")
    for stage, weights in enumerate(last_layers):
        cells = sorted({(int(row) >> stage, int(col) >> stage) for row, col in grid})
        parents = [cells.index((int(row) >> stage, int(col) >> stage)) for row, col in grid]
        for head in range(num_heads):
            found = scores.values[:, scores.names.index(f"attention_stage{stage}_head{head}")]
            torch.testing.assert_close(found, weights[head, 0, parents], rtol=1e-4, atol=1e-6)
            first_of_cell = [parents.index(cell) for cell in range(len(cells))]
            rest = weights[head, 0, len(cells) :].sum()  # what the globals have among themselves
            assert found[first_of_cell].sum().item() == pytest.approx(1 - rest.item(), abs=1e-5)
    finest = scores.values[:, [scores.names.index(name) for name in expected_names if "stage0" in name]]
    torch.testing.assert_close(scores.values[:, 0], finest.mean(dim=1))


def evidence(model: TaskModule, features: Tensor, grid: Tensor) -> Tensor:
    """The answer whose gradient is taken, written down again."""
    logits = model(batch((grid, features)))[0]
    if isinstance(model, SlideClassifier):
        probability = logits.softmax(dim=0).max()
        return (probability / (1 - probability)).log()
    if isinstance(model, SurvivalModel):
        return discrete_survival(logits.unsqueeze(0)).risk[0]
    return logits.max()


@pytest.mark.parametrize("name", ["mil", "pooling", "mean", "questions", "number", "survival"])
def test_gradient_x_input_is_the_change_on_the_way_from_the_mean_patch(name: str) -> None:
    model = model_of(name).double()
    grid, features = slide(9, 3)
    features = features.double()
    found = patch_scores(model, batch((grid, features)))[0]
    step = 1e-5
    for patch in range(9):
        up, down = features.clone(), features.clone()
        own = features[patch] - features.mean(dim=0)
        up[patch] += step * own
        down[patch] -= step * own
        with torch.no_grad():
            change = (evidence(model, up, grid) - evidence(model, down, grid)) / (2 * step)
        assert found.values[patch, found.names.index("gradient_x_input")].item() == pytest.approx(
            change.item(), rel=1e-3, abs=1e-5
        )


def test_baselines_give_what_they_have() -> None:
    one = slide(20, 1)
    mean = patch_scores(model_of("mean"), batch(one))[0]
    assert mean.names == ("gradient_x_input",)
    assert default_score(model_of("mean"), mean.names) == "gradient_x_input"
    model = model_of("pooling")
    pooled = patch_scores(model, batch(one))[0]
    assert pooled.names == ("attention", "gradient_x_input")
    assert default_score(model, pooled.names) == "attention"
    weights = pooled.values[:, 0]
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-5)
    with torch.no_grad():  # the slide's logits are those of the rows' mean with these weights
        rows = model.network.project(one[1])
        expected = model.network.classify((weights[:, None] * rows).sum(dim=0))
        torch.testing.assert_close(model(batch(one))[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "foreground"), [("segmenter", ["tumor"]), ("segmenter of three", ["tumor", "stroma"])]
)
def test_segmenters_give_logits_and_probabilities(name: str, foreground: list[str]) -> None:
    model, one = model_of(name), slide(30, 2)
    scores = patch_scores(model, batch(one))[0]
    assert default_score(model, scores.names) == "prob_tumor"
    assert [name for name in scores.names if not name.startswith("attention")] == [
        *(f"prob_{name}" for name in foreground), *(f"logit_{name}" for name in foreground),
    ]  # fmt: skip
    with torch.no_grad():
        logits = model(batch(one))
    for column, class_name in enumerate(foreground):
        logit = logits[:, column if len(foreground) == 1 else column + 1]
        probability = logit.sigmoid() if len(foreground) == 1 else logits.softmax(dim=1)[:, column + 1]
        torch.testing.assert_close(scores.values[:, scores.names.index(f"logit_{class_name}")], logit)
        torch.testing.assert_close(scores.values[:, scores.names.index(f"prob_{class_name}")], probability)


def test_a_network_whose_globals_read_nothing_has_gradients_only() -> None:
    task = ClassificationTask(class_names=("a", "b")).on(ENCODER, SPEC)
    network = SpanMilConfig(stages="11", attention="swin", head="addition", **SMALL)
    model = SlideClassifier(network, task=task.as_dict()).eval()
    assert patch_scores(model, batch(slide(12, 4)))[0].names == ("gradient_x_input",)


@pytest.mark.parametrize("name", ["mil", "questions", "number", "survival"])
def test_the_answer_of_a_part_is_that_of_a_slide_with_these_patches(name: str) -> None:
    model, (grid, features) = model_of(name), slide(25, 6)
    answer = subset_answer(model, features, grid)
    kept = np.array([3, 17, 4, 9])

    def outputs(rows: Tensor) -> Tensor:
        with torch.no_grad():
            logits = model(batch((grid[rows], features[rows])))[0]
        if name == "mil":
            return logits.softmax(dim=0)
        return logits.sigmoid() if name == "questions" else evidence(model, features[rows], grid[rows])[None]

    best = outputs(torch.arange(25)).argmax()
    for rows in (np.arange(25), kept):
        assert answer(rows) == pytest.approx(outputs(torch.from_numpy(rows))[best].item(), abs=1e-6)


def test_a_segmenter_has_no_answer_of_the_slide() -> None:
    grid, features = slide(5, 0)
    with pytest.raises(ConfigError, match="answers for each patch"):
        subset_answer(model_of("segmenter"), features, grid)


def test_patches_of_classes_are_decided_as_in_the_figures() -> None:
    one = slide(30, 2)
    binary = model_of("segmenter")
    binary.decision_threshold.fill_(0.3)
    scores = patch_scores(binary, batch(one))[0]
    with torch.no_grad():
        logits = binary(batch(one))[:, 0]
    found = patches_of_classes(binary, scores)
    assert list(found) == ["tumor"]
    assert torch.equal(found["tumor"], logits.sigmoid() >= 0.3)
    assert 0 < found["tumor"].sum() < 30
    three = model_of("segmenter of three")
    with torch.no_grad():
        best = three(batch(one)).argmax(dim=1)
    found = patches_of_classes(three, patch_scores(three, batch(one))[0])
    assert torch.equal(found["tumor"], best == 1)
    assert torch.equal(found["stroma"], best == 2)


def test_without_background_both_classes_are_of_interest() -> None:
    task = SegmentationTask(("tumor", "stroma"), background=None).on(ENCODER, SPEC)
    model = PatchSegmenter(SpanUnetConfig(stages="11-1", **SMALL), task=task.as_dict()).eval()
    shake(model.network)
    one = slide(30, 2)
    scores = patch_scores(model, batch(one))[0]
    tumor, stroma = (scores.values[:, scores.names.index(f"prob_{name}")] for name in ("tumor", "stroma"))
    torch.testing.assert_close(tumor + stroma, torch.ones(30))
    with torch.no_grad():
        torch.testing.assert_close(stroma, model(batch(one))[:, 0].sigmoid())
    found = patches_of_classes(model, scores)
    assert torch.equal(found["tumor"], ~found["stroma"])
