"""Depthwise convolution on kernel maps, against torch's grouped convolution."""

from __future__ import annotations

import torch

from span_sparse.sparse import depthwise_convolution, make_sites, strided_map


def test_equals_a_grouped_convolution_and_its_gradients() -> None:
    coords = torch.tensor([[0, r, c] for r in range(6) for c in range(4) if (r * 4 + c) % 5], dtype=torch.int32)
    sites, _ = make_sites(coords, 1, multiple_of=2)
    _, children = strided_map(sites, 2, 2)
    features = torch.randn(len(sites), 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    ours = depthwise_convolution(features, weight, children)

    dense = torch.zeros(1, 3, 6, 4, dtype=torch.float64)
    dense[0, :, coords[:, 1].long(), coords[:, 2].long()] = features.detach().T
    expected = torch.nn.functional.conv2d(dense, weight.detach().T.reshape(3, 1, 2, 2), stride=2, groups=3)
    torch.testing.assert_close(ours, expected[0].flatten(1).T)
    assert torch.autograd.gradcheck(lambda x, w: depthwise_convolution(x, w, children), (features, weight))
