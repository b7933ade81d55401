"""The attention of global tokens, one value a patch."""

from __future__ import annotations

import torch

from span_sparse.models import SpanMil, SpanMilConfig, attention_maps


def test_maps_sum_and_follow_the_pyramid() -> None:
    config = SpanMilConfig(stages="121", head_channels=16, tokens=["lrn1", "mean"], head="pyramid_pooling")
    model = SpanMil(config, num_features=64, num_classes=2).eval()
    cells = torch.randperm(400)[:90]
    grid = torch.stack([cells // 20, cells % 20], dim=1).int()
    coords = torch.cat([torch.tensor([0] * 50 + [1] * 40).int().unsqueeze(1), grid], dim=1)
    output = model.run(torch.randn(90, 64), coords, 2)
    maps = attention_maps(output)
    assert len(maps) == 3
    for stage, (one, level) in enumerate(zip(maps, output.pyramid.levels, strict=True)):
        assert one is not None
        assert one.shape == (2, 2, 90)  # two globals, two heads
        raw = output.stages[stage].attention
        assert raw is not None
        rows = {tuple(site): row for row, site in enumerate(level.sites.coords.tolist())}
        parents = [rows[slide, row >> stage, col >> stage] for slide, row, col in coords.tolist()]
        torch.testing.assert_close(one, raw[..., parents])
        by_slide = raw.split(level.sites.counts, dim=-1)
        assert all((weights.sum(dim=-1) < 1).all() for weights in by_slide)  # the globals have the rest
        assert all((weights.sum(dim=-1) > 0.5).all() for weights in by_slide)


def test_a_stage_that_writes_no_globals_has_no_map() -> None:
    config = SpanMilConfig(stages="10", head_channels=16, attention="swin", head="addition")
    output = SpanMil(config, num_features=64, num_classes=2).run(torch.randn(1, 64), torch.zeros(1, 3).int(), 1)
    assert attention_maps(output) == [None, None]
