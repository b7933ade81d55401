"""Global tokens between levels: `kernel` is the local operator on a neighbourhood that is the token everywhere."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest
import torch

from span_sparse.nn import DownKind, DownSampling, SamplingSettings, TokenTransition, UpKind, UpSampling
from span_sparse.sparse import build_pyramid

SETTINGS = SamplingSettings(
    kernel_size=2,
    stride=2,
    dilation=1,
    bias=True,
    norm="pre",
    edge_mode="none",
    edge_eps=1e-6,
    token_strategy="kernel",
)
BLOCK = torch.tensor([[0, row, col] for row in range(2) for col in range(2)], dtype=torch.int32)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("kind", get_args(DownKind))
def test_down_sampling_treats_a_token_as_a_constant_block(kind: DownKind, norm: str) -> None:
    settings = dataclasses.replace(SETTINGS, norm=norm)
    down = DownSampling(6, 6, kind, settings).double()
    for parameter in down.parameters():
        torch.nn.init.normal_(parameter)
    _, coarser = build_pyramid(BLOCK, 1, num_levels=2, window_size=1).levels
    token = torch.randn(1, 1, 6, dtype=torch.float64)
    output, carried = down(token[0].expand(4, 6), token, coarser)
    torch.testing.assert_close(carried[0], output)


@pytest.mark.parametrize("kind", get_args(UpKind))
def test_up_sampling_gives_a_token_the_mean_of_the_children(kind: UpKind) -> None:
    up = UpSampling(6, 6, kind, dataclasses.replace(SETTINGS, norm="post")).double()
    for name, parameter in up.named_parameters():
        if "output_norm" not in name:
            torch.nn.init.normal_(parameter)
    _, coarser = build_pyramid(BLOCK, 1, num_levels=2, window_size=1).levels
    token = torch.randn(1, 1, 6, dtype=torch.float64)
    norm, up.operator.output_norm = up.operator.output_norm, torch.nn.Identity()
    children, carried = up(token[0], token, coarser)
    torch.testing.assert_close(carried[0, 0], children.mean(dim=0))
    up.operator.output_norm = norm
    torch.testing.assert_close(up(token[0], token, coarser)[1][0, 0], norm(children.mean(dim=0)))


def test_identity_keeps_and_proj_projects() -> None:
    token = torch.randn(2, 3, 6)
    assert torch.equal(TokenTransition(6, 6, "identity", norm=False)(token, lambda rows: rows * 0), token)
    wider = TokenTransition(6, 8, "identity", norm=False)
    torch.testing.assert_close(wider(token, lambda rows: rows), wider.projection(token))
    normed = TokenTransition(6, 6, "proj", norm=True)
    expected = normed.projection(torch.nn.functional.layer_norm(token, (6,)))
    torch.testing.assert_close(normed(token, lambda rows: rows), expected)
