"""Every head against its formula, slide by slide and stage by stage, by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from span_sparse.nn import (
    AdditionHead,
    AttentionPooling,
    GlobalTokenHead,
    MultiAttentionHead,
    PyramidPoolingHead,
    StageOutput,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
import random_slides

WIDTH, OUTPUTS = 6, 3
COUNTS = [(5, 2), (3, 1)]
"""Rows of two slides at two stages."""

SITES = [random_slides.sites_of(counts) for counts in COUNTS]


def stages_of() -> list[StageOutput]:
    return [
        StageOutput(torch.randn(sum(counts), WIDTH).double(), torch.randn(2, 2, WIDTH).double(), None)
        for counts in COUNTS
    ]


def slide_of(stage: StageOutput, counts: tuple[int, int], slide: int) -> tuple[Tensor, Tensor]:
    """Local tokens and first global token of one slide."""
    rows = stage.local_tokens[: counts[0]] if slide == 0 else stage.local_tokens[counts[0] :]
    return rows, stage.global_tokens[slide, 0]


def read_out(head: nn.Module, row: Tensor, *, norm: bool) -> Tensor:
    weights = dict(head.named_parameters())
    if norm:
        row = (row - row.mean()) / (row.var(unbiased=False) + 1e-5).sqrt()
        row = row * weights["readout.norm.weight"] + weights["readout.norm.bias"]
    return weights["readout.linear.weight"] @ row + weights["readout.linear.bias"]


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("kind", ["multi_addition", "concat", "mean", "last"])
def test_heads_of_global_tokens(kind, norm: bool) -> None:
    stages = stages_of()
    head = random_slides.shake(GlobalTokenHead(kind, WIDTH, 2, OUTPUTS, norm=norm, dropout=0.5).double()).eval()
    ours = head(stages, SITES)
    for slide in range(2):
        first, second = (stage.global_tokens[slide, 0] for stage in stages)
        row = {
            "multi_addition": first + second,
            "concat": torch.cat([first, second]),
            "mean": (first + second) / 2,
            "last": second,
        }[kind]
        expected = read_out(head, row, norm=norm and kind in ("multi_addition", "concat"))
        torch.testing.assert_close(ours[slide], expected)


def test_addition() -> None:
    stages = stages_of()
    head = random_slides.shake(AdditionHead(WIDTH, OUTPUTS, dropout=0.5).double()).eval()
    for slide, ours in enumerate(head(stages, SITES)):
        rows, _ = slide_of(stages[1], COUNTS[1], slide)
        row = torch.stack([column.max() + column.sum() / len(column) for column in rows.T])
        torch.testing.assert_close(ours, read_out(head, row, norm=True))


def pooled_by_hand(pool: nn.Module, rows: Tensor, activation=torch.tanh) -> Tensor:
    weights = dict(pool.named_parameters())
    scores = torch.stack(
        [
            weights["score.weight"][0] @ activation(weights["hidden.weight"] @ row + weights["hidden.bias"])
            for row in rows
        ]
    )
    shares = scores.exp() / scores.exp().sum()
    return sum((share * row for share, row in zip(shares, rows, strict=True)), torch.zeros(rows.shape[1]).double())


def test_attention_pooling_is_that_of_ilse() -> None:
    pool = random_slides.shake(AttentionPooling(WIDTH, 4).double())
    rows = torch.randn(7, WIDTH).double()
    ours = pool(rows, random_slides.sites_of((5, 2)))
    torch.testing.assert_close(ours[0], pooled_by_hand(pool, rows[:5]))
    torch.testing.assert_close(ours[1], pooled_by_hand(pool, rows[5:]))


def test_pyramid_pooling() -> None:
    stages = stages_of()
    head = random_slides.shake(PyramidPoolingHead(WIDTH, 2, OUTPUTS, dropout=0.5).double()).eval()
    for slide, ours in enumerate(head(stages, SITES)):
        tokens, pooled = torch.zeros(WIDTH).double(), torch.zeros(WIDTH).double()
        for stage, counts, pool in zip(stages, COUNTS, head.pooling, strict=True):
            rows, token = slide_of(stage, counts, slide)
            tokens, pooled = tokens + token, pooled + pooled_by_hand(pool, rows)
        torch.testing.assert_close(ours, read_out(head, torch.cat([tokens, pooled]), norm=True))


def test_multiattn() -> None:
    stages = stages_of()
    head = MultiAttentionHead(WIDTH, 2, OUTPUTS, dropout=0.5, activation=nn.ReLU, divisor=2).double()
    assert head.pooling[0].hidden.out_features == WIDTH // 2
    assert head.gate_offset.tolist() == [-2, -2]
    random_slides.shake(head).eval()
    for slide, ours in enumerate(head(stages, SITES)):
        mixed, scores = [], []
        for number, (stage, counts) in enumerate(zip(stages, COUNTS, strict=True)):
            rows, token = slide_of(stage, counts, slide)
            pooled = pooled_by_hand(head.pooling[number], rows, activation=lambda x: x.clamp(min=0))
            gate = head.gate_offset[number] + head.gate.weight[0] @ torch.cat([pooled, token]) + head.gate.bias[0]
            share = 1 / (1 + (-gate).exp())
            mixed.append((1 - share) * pooled + share * token)
            scores.append(head.stage_offset[number] + head.stage_score.weight[0] @ mixed[-1])
        weights = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
        row = weights[0] * mixed[0] + weights[1] * mixed[1]
        normed = any(name.startswith("readout.norm") for name, _ in head.named_parameters())
        torch.testing.assert_close(ours, read_out(head, row, norm=normed))


@pytest.mark.parametrize("kind", ["addition", "multiattn", "pyramid_pooling", "concat"])
def test_gradcheck(kind) -> None:
    heads = {
        "addition": AdditionHead(WIDTH, 2, dropout=0.0),
        "multiattn": MultiAttentionHead(WIDTH, 2, 2, dropout=0.0, activation=nn.Tanh, divisor=2),
        "pyramid_pooling": PyramidPoolingHead(WIDTH, 2, 2, dropout=0.0),
        "concat": GlobalTokenHead("concat", WIDTH, 2, 2, norm=True, dropout=0.0),
    }
    head = heads[kind].double()
    stages = stages_of()
    leaves = [rows.requires_grad_() for stage in stages for rows in stage[:2]]

    def outputs(*rows: Tensor) -> Tensor:
        return head([StageOutput(rows[0], rows[1], None), StageOutput(rows[2], rows[3], None)], SITES)

    assert torch.autograd.gradcheck(outputs, leaves, fast_mode=True)
