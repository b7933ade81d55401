from __future__ import annotations

import math

import pytest
import torch
from torch import nn, optim

from span_sparse.training.optimisation import parameter_groups, warm_up_cosine


def test_only_matrices_of_linears_and_convolutions_decay(make_classifier) -> None:
    network = make_classifier().network
    decaying, others = parameter_groups(network, 0.3)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decays = {names[id(parameter)] for parameter in decaying["params"]}
    rests = {names[id(parameter)] for parameter in others["params"]}
    assert "encoder.input_projection.linear.weight" in decays
    assert "encoder.stages.1.down.operator.convolution.weight" in decays
    assert "head.readout.linear.weight" in decays
    assert {"encoder.stages.0.layers.0.positions.table", "encoder.tokens.learned.0"} <= rests
    assert "head.readout.norm.weight" in rests
    assert not {name for name in decays if name.endswith("bias") or "norm" in name}
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert decays | rests == trained
    assert not decays & rests


def test_a_decaying_step_shrinks_matrices_and_leaves_biases() -> None:
    network = nn.Linear(2, 2)
    nn.init.ones_(network.weight)
    nn.init.ones_(network.bias)
    optimizer = optim.AdamW(parameter_groups(network, 0.5), lr=0.1)
    network.weight.grad, network.bias.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    assert network.weight.tolist() == [[pytest.approx(0.95)] * 2] * 2  # 1 - 0.1 * 0.5
    assert network.bias.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("warm_up", "epochs", "expected"),
    [
        (0, 4, [1.0, 0.5 * (1 + math.sqrt(0.5)), 0.5, 0.5 * (1 - math.sqrt(0.5)), 0.0]),
        (2, 4, [1 / 3, 2 / 3, 1.0, 0.5, 0.0]),
        (1, 1, [0.5, 1.0]),
        (3, 2, [0.25, 0.5]),
    ],
)
def test_the_learning_rate_by_hand(warm_up: int, epochs: int, expected: list[float]) -> None:
    optimizer = optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = warm_up_cosine(optimizer, warm_up_epochs=warm_up, max_epochs=epochs)
    rates = []
    for _ in expected:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([2 * factor for factor in expected], abs=1e-12)
