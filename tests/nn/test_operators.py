"""Our operators as torch knows them: schema, shapes without values, autograd, checkpointing, export."""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from span_sparse.nn import slides
from span_sparse.nn.transformer import LayerSettings, TransformerLayer
from span_sparse.nn.window_fused import fused_attention
from span_sparse.sparse import Level, WindowMaps, make_sites, neighbour_map, operators, strided_map, window_maps
from span_sparse.sparse.indice_maps import _strided_pairs
from span_sparse.sparse.operators import OPERATORS, simulated_device

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
import random_slides

COUNTS = (5, 1, 3)
NAMES = sorted(OPERATORS)


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "_interpreted", lambda: False)


def windows_of() -> WindowMaps:
    coords = random_slides.batch_of(random_slides.random_slide(7, 6, 0), random_slides.random_slide(1, 6, 1))
    return window_maps(make_sites(coords, 2)[0], 2)


def arguments_of() -> dict[str, tuple[Any, ...]]:
    """Arguments of every operator; those that are differentiable require gradients."""

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape).requires_grad_()

    windows, sites = windows_of(), random_slides.sites_of(COUNTS)
    table = windows.tokens.table, windows.seen, windows.cells.coords
    where = sites.coords, sites.offsets
    qkv, bias = leaf(8, 3, 2, 4), leaf(2, 7, 7)
    output, log_sums = torch.ops.span_sparse.window_attention(qkv.detach(), bias.detach(), *table, 2, "union")
    _, children = strided_map(sites, 2, 2)
    coords, pairs = _strided_pairs(sites.coords, 3, [2, 6], 2, 2, 1)
    rows, others, queries = leaf(9, 4), leaf(3, 2, 4), leaf(3, 2, 4)
    attention = torch.ops.span_sparse.slide_attention(rows.detach(), others.detach(), queries.detach(), *where)
    normed = torch.ops.span_sparse.add_norm(
        torch.randn(9, 4), torch.randn(9, 4), torch.randn(4), torch.randn(4), 1e-5, torch.float32
    )
    return {
        "window_attention": (qkv, bias, *table, 2, "union"),
        "window_attention_backward": (
            torch.randn(8, 2, 4), qkv.detach(), bias.detach(), *table, output, log_sums, 2, "union", True,
        ),
        "pair_table": (coords, pairs, 3),
        "seen_tokens": (windows.cells.coords, windows.tokens.table, neighbour_map(windows.cells)),
        "depthwise": (torch.randn(9, 4), torch.randn(4, 4), children.table),
        "depthwise_weight_gradient": (torch.randn(9, 4), torch.randn(children.num_outputs, 4), children.table),
        "slide_matmul": (rows, queries, *where),
        "slide_outer": (leaf(9, 2), rows, *where),
        "slide_softmax": (leaf(9, 2), leaf(3, 2, 2), *where),
        "slide_attention": (rows, others, queries, *where),
        "slide_attention_backward": (
            torch.randn(3, 2, 4), rows.detach(), others.detach(), queries.detach(), *where, *attention,
        ),
        "add_norm": (rows, leaf(9, 4), leaf(4), leaf(4), 1e-5, torch.float32),
        "add_norm_backward": (None, torch.randn(9, 4), normed[0], torch.randn(4), normed[2]),
        "add_norm_": (torch.randn(9, 4), torch.randn(9, 4), torch.randn(4), torch.randn(4), 1e-5),
    }  # fmt: skip


def test_every_operator_is_looked_at() -> None:
    assert set(arguments_of()) == set(OPERATORS)
    assert all(one.launches > 0 for one in OPERATORS.values())


# Without kernels this one differentiates inside the operator, where the dispatcher has switched autograd off.


@pytest.mark.parametrize(
    "name",
    NAMES,
)
def test_schema_and_shapes_are_what_is_registered(name: str) -> None:
    arguments = arguments_of()[name]
    function = getattr(torch.ops.span_sparse, name).default
    differentiable = any(isinstance(one, Tensor) and one.requires_grad for one in arguments)
    tests = ["test_schema", "test_faketensor", *(["test_autograd_registration"] if differentiable else [])]
    torch.library.opcheck(function, arguments, test_utils=tests)


@pytest.mark.parametrize("name", ["window_attention", "slide_matmul", "slide_outer", "slide_attention", "add_norm"])
def test_gradients_through_the_dispatcher_are_those_without_it(name: str) -> None:
    """A watched operator is torch's own, another one ours; both give the same."""
    watched, unwatched = [], []
    for results in (watched, unwatched):
        torch.manual_seed(3)
        arguments = arguments_of()[name]
        call = getattr(torch.ops.span_sparse, name).default if results is watched else _ours(name)
        outputs = call(*arguments)
        first = outputs if isinstance(outputs, Tensor) else outputs[name == "add_norm"]
        leaves = [one for one in arguments if isinstance(one, Tensor) and one.requires_grad]
        results += [first.detach(), *torch.autograd.grad((first * first.detach().cos()).sum(), leaves)]
    for mine, theirs in zip(unwatched, watched, strict=True):
        torch.testing.assert_close(mine, theirs)


def _ours(name: str) -> Any:
    modules = {"window_attention": "window_fused", "add_norm": "add_norm"}
    module = sys.modules[f"span_sparse.nn.{modules.get(name, 'slides')}"]
    return getattr(
        module, {"window_attention": "_forward", "add_norm": "_forward"}.get(name, name.removeprefix("slide"))
    )


def layer_and_input() -> tuple[TransformerLayer, Tensor, Tensor, Level]:
    settings = LayerSettings("long", "rpb", 4, 2, 2.0, nn.ReLU, 0.0, 0.0, 0.02, False)
    layer = random_slides.shake(TransformerLayer(8, settings), 0.1)
    assert isinstance(layer, TransformerLayer)
    coords = random_slides.batch_of(random_slides.random_slide(12, 6, 0), random_slides.random_slide(3, 6, 1))
    sites, _ = make_sites(coords, 2)
    return layer, torch.randn(15, 8), torch.randn(2, 1, 8), Level(sites, window_maps(sites, 2), None)


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    layer, rows, tokens, level = layer_and_input()
    results = []
    for recompute in (False, True):
        twin, leaf = copy.deepcopy(layer), rows.clone().requires_grad_()
        with simulated_device():
            call = (lambda *words: checkpoint(twin, *words, use_reentrant=False)) if recompute else twin  # noqa: B023
            output = call(leaf, tokens, level)
            (output[0].square().sum() + output[1].sum()).backward()
        results.append([output[0].detach(), leaf.grad, *(one.grad for one in twin.parameters())])
    for plain, again in zip(*results, strict=True):
        torch.testing.assert_close(again, plain)


def test_dtypes_under_autocast() -> None:
    layer, rows, tokens, level = layer_and_input()
    with simulated_device(), torch.autocast("cpu", torch.bfloat16):
        local, glob, _ = layer(rows, tokens, level)
        products = layer.window_products(rows, level)
        narrow = slides.slide_outer(rows.bfloat16(), rows.bfloat16(), level.sites)
        read = fused_attention(products[0], None, level.windows)
    assert local.dtype == glob.dtype == torch.float32  # the residual stream
    assert products[0].dtype == read.dtype == torch.bfloat16
    assert narrow.dtype == torch.float32  # sums


class Attending(nn.Module):
    """Projections and fused attention over windows that are part of the module."""

    def __init__(self, windows: WindowMaps) -> None:
        super().__init__()
        self.linear, self.bias = nn.Linear(6, 3 * 2 * 4), nn.Parameter(torch.randn(2, 7, 7))
        self.windows = windows

    def forward(self, rows: Tensor) -> Tensor:
        return fused_attention(self.linear(rows).unflatten(1, (3, 2, 4)), self.bias, self.windows).flatten(1)


def test_export_keeps_the_operator_whole() -> None:
    windows = windows_of()
    _ = windows.seen
    module, rows = Attending(windows).eval(), torch.randn(8, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own tracing
        program = torch.export.export(module, (rows,), strict=False)
    names = [str(node.target) for node in program.graph.nodes]
    assert "span_sparse.window_attention.default" in names
    torch.testing.assert_close(program.module()(rows), module(rows))
