"""The fused window attention, run by Triton's interpreter, against the gathered one in float64.

The interpreter takes about a twentieth of a second for a cell and head, so the patterns are small: what a cell can see
does not depend on how many cells there are. It computes bfloat16 wrongly; that dtype is compared on a GPU
(`tests/models/test_cuda.py`).
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from span_sparse.nn import window_kernels
from span_sparse.nn.execution import execution
from span_sparse.nn.positions import expanded_bias
from span_sparse.nn.window_attention import Reach, choose, packed_attention, window_attention
from span_sparse.nn.window_fused import fused_attention, supports
from span_sparse.nn.window_gathered import gathered_scores
from span_sparse.sparse import WindowMaps, make_sites, window_maps
from span_sparse.sparse.operators import has_kernels, simulated_device

sys.path.insert(0, str(Path(__file__).parents[1] / "oracles"))
import random_slides

REACHES: tuple[Reach, ...] = ("union", "regular", "shifted")
LIMITS = {torch.float32: 2e-5, torch.float16: 4e-3}
"""Largest difference from float64, relative to the largest value."""

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="interprets kernels; test_cuda.py runs them")


@dataclass(frozen=True)
class Case:
    """What one attention reads, already rounded to the kernels' dtype, and the gradient it is given."""

    windows: WindowMaps
    qkv: Tensor
    bias: Tensor | None
    grad: Tensor


def case_of(
    windows: WindowMaps, heads: int = 1, channels: int = 4, dtype: torch.dtype = torch.float32, bias: bool = True
) -> Case:
    num_tokens, side = windows.tokens.num_inputs, 4 * windows.window_size - 1
    return Case(
        windows,
        torch.randn(num_tokens, 3, heads, channels).to(dtype),
        torch.randn(heads, side, side).to(dtype) if bias else None,
        torch.randn(num_tokens, heads, channels).to(dtype),
    )


def blocks(window_size: int) -> WindowMaps:
    """A full window and two single tokens in diagonal cells, one within reach of it; in another slide one token."""
    w = window_size
    block = torch.cartesian_prod(torch.arange(2 * w), torch.arange(2 * w))
    diagonal = torch.tensor([[2 * w, 2 * w], [2 * w, w - 1]])
    coords = random_slides.batch_of(torch.cat([block, diagonal]), torch.tensor([[3 * w, w]]))
    return window_maps(make_sites(coords, 2)[0], w)


def results(case: Case, reach: Reach) -> dict[str, Tensor]:
    """Output and gradients of the kernels."""
    leaves = [rows.clone().requires_grad_() for rows in (case.qkv, case.bias) if rows is not None]
    with simulated_device():
        assert has_kernels(case.qkv)
        output = fused_attention(leaves[0], leaves[1] if case.bias is not None else None, case.windows, reach)
        grads = torch.autograd.grad(output, leaves, case.grad)
    return _named(output, *grads)


def oracle(case: Case, reach: Reach) -> dict[str, Tensor]:
    """The same of the gathered attention in float64."""
    leaves = [rows.double().requires_grad_() for rows in (case.qkv, case.bias) if rows is not None]
    bias = leaves[1] if case.bias is not None else None
    output = window_attention(*leaves[0].unbind(1), bias, case.windows, reach, implementation="gathered")
    return _named(output, *torch.autograd.grad(output, leaves, case.grad.double()))


def _named(output: Tensor, dqkv: Tensor, dbias: Tensor | None = None) -> dict[str, Tensor]:
    dq, dk, dv = dqkv.unbind(1)
    named = {"output": output.detach(), "dq": dq, "dk": dk, "dv": dv, "dbias": dbias}
    return {name: value for name, value in named.items() if value is not None}


def check(case: Case, reach: Reach = "union") -> None:
    """Fails where the kernels are further from the oracle than rounding is."""
    ours, exact = results(case, reach), oracle(case, reach)
    assert ours.keys() == exact.keys()
    for name, value in ours.items():
        assert value.dtype == case.qkv.dtype, name
        error = (value.double() - exact[name]).abs().max() / exact[name].abs().max().clamp(min=1)
        assert error <= LIMITS[case.qkv.dtype], f"{name} is off by {float(error):.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize(("window_size", "channels"), [(1, 64), (2, 24), (3, 16), (4, 7)])
def test_equals_the_oracle(window_size: int, channels: int, reach: Reach, dtype: torch.dtype) -> None:
    check(case_of(blocks(window_size), channels=channels, dtype=dtype), reach)


@pytest.mark.parametrize("reach", REACHES)
def test_heads_do_not_mix_and_the_bias_may_be_missing(reach: Reach) -> None:
    check(case_of(blocks(2), heads=2, channels=16, bias=False), reach)
    check(case_of(blocks(1), heads=2, channels=5), reach)


def test_the_widest_head() -> None:
    check(case_of(blocks(1), channels=128))


@pytest.mark.slow
@given(
    slides=st.lists(st.sets(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=4), max_size=2),
    single=st.tuples(st.integers(0, 8), st.integers(0, 8)),
    window_size=st.integers(1, 4),
    reach=st.sampled_from(REACHES),
    bias=st.booleans(),
)
@settings(max_examples=8, deadline=None)
def test_any_pattern_of_cells(
    slides: list[set[tuple[int, int]]], single: tuple[int, int], window_size: int, reach: Reach, bias: bool
) -> None:
    coords = random_slides.batch_of(*(random_slides.grid_of(cells) for cells in [*slides, {single}]))
    sites, _ = make_sites(coords, len(slides) + 1)
    check(case_of(window_maps(sites, window_size), bias=bias), reach)


def test_one_token_reads_itself() -> None:
    windows = window_maps(random_slides.sites_of((1,)), 3)
    case = case_of(windows)
    ours = results(case, "union")
    torch.testing.assert_close(ours["output"], case.qkv[:, 2])
    torch.testing.assert_close(ours["dv"], case.grad)
    for name in ("dq", "dk", "dbias"):  # a softmax of one score
        assert ours[name].abs().max() < 1e-6


def test_two_tokens_by_hand() -> None:
    """Neighbours in a row: scores q·k + bias of the displacement, of weights σ(±1)."""
    windows = window_maps(make_sites(torch.tensor([[0, 0, 0], [0, 0, 1]]), 1)[0], 1)
    qkv = torch.zeros(2, 3, 1, 1)
    qkv[:, 2, 0, 0] = torch.tensor([1.0, 3.0])
    bias = torch.zeros(1, 3, 3)
    bias[0, 1, 2] = 1.0  # the key is one column to the right
    with simulated_device():
        output = fused_attention(qkv, bias, windows).flatten()
    right = torch.sigmoid(torch.tensor(1.0))
    torch.testing.assert_close(output, torch.stack([1 - right + 3 * right, torch.tensor(2.0)]))


def test_two_runs_give_the_same_bits() -> None:
    case = case_of(blocks(2))
    first, second = results(case, "union"), results(case, "union")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("reach", REACHES)
def test_the_log_sum_exp_is_that_of_the_scores(reach: Reach) -> None:
    windows = blocks(2)
    case = case_of(windows, heads=2)
    assert case.bias is not None
    with simulated_device():
        tables = windows.tokens.table, windows.seen, windows.cells.coords
        output, log_sums = torch.ops.span_sparse.window_attention(case.qkv, case.bias, *tables, 2, reach)
    q, k, v = case.qkv.double().unbind(1)
    scores, _ = gathered_scores(q, k, v, expanded_bias(case.bias.double(), 2), windows, reach)
    torch.testing.assert_close(log_sums.double(), scores.logsumexp(dim=-1), rtol=1e-5, atol=1e-5)
    assert output.shape == q.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_large_scores_do_not_overflow(dtype: torch.dtype) -> None:
    case = case_of(blocks(2), dtype=dtype)
    case.qkv[:, :2] *= 60  # scores of some thousands
    ours, exact = results(case, "union"), oracle(case, "union")
    assert all(torch.isfinite(value).all() for value in ours.values())
    torch.testing.assert_close(ours["output"].double(), exact["output"], rtol=1e-2, atol=1e-2)


def test_what_the_kernels_are_not_written_for_is_computed_otherwise() -> None:
    assert supports(torch.float32, 128, 4)
    assert supports(torch.bfloat16, 1, 1)
    cpu, shape = torch.device("cpu"), (100, 2, 8)
    with simulated_device():
        assert choose(cpu, torch.float32, shape, 4) == "fused"
        unsupported = [(torch.float64, 8, 4), (torch.float32, 8, 5), (torch.float32, 129, 4)]
        for dtype, channels, window_size in unsupported:
            assert not supports(dtype, channels, window_size)
            assert choose(cpu, dtype, (100, 2, channels), window_size) == "merged"
            with execution(attention="fused"):
                assert choose(cpu, dtype, (100, 2, channels), window_size) == "merged"
        with execution(attention="gathered"):
            assert choose(cpu, torch.float32, shape, 4) == "gathered"
    windows = window_maps(random_slides.sites_of((50, 3)), 5)
    qkv = torch.randn(53, 3, 1, 4)
    expected = window_attention(*qkv.unbind(1), None, windows, implementation="gathered")
    with simulated_device():
        torch.testing.assert_close(packed_attention(qkv, None, windows), expected)


MISTAKES: dict[str, tuple[Reach, list[tuple[str, str]]]] = {
    "mask: a reached cell is left out": ("union", [("reached = part < 7", "reached = part < 6")]),
    "mask: a cell out of reach is read": ("regular", [("reached = part < 4", "reached = part < 5")]),
    "mask: the shifted window lacks a cell": ("shifted", [("(part >= 4)", "(part >= 5)")]),
    "mask: absent keys count": (
        "union",
        [
            ("tl.where((other >= 0)[None, :], scores, float", "tl.where(True, scores, float"),
        ],
    ),
    "bias: seen from the key in the backward pass": ("union", [("own, column, SIDE, -1)", "own, column, SIDE, 1)")]),
    "bias: row and column change places": (
        "union",
        [
            ("(DIRECTION * row +", "(DIRECTION * col +"),
            ("+ DIRECTION * col +", "+ DIRECTION * row +"),
        ],
    ),
    "bias: cells of odd rows are not mirrored": (
        "union",
        [
            ("down = 1 - 2 * (tl.load(cells + 3 * cell + 1) % 2)", "down = 1"),
        ],
    ),
    "bias: one entry further": ("union", [("+ DIRECTION * col + 2 * SIDE - 1", "+ DIRECTION * col + 2 * SIDE")]),
    "bias: gradients of another parity": ("union", [("2 * (row % 2) + col % 2 ==", "2 * (col % 2) + row % 2 ==")]),
    "key: one is missing": ("union", [("mask=reached, other=-1)", "mask=reached & (column != SIDE), other=-1)")]),
    "scale: forgotten for the keys' gradient": (
        "union",
        [
            ("q, input_precision=PRECISION) * scale", "q, input_precision=PRECISION)"),
        ],
    ),
    "mean: forgotten for the queries' gradient": ("union", [(" - mean_grad[:, None])", ")")]),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_kernels_is_noticed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reach, changes = MISTAKES[name]
    source = Path(window_kernels.__file__).read_text(encoding="utf-8")
    for old, new in changes:
        assert source.count(old) == 1, old
        source = source.replace(old, new)
    path = tmp_path / "mistaken_kernels.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("mistaken_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mistaken_kernels", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, window_kernels.__name__, module)
    with pytest.raises(AssertionError, match="is off by"):
        check(case_of(blocks(2)), reach)  # `test_equals_the_oracle` finds no fault in the kernels as they are


def test_a_missing_key_in_the_table_is_noticed() -> None:
    """The same for a wrong table of seen tokens, whichever cell is concerned, and for a transposed bias."""
    case = case_of(blocks(2))
    check(case)
    seen = case.windows.seen
    place = (0, case.windows.window_size**2)  # the first key in another cell
    kept = int(seen[place])
    assert kept >= 0
    seen[place] = -1
    with pytest.raises(AssertionError, match="is off by"):
        check(case)
    seen[place] = kept
    check(case)
    assert case.bias is not None
    ours = results(Case(case.windows, case.qkv, case.bias.mT.contiguous(), case.grad), "union")["output"]
    assert (ours - oracle(case, "union")["output"]).abs().max() > 0.1
